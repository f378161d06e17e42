"""The bandit spends what it may and finds the good arm; clusters and transport are what they say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from whence.errors import OptionError
from whence.select.bandit import Pulls, pull
from whence.select.clusters import hashed_features, kmeans, transport, units


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """20 arms of 50 rows; arm 7 is better than all others by one standard deviation."""
    rng = np.random.default_rng(seed)
    arms = rng.permutation(np.repeat(np.arange(20), 50))
    return arms, rng.normal(size=1000) + (arms == 7)


@pytest.mark.parametrize("seed", range(3))
def test_it_spends_its_budget_where_it_pays(seed):
    arms, values = world(seed)
    asked: list[int] = []

    def reward(arm: int, rows: list[int]) -> np.ndarray:
        assert (arms[rows] == arm).all()
        asked.extend(rows)
        return values[rows]

    found = pull(arms, reward, Pulls(budget=300, draw=5, seed=seed))
    assert len(asked) == len(set(asked)) == found.judged.sum() == 300
    assert found.means.argmax() == 7
    assert found.drawn[7] > 2 * 300 / 20  # an even share is 15
    np.testing.assert_array_equal(found.values[found.judged], values[found.judged])
    unseen = ~found.judged & (arms == 3)
    expected = (values[found.judged & (arms == 3)].sum() + values[found.judged].mean()) / (found.drawn[3] + 1)
    np.testing.assert_allclose(found.values[unseen], expected, rtol=1e-12)
    assert set(found.order[:20]) == set(range(20))  # everybody once before anybody twice


def test_bounds_are_those_of_the_papers():
    arms = np.repeat([0, 1], 10)
    values = np.where(arms == 0, 1.0, 0.0) + np.tile([0.1, -0.1], 10)
    order = pull(arms, lambda arm, rows: values[list(rows)], Pulls(budget=16, draw=2, explore=0.5)).order
    expected, drawn, total, seen = [], np.zeros(2), np.zeros(2), []
    rng = np.random.default_rng(0)
    waiting = [rng.permutation(np.flatnonzero(arms == a)).tolist() for a in range(2)]
    for _ in range(8):
        if len(expected) < 2:
            arm = len(expected)
        else:
            bound = total / drawn + 0.5 * np.std(seen) * np.sqrt(2 * np.log(drawn.sum()) / drawn)
            arm = int(np.where([bool(w) for w in waiting], bound, -np.inf).argmax())
        rows = [waiting[arm].pop() for _ in range(2)]
        seen += values[rows].tolist()
        drawn[arm] += 2
        total[arm] += values[rows].sum()
        expected.append(arm)
    assert list(order) == expected


def test_rows_that_cannot_be_judged_cost_but_count_for_nothing():
    arms = np.repeat([0, 1], 6)
    found = pull(arms, lambda arm, rows: np.full(len(rows), np.nan if arm == 0 else 2.0), Pulls(budget=12, draw=3))
    assert not found.judged[:6].any() and found.judged[6:].all()
    np.testing.assert_allclose(found.values, 2.0)
    with pytest.raises(OptionError, match="budget 0"):
        Pulls(budget=0)


def test_clusters_of_well_separated_points():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 80)
    points = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])[truth] + rng.normal(size=(80, 2)) * 0.2
    found = kmeans(points, 4, seed=1)
    assert len(set(zip(truth.tolist(), found.tolist(), strict=True))) == 4
    assert sorted(set(found.tolist())) == [0, 1, 2, 3]
    assert set(kmeans(np.zeros((5, 2)), 3).tolist()) == {0}
    with pytest.raises(OptionError, match="0 clusters"):
        kmeans(points, 0)


def test_texts_of_one_kind_are_near_each_other():
    texts = ["the cat sat on the mat", "a cat on a mat", "stocks fell on monday", "stocks rose on friday", ""]
    vectors = hashed_features(texts)
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2] and near[2, 3] > near[1, 3]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 1, 0], atol=1e-12)


def test_transport_is_the_best_assignment():
    rng = np.random.default_rng(0)
    a, b = units(rng.normal(size=(6, 4))), units(rng.normal(size=(6, 4)))
    cost = 1 - a @ b.T
    rows, columns = linear_sum_assignment(cost)
    best = min(np.mean([cost[n, p] for n, p in enumerate(order)]) for order in itertools.permutations(range(6)))
    np.testing.assert_allclose(cost[rows, columns].mean(), best, rtol=1e-12)
    # a blur of 0.002 leaves at most blur x log(36) = 0.0072 between the entropic plan and the best one
    assert best - 1e-6 <= transport(a, b, blur=0.002, rounds=20000) <= best + 0.0072
    # sizes that differ: every point of the larger set weighs half
    doubled = np.concatenate([b, b])
    np.testing.assert_allclose(transport(a, doubled), transport(a, b), atol=1e-6)
    np.testing.assert_allclose(transport(a, a, blur=0.002), 0.0, atol=1e-3)
