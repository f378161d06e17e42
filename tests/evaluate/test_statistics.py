"""Measures against brute force: pairs counted one by one, every order of a tie, simulated coverage."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import linregress, spearmanr

from whence.errors import DataError
from whence.evaluate.statistics import (
    auroc,
    auroc_interval,
    mean_interval,
    mrr,
    paired_interval,
    pearson,
    precision_at,
    recall_at,
    reciprocal_ranks,
    share_found,
    slope_and_calibration,
    spearman,
)


def test_correlations_leave_unknown_pairs_out():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 20)), rng.normal(size=(3, 20))
    a[0, 4], b[0, 7], b[2, :] = np.nan, np.inf, np.nan
    known = np.isfinite(a[0]) & np.isfinite(b[0])
    assert spearman(a, b)[0] == pytest.approx(spearmanr(a[0, known], b[0, known])[0])
    assert pearson(a, b)[0] == pytest.approx(np.corrcoef(a[0, known], b[0, known])[0, 1])
    assert spearman(a, b)[1] == pytest.approx(spearmanr(a[1], b[1])[0])
    assert np.isnan(spearman(a, b)[2])


def test_auroc_counts_pairs():
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 6, size=40).astype(float), rng.random(40) < 0.3
    scores[3] = np.nan
    pairs = [(s > t) + 0.5 * (s == t) for s in scores[positive] for t in scores[~positive] if s == s and t == t]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert auroc(-scores, positive) == pytest.approx(1 - np.mean(pairs))
    assert np.isnan(auroc(scores, np.zeros(40, dtype=bool)))
    with pytest.raises(DataError):
        auroc(scores, positive[:-1])


def test_share_found_is_the_mean_over_all_orders_of_a_tie():
    scores, positive = np.array([2.0, 1.0, 1.0, 1.0, 0.0]), np.array([False, True, False, True, False])
    each = []
    for order in permutations(range(5)):
        ranked = sorted(order, key=lambda n: -scores[n])
        each.append(np.cumsum(positive[ranked]) / 2)
    inspected, found = share_found(scores, positive)
    assert found[[0, 20, 40, 60, 80, 100]] == pytest.approx([0, *np.mean(each, axis=0)])
    assert inspected[20] == pytest.approx(0.2)


def test_constant_scores_are_chance():
    positive = np.arange(50) < 5  # the first rows of the file: their place must earn nothing
    inspected, found = share_found(np.zeros(50), positive)
    assert found == pytest.approx(inspected)
    assert auroc(np.zeros(50), positive) == 0.5
    assert precision_at(np.zeros((1, 50)), [set(range(5))], 10)[0] == pytest.approx(0.1)
    assert reciprocal_ranks(np.zeros((1, 50)), [set(range(5))])[0] < 0.12


def test_ranks_by_hand():
    scores = np.array([[5.0, 4.0, 3.0, np.nan], [1.0, 9.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    relevant = [{1, 3}, {1}, set()]
    assert reciprocal_ranks(scores, relevant)[:2] == pytest.approx([1 / 2, 1])
    assert np.isnan(reciprocal_ranks(scores, relevant)[2]) and np.isnan(recall_at(scores, relevant, 2)[2])
    assert mrr(scores, relevant) == pytest.approx(0.75)
    assert recall_at(scores, relevant, 2)[:2] == pytest.approx([0.5, 1.0])
    assert recall_at(scores, relevant, 1)[:2] == pytest.approx([0.0, 1.0])
    assert precision_at(scores, relevant, 2)[:2] == pytest.approx([0.5, 0.5])
    with pytest.raises(DataError):
        mrr(scores, relevant[:2])


def test_ties_are_their_expected_rank():
    scores, relevant = np.array([[7.0, 1.0, 1.0, 1.0, 1.0]]), {1, 2}
    first = []
    for order in permutations(range(1, 5)):
        first.append(2 + min(order.index(n) for n in relevant))
    assert reciprocal_ranks(scores, [relevant])[0] == pytest.approx(1 / np.mean(first))


def test_intervals_cover():
    rng = np.random.default_rng(2)
    inside = 0
    for trial in range(200):
        found = mean_interval(rng.exponential(size=60), draws=400, seed=trial)
        inside += found.low <= 1.0 <= found.high
    assert 0.88 <= inside / 200 <= 0.99  # 95 % nominal; binomial noise and the skew of the percentile method
    assert np.isnan(mean_interval(np.array([3.0])).low) and mean_interval(np.array([3.0, np.nan])).mean == 3.0


def test_pairs_are_narrower_than_their_parts():
    rng = np.random.default_rng(3)
    common = rng.normal(size=100) * 5
    a, b = common + 1 + 0.1 * rng.normal(size=100), common
    found = paired_interval(a, b)
    assert 0.9 < found.low < found.mean < found.high < 1.1
    with pytest.raises(DataError):
        paired_interval(a, b[:5])


def test_slope_and_calibration():
    rng = np.random.default_rng(4)
    x = rng.normal(size=100)
    y = 0.5 * x + 2 + 0.1 * rng.normal(size=100)
    wanted = linregress(x, y)
    found = slope_and_calibration(np.append(x, np.nan), np.append(y, 1.0), groups=5)
    assert (found.slope, found.intercept, found.pearson) == pytest.approx(
        (wanted.slope, wanted.intercept, wanted.rvalue)
    )
    assert found.count == 100 and [b[3] for b in found.bins] == [20] * 5
    lowest = np.argsort(x)[:20]
    assert found.bins[0][:2] == pytest.approx((x[lowest].mean(), y[lowest].mean()))
    with pytest.raises(DataError):
        slope_and_calibration(np.array([1.0]), np.array([1.0]))


def test_auroc_intervals():
    rng = np.random.default_rng(5)
    inside = 0
    for trial in range(60):  # normal scores, positives shifted by 1: the true area is Phi(1 / sqrt 2)
        positive = np.arange(120) < 40
        scores = rng.normal(size=120) + positive
        found = auroc_interval(scores, positive, draws=200, seed=trial)
        inside += found.low <= 0.7602 <= found.high
    assert inside >= 52
    same = auroc_interval(scores, positive, other=scores * 3 + 1)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    worse = auroc_interval(scores, positive, other=rng.normal(size=120))
    assert worse.low > 0
    with pytest.raises(DataError):
        auroc_interval(scores, positive, other=scores[:3])
