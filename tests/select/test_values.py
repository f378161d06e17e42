"""Values from scores on several questions, against loops written out."""

from __future__ import annotations

import numpy as np
import pytest

from whence.errors import DataError, OptionError
from whence.select.values import bids_order, by_task, check_balance, standardised, values_of

TASKS = ("a", "b", "a", "b", "b")


def scores(rows: int = 9) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, rows)) * np.array([1, 50, 1, 0.1, 3])[:, None]


def slow_value(column: np.ndarray, how: str) -> float:
    means = [np.mean([v for v, t in zip(column, TASKS, strict=True) if t == name]) for name in ("a", "b")]
    return max(means) if how == "max" else sum(means) / 2


@pytest.mark.parametrize("how", ["mean", "max"])
def test_mean_over_questions_then_over_or_best_of_tasks(how):
    found = values_of(scores(), TASKS, how)
    np.testing.assert_allclose(found, [slow_value(column, how) for column in scores().T], rtol=1e-13)


def test_standard_is_the_mean_on_one_scale():
    table = scores()
    scaled = np.stack([(line - line.mean()) / np.sqrt(np.mean((line - line.mean()) ** 2)) for line in table])
    np.testing.assert_allclose(
        values_of(table, TASKS, "standard"), [slow_value(c, "mean") for c in scaled.T], rtol=1e-12
    )
    loud = table * np.array([1000, 1, 1, 1, 7])[:, None]
    np.testing.assert_allclose(values_of(loud, TASKS, "standard"), values_of(table, TASKS, "standard"), rtol=1e-9)


def test_a_row_without_scores_stays_unknown_and_moves_nobody():
    table = scores()
    wider = np.insert(table, 4, np.nan, axis=1)
    for how in ("mean", "max", "standard"):
        found = values_of(wider, TASKS, how)
        assert np.isnan(found[4])
        np.testing.assert_allclose(np.delete(found, 4), values_of(table, TASKS, how), rtol=1e-12)
    assert 4 not in bids_order(wider, TASKS, 10)


def test_a_question_that_tells_nothing_apart_counts_as_nothing():
    assert (standardised(np.array([[3.0, 3.0], [1.0, 2.0]]))[0] == 0).all()


def slow_bids(table: np.ndarray, tasks: tuple[str, ...], count: int) -> list[int]:
    """The rule of the paper, one candidate after the other."""
    lines = [(line - line.mean()) / line.std() for line in table]
    names = list(dict.fromkeys(tasks))
    of = [
        [np.mean([lines[q][n] for q in range(len(tasks)) if tasks[q] == t]) for t in names]
        for n in range(table.shape[1])
    ]
    taken: list[int] = []
    while len(taken) < count:
        mean = [np.mean([of[n][t] for n in taken]) if taken else 0.0 for t in range(len(names))]
        gains = {n: max(of[n][t] - mean[t] for t in range(len(names))) for n in range(len(of)) if n not in taken}
        taken.append(max(gains, key=lambda n: (gains[n], -n)))
    return taken


@pytest.mark.parametrize("seed", range(4))
def test_bids_takes_what_the_least_served_needs(seed):
    table = np.random.default_rng(seed).normal(size=(5, 30))
    assert bids_order(table, TASKS, 12).tolist() == slow_bids(table, TASKS, 12)


def test_bids_serves_the_quiet_task_where_the_mean_does_not():
    loud, quiet = np.zeros(40), np.zeros(40)
    loud[:20], quiet[20:] = np.linspace(90, 110, 20), np.linspace(0.9, 1.1, 20)
    by_mean = np.argsort(-values_of(np.stack([loud, quiet]), ("l", "q"), "mean"))[:10]
    assert (by_mean < 20).all()
    assert 3 <= (bids_order(np.stack([loud, quiet]), ("l", "q"), 10) >= 20).sum() <= 7


def test_what_cannot_be():
    with pytest.raises(DataError, match="for 2 questions"):
        by_task(scores(), ("a", "b"))
    with pytest.raises(OptionError, match="one of mean, max"):
        check_balance("median")
    with pytest.raises(DataError, match="without a single score"):
        standardised(np.array([[np.nan, np.nan]]))
