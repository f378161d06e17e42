"""One value per row from its influence on several questions.

Questions belong to sub-tasks. ``mean`` adds them up evenly by task, ``max`` takes the task that a row serves best
(LESS, Xia et al. 2024: mean over a sub-task's questions, maximum over sub-tasks), ``standard`` is ``mean`` after every
question's scores were brought to mean 0 and deviation 1, so that no question is louder than another.

``bids`` (Dai et al. 2025, arXiv 2501.12147) is no value but an order: standardised as above, then again and again the
row that does most for what the rows taken so far serve least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from whence.errors import DataError, OptionError

Balance = Literal["mean", "max", "standard", "bids"]
BALANCES: tuple[Balance, ...] = get_args(Balance)


def check_balance(name: str) -> Balance:
    """The name, if it is one.

    Raises:
        OptionError: lists the names.
    """
    if name not in BALANCES:
        raise OptionError(f"balance {name!r}", wanted="one of " + ", ".join(BALANCES), try_="max, as in LESS")
    return name  # type: ignore[return-value]


def by_task(scores_QN: np.ndarray, tasks: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the T sub-tasks in order of first appearance, and the T x N means over the questions of each.

    Args:
        scores_QN: influence of N rows on Q questions; a row that has none is NaN for all of them.
        tasks: Q names.

    Raises:
        DataError: not one name per question, or no question.
    """
    scores_QN = np.asarray(scores_QN, dtype=np.float64)
    if scores_QN.ndim != 2 or len(scores_QN) != len(tasks) or not len(tasks):
        raise DataError(
            f"scores {scores_QN.shape} for {len(tasks)} questions", wanted="one line of scores per question"
        )
    names = tuple(dict.fromkeys(tasks))
    lines = [scores_QN[[t == name for t in tasks]].mean(0) for name in names]
    return names, np.stack(lines)


def standardised(scores_QN: np.ndarray) -> np.ndarray:
    """Every question's scores less their mean, over their standard deviation; a question without any spread is 0."""
    scores_QN = np.asarray(scores_QN, dtype=np.float64)
    known = np.where(np.isfinite(scores_QN), scores_QN, np.nan)
    if not np.isfinite(known).any(1).all():
        raise DataError("a question without a single score", wanted="at least one scored row")
    spread_Q1 = np.nanstd(known, axis=1, keepdims=True)
    centred = known - np.nanmean(known, axis=1, keepdims=True)
    return centred / np.where(spread_Q1 > 0, spread_Q1, 1.0)


def values_of(scores_QN: np.ndarray, tasks: Sequence[str], balance: Balance) -> np.ndarray:
    """N values, higher = keep first; NaN for rows without scores. ``bids`` is told apart: see ``bids_order``.

    Raises:
        OptionError: another balance.
        DataError: as ``by_task``.
    """
    if balance not in ("mean", "max", "standard"):
        raise OptionError(f"values of balance {balance!r}", wanted="mean, max or standard")
    scores = standardised(scores_QN) if balance == "standard" else scores_QN
    means_TN = by_task(scores, tasks)[1]
    return means_TN.max(0) if balance == "max" else means_TN.mean(0)


def bids_order(scores_QN: np.ndarray, tasks: Sequence[str], count: int) -> np.ndarray:
    """The first ``count`` rows in the order in which BIDS takes them.

    With A the standardised T x N influence and S the rows taken so far, the next row is argmax_n max_t (A[t, n] - mean
    of A[t, S]); the first has the highest entry of all. Ties go to the earlier row. Costs ``count`` looks at T x N.

    Returns:
        At most ``count`` positions; rows without scores are never taken.
    """
    means_TN = by_task(standardised(scores_QN), tasks)[1]
    free_N = np.isfinite(means_TN).all(0)
    count = min(count, int(free_N.sum()))
    left_TN = np.where(free_N, means_TN, -np.inf)
    taken_T, order = np.zeros(len(means_TN)), np.empty(count, dtype=np.int64)
    for n in range(count):
        best = int((left_TN - (taken_T / max(1, n))[:, None]).max(0).argmax())
        order[n] = best
        taken_T += means_TN[:, best]
        left_TN[:, best] = -np.inf
    return order
