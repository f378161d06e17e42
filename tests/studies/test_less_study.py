"""The study of LESS on a tiny pool: it runs, and says what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from studies.test_selection_study import load
from whence.select.bandit import Judged
from whence.select.clusters import units


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_less(tmp_path, monkeypatch):
    study = load("less")
    pools, plain = study._pools, study.selection.Config
    sizes = pools.Sizes(
        per_source=6, dev=3, test=6, tokens=48, base=pools.BookRecipe(width=16, inner=24, layers=1, passes=1)
    )
    rest = plain(keep=6, seeds=2, steps=2, batch=4, warm_up_epochs=0.5, arms=3, copies=2, sizes=sizes)
    config = study.Config(shares=(0.3,), size=4, fold_epochs=0.5, rest=rest)
    monkeypatch.setattr(study, "POOLS", {"almanac": study.POOLS["almanac"]})
    result = study.run(config, tmp_path, tmp_path / "kept")
    losses = result["the Almanac"]["losses"]
    assert {"less 30%", "less 30%, max", "less 30%, projected", "bandit, smoothed", "mixture, swaps"} <= set(losses)
    assert all(np.shape(v) == (2, 6) and np.isfinite(v).all() for v in losses.values())
    record = study.page(config, result, study._page.circumstances(config, 1.0), tmp_path / "docs")
    text = (tmp_path / "docs" / "less.md").read_text()
    for group, verdicts in record["pools"]["the Almanac"]["gains"].items():
        assert f"### {group}" in text and verdicts
        for name, gain in verdicts.items():
            ours, rival = name.split(" over ")
            assert gain["mean"] == pytest.approx(np.mean(losses[rival]) - np.mean(losses[ours]))
            assert f"{gain['mean']:.3f} [{gain['low']:.3f}" in text


def test_guesses_are_those_of_kernel_ridge_regression():
    """Against regressions solved one by one, each without the row that it is judged by."""
    study = load("less")
    rng = np.random.default_rng(3)
    features, judged = units(rng.normal(size=(30, 6))), np.arange(30) % 3 == 0
    truth = features @ rng.normal(size=6) + 0.1 * rng.normal(size=30) + 4.0
    values = np.where(judged, truth, 0.0)
    found = study.smoothed(Judged(values, judged, np.zeros(1), np.zeros(1), ()), features)
    known, mean = np.flatnonzero(judged), truth[judged].mean()

    def guess(rows: np.ndarray, at: np.ndarray, noise: float) -> np.ndarray:
        """Ridge regression on the features themselves, the other form of the same thing."""
        x = features[rows]
        slope = np.linalg.solve(x.T @ x + noise * np.eye(6), x.T @ (truth[rows] - mean))
        return mean + features[at] @ slope

    errors = [sum(float(guess(known[known != n], np.array([n]), noise)[0] - truth[n]) ** 2 for n in known)
              for noise in study.NOISES]  # fmt: skip
    best = study.NOISES[int(np.argmin(errors))]
    np.testing.assert_allclose(found[~judged], guess(known, np.flatnonzero(~judged), best), rtol=1e-9)
    np.testing.assert_array_equal(found[judged], truth[judged])
    assert np.corrcoef(found[~judged], truth[~judged])[0, 1] > 0.8


def test_one_judged_row_says_nothing_of_others():
    judged = Judged(np.array([2.0, 1.0, 1.0]), np.array([True, False, False]), np.zeros(1), np.zeros(1), ())
    np.testing.assert_array_equal(load("less").smoothed(judged, np.eye(3)), judged.values)
