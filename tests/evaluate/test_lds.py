"""LDS against brute force and known answers; its interval against simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from reference.ridge import Ridge
from reference.ridge import lds as brute_force
from whence.errors import DataError
from whence.evaluate.bank import Plan
from whence.evaluate.lds import _Resample, board, ceiling, lds_outcome, lds_per_query
from whence.store.atomic import plain

RNG = np.random.default_rng(0)
KEPT = Plan(30, 20).kept_MN
EFFECTS = RNG.standard_normal((4, 30))


@pytest.fixture
def ridge_bank():
    """Scores, subsets and the losses of ridge regressions refitted on them."""
    x, w = RNG.standard_normal((30, 3)), np.array([1.0, -2.0, 0.5])
    ridge = Ridge(x, x @ w + 0.5 * RNG.standard_normal(30), 0.1)
    xq, yq = RNG.standard_normal((4, 3)), RNG.standard_normal(4)
    weights = ridge.fit()
    residuals_N, residuals_Q = x @ weights - ridge.y_N, xq @ weights - yq
    scores = (residuals_Q[:, None] * xq) @ np.linalg.solve(ridge.hessian, (residuals_N[:, None] * x).T)
    return scores, lambda keep: 0.5 * (xq @ ridge.fit(keep) - yq) ** 2


def test_equals_brute_force(ridge_bank) -> None:
    scores, measure = ridge_bank
    losses = np.stack([measure(keep) for keep in KEPT])
    found = lds_per_query(scores, KEPT, losses)
    np.testing.assert_allclose(found, brute_force(measure, scores, list(KEPT)), atol=1e-12)
    assert found.mean() > 0.5  # exact influence on a convex problem: the sign is right


def test_known_answers() -> None:
    """A truth that is additive in the effects: 1 for them, -1 for their negative, NaN for a constant."""
    losses = 3.0 - KEPT.astype(float) @ EFFECTS.T
    found = board({"right": EFFECTS, "wrong": -EFFECTS, "none": np.zeros((4, 30))}, KEPT, losses[:, None], draws=50)
    assert [s.name for s in found.standings] == ["right", "wrong", "none"]
    right, wrong = found["right"].interval, found["wrong"].interval
    assert (right.mean, right.low, right.high) == pytest.approx((1, 1, 1))
    assert (wrong.mean, wrong.low, wrong.high) == pytest.approx((-1, -1, -1))
    assert np.isnan(found["none"].per_query).all()
    paired = found.paired("right", "wrong")
    assert (paired.mean, paired.low, paired.high) == pytest.approx((2, 2, 2))


def test_one_inversion_by_hand() -> None:
    """Five subsets of one row each, two neighbours in the wrong order: 1 - 6 * 2 / (5 * 24) = 0.9."""
    scores = np.array([[5.0, 4.0, 3.0, 2.0, 1.0]])
    losses = -np.array([[5.0], [3.0], [4.0], [2.0], [1.0]])
    np.testing.assert_allclose(lds_per_query(scores, np.eye(5, dtype=bool), losses), [0.9])


@pytest.mark.parametrize("tied", [False, True])
def test_a_draw_is_the_correlation_of_the_repeated_sample(tied) -> None:
    truth, predicted = RNG.standard_normal((3, 12)), RNG.standard_normal((3, 12))
    if tied:
        truth, predicted = np.round(truth), np.round(predicted)
    resample = _Resample.of(truth, 20, seed=3)
    wanted = []
    for counts, asked in zip(resample.counts_DM.astype(int), resample.queries_DQ, strict=True):
        sample = np.repeat(np.arange(12), counts)
        wanted.append(np.mean([spearmanr(predicted[q, sample], truth[q, sample]).statistic for q in asked]))
    np.testing.assert_allclose(resample.means(predicted), wanted, atol=1e-12)


def simulated(rng, *, shared: float, subsets: int = 40, queries: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and truths of known correlation per query; ``shared`` of what a subset does is common to all."""
    rho = np.clip(rng.normal(0.6, 0.15, queries), 0.0, 0.95)[:, None]
    own, common = rng.standard_normal((2, queries, subsets)), rng.standard_normal((2, 1, subsets))
    signal, noise = np.sqrt(1 - shared) * own + np.sqrt(shared) * common
    return signal, rho * signal + np.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize(("shared", "lowest", "highest"), [(0.8, 0.90, 0.99), (0.0, 0.93, 1.0)])
def test_coverage_of_the_interval(shared, lowest, highest) -> None:
    """Of 150 banks, the 95 % interval holds the true mean in about 95 %; in more where queries' noises are independent
    (then resampling subsets counts noise that resampling queries has counted)."""
    rng = np.random.default_rng(1)
    rhos = np.clip(np.random.default_rng(2).normal(0.6, 0.15, 200_000), 0.0, 0.95)
    true = np.mean(6 / np.pi * np.arcsin(rhos / 2))  # Spearman of a normal pair of Pearson rho
    held = []
    for number in range(150):
        predicted, truth = simulated(rng, shared=shared)
        low, high = np.quantile(_Resample.of(truth, 300, number).means(predicted), [0.025, 0.975])
        held.append(low <= true <= high)
    assert lowest <= np.mean(held) <= highest, np.mean(held)


def test_intervals_over_queries_alone_would_be_too_narrow() -> None:
    """Why subsets are drawn again too: with noise common to the queries, the other interval misses the truth."""
    rng = np.random.default_rng(1)
    true = np.mean(6 / np.pi * np.arcsin(np.clip(np.random.default_rng(2).normal(0.6, 0.15, 200_000), 0, 0.95) / 2))
    held = []
    for number in range(150):
        predicted, truth = simulated(rng, shared=0.8)
        per_query = np.array([spearmanr(a, b).statistic for a, b in zip(predicted, truth, strict=True)])
        picked = np.random.default_rng(number).integers(0, len(per_query), (300, len(per_query)))
        low, high = np.quantile(per_query[picked].mean(1), [0.025, 0.975])
        held.append(low <= true <= high)
    assert np.mean(held) < 0.8, np.mean(held)


def test_the_ceiling_is_what_a_perfect_method_reaches() -> None:
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((400, 1, 8))
    losses = signal + rng.standard_normal((400, 3, 8))  # noise as large as the signal, three seeds
    found = ceiling(losses)
    assert found is not None
    reached = np.mean([spearmanr(signal[:, 0, q], losses[:, :, q].mean(1)).statistic for q in range(8)])
    assert found.single == pytest.approx(0.48, abs=0.05)  # Spearman of a normal pair of Pearson 0.5
    assert found.best.mean == pytest.approx(reached, abs=0.03)
    assert ceiling(losses[:, :1]) is None


def test_diverged_and_unscored() -> None:
    losses = (-KEPT.astype(float) @ EFFECTS.T)[:, None].repeat(2, axis=1)
    losses[3, 1, 0] = np.nan
    scores = EFFECTS.copy()
    scores[:, 7] = np.nan
    found = board({"holes": scores, "right": EFFECTS}, KEPT, losses, draws=20)
    assert found.dropped == 1 and found.subsets == 19 and found.unscored == (("holes", 1),)
    zeroed = np.nan_to_num(scores)
    np.testing.assert_allclose(
        found["holes"].per_query, lds_per_query(zeroed, np.delete(KEPT, 3, 0), np.delete(losses[:, 0], 3, 0))
    )
    with pytest.raises(DataError, match="usable subsets"):
        board({"right": EFFECTS}, KEPT[:2], losses[:2])
    with pytest.raises(DataError, match="one loss per subset"):
        board({"right": EFFECTS[:, :5]}, KEPT, losses)


def test_outcome() -> None:
    rng = np.random.default_rng(4)
    losses = (-KEPT.astype(float) @ EFFECTS.T)[:, None] + rng.standard_normal((20, 2, 4))
    given = {"right": EFFECTS, "blurred": EFFECTS + rng.standard_normal((4, 30)), "random": rng.random((4, 30))}
    found = lds_outcome(board(given, KEPT, losses, draws=100), reference="blurred", about={"seed": 0})
    assert found.verb == "lds" and found.rows[0][0] == "right"
    assert [row[3] == "" for row in found.rows] == [row[0] == "blurred" for row in found.rows]
    words = " ".join(found.words)
    assert "no method can be expected above" in words and "from blurred (the paired 95 % interval): random" in words
    assert found.charts[0].groups == tuple(row[0] for row in found.rows)
    values = json.loads(json.dumps(plain(found.to_dict()), allow_nan=False))["values"]
    assert values["paired"]["right"]["random"]["low"] > 0 and values["sizes"]["seeds"] == 2
    single = lds_outcome(board(given, KEPT, losses[:, :1], draws=20))
    assert any("second seed" in said for said in single.words)
