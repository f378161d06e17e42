"""Weights of sources: the derivative against finite differences of a closed form, the step, the sample."""

from __future__ import annotations

import numpy as np
import pytest

from whence.errors import DataError, OptionError
from whence.select.mixture import counts, pulls, step, swaps

SOURCES = ("a", "b", "a", "c", "b", "a", "c", "c")


def ridge(weight_N: np.ndarray, x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """The minimum of mean(w (y - x t)^2) / 2 + penalty |t|^2 / 2; the mean is over the rows as they first were."""
    hessian = (x * weight_N[:, None]).T @ x / len(x) + penalty * np.eye(x.shape[1])
    return np.linalg.solve(hessian, x.T @ (weight_N * y) / len(x))


def test_pulls_are_the_derivative_of_the_reference_loss():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=8)
    asked, wanted = rng.normal(size=(5, 3)), rng.normal(size=5)
    theta = ridge(np.ones(8), x, y, 0.1)
    hessian = x.T @ x / 8 + 0.1 * np.eye(3)
    grads, questions = x * (x @ theta - y)[:, None], asked * (asked @ theta - wanted)[:, None]
    scores = questions @ np.linalg.solve(hessian, grads.T)
    found = pulls(scores, SOURCES, 8)
    named = np.array(SOURCES)
    for source in "abc":

        def loss(by: float, source: str = source) -> float:
            moved = ridge(np.where(named == source, 1 + by, 1.0), x, y, 0.1)
            return float(np.mean((asked @ moved - wanted) ** 2) / 2)

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        np.testing.assert_allclose(found[source], -slope, rtol=1e-7)  # error of the difference is 1e-10 in nats


def test_swaps_are_the_derivative_at_a_fixed_size():
    """One row spread over a source comes in, one row spread over the whole mixture goes out."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=8)
    asked, wanted = rng.normal(size=(5, 3)), rng.normal(size=5)
    weights, named = {"a": 1.5, "b": 0.5, "c": 1.0}, np.array(SOURCES)
    mixed = np.array([weights[source] for source in SOURCES])
    theta = ridge(mixed, x, y, 0.1)
    hessian = (x * mixed[:, None]).T @ x / 8 + 0.1 * np.eye(3)
    grads, questions = x * (x @ theta - y)[:, None], asked * (asked @ theta - wanted)[:, None]
    found = swaps(questions @ np.linalg.solve(hessian, grads.T), SOURCES, 8, weights)
    for source in "abc":
        into = (named == source) / (named == source).sum() - mixed / mixed.sum()

        def loss(by: float, into: np.ndarray = into) -> float:
            return float(np.mean((asked @ ridge(mixed + by * into, x, y, 0.1) - wanted) ** 2) / 2)

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        np.testing.assert_allclose(found[source], -slope, rtol=1e-6)  # error of the difference is 1e-10 in nats


def test_swaps_keep_the_size_and_do_not_hang_on_how_sources_are_cut():
    rng = np.random.default_rng(2)
    scores, weights = rng.normal(size=(3, 8)) + 5.0, {"a": 1.5, "b": 0.5, "c": 1.0}
    found = swaps(scores, SOURCES, 8, weights)
    have = {source: SOURCES.count(source) for source in weights}
    moved = step(weights, found, strength=0.3)
    before = sum(weights[s] * have[s] for s in weights)
    assert sum(moved[s] * have[s] for s in weights) == pytest.approx(before)
    scores[:, 2], scores[:, 5] = scores[:, 0], scores[:, 0]  # rows of "a" alike
    whole = swaps(scores, SOURCES, 8, weights)
    cut = tuple("a2" if n == 5 else s for n, s in enumerate(SOURCES))
    parts = swaps(scores, cut, 8, {**weights, "a2": 1.5})
    assert parts == pytest.approx({**whole, "a2": whole["a"]})
    assert pulls(scores, cut, 8)["a"] != pytest.approx(pulls(scores, SOURCES, 8)["a"])


def test_the_largest_effect_moves_by_the_strength():
    weights = step({"a": 1.0, "b": 2.0, "c": 1.0}, {"a": -4.0, "b": 1.0, "c": 2.0}, strength=0.2)
    assert weights == pytest.approx({"a": 0.8, "b": 2.1, "c": 1.1})
    assert step({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}) == {"a": 1.0, "b": 1.0}
    with pytest.raises(OptionError, match="strength 2"):
        step({"a": 1.0}, {"a": 1.0}, strength=2)


def test_a_sample_has_what_the_weights_say():
    sources = ["a"] * 40 + ["b"] * 10 + ["c"] * 5
    taken = counts(sources, {"a": 0.25, "b": 2.5, "c": 1.0}, seed=3)
    assert [int(taken[np.array(sources) == s].sum()) for s in "abc"] == [10, 25, 5]
    assert set(taken[:40].tolist()) == {0, 1} and set(taken[40:50].tolist()) == {2, 3}
    assert (taken[50:] == 1).all()
    again = counts(["c"] * 5 + ["a"] * 40, {"a": 0.25, "c": 1.0}, seed=3)
    assert (again[5:] == taken[:40]).all()  # a source's lot depends on nobody else
    assert (counts(sources, {"a": 0.25, "b": 2.5, "c": 1.0}, seed=4) != taken).any()
    scaled = counts(sources, {"a": 1.0, "b": 1.0, "c": 1.0}, size=110)
    assert (scaled == 2).all()
    with pytest.raises(OptionError, match="all 0"):
        counts(sources, {"a": 0.0, "b": 0.0, "c": 0.0})


def test_unscored_rows_pull_nobody():
    scores = np.array([[1.0, np.nan, 3.0]])
    assert pulls(scores, ("a", "a", "b"), 2) == {"a": 0.5, "b": 1.5}
    with pytest.raises(DataError, match="for 2 rows"):
        pulls(scores, ("a", "b"), 2)
