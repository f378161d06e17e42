"""A large pool judged from few gradients: clusters are arms, drawn rows are judged, the promising arms drawn again.

Upper confidence bounds as in Quad (arXiv 2409.16986) and EQUAL (arXiv 2505.12250): an arm's bound is its mean reward
plus α s √(2 ln T / T_j), T_j draws of arm j of T in all, s the standard deviation of all rewards so far (which makes α
free of their unit). A row that was never drawn is worth its arm's mean, shrunk to the mean of all draws as if one
more draw had had that value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from whence.errors import OptionError

Reward = Callable[[int, Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Pulls:
    """How the budget is spent.

    Attributes:
        budget: rows judged at most.
        draw: rows drawn from an arm at a time.
        explore: α: 0 = always the best so far.
        seed: of the draws.
    """

    budget: int
    draw: int = 8
    explore: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget < 1 or self.draw < 1 or self.explore < 0:
            raise OptionError(
                f"budget {self.budget}, draw {self.draw}, explore {self.explore}", wanted="at least 1, 1 and 0"
            )


@dataclass(frozen=True)
class Judged:
    """What is known afterwards.

    Attributes:
        values: N values: a judged row's own, else its arm's.
        judged: N booleans.
        means: J mean rewards by arm (shrunk as described above); of an arm never drawn, the mean of all.
        drawn: J rows judged by arm.
        order: arms in the order in which they were pulled.
    """

    values: np.ndarray
    judged: np.ndarray
    means: np.ndarray
    drawn: np.ndarray
    order: tuple[int, ...]


def pull(arms_N: np.ndarray, reward: Reward, pulls: Pulls) -> Judged:
    """Spend the budget.

    Args:
        arms_N: arm of every row, from 0.
        reward: (arm, positions) -> one value per position, higher = better; NaN = could not be judged.
        pulls: budget and how.
    """
    arms_N = np.asarray(arms_N)
    count = int(arms_N.max()) + 1
    rng = np.random.default_rng(pulls.seed)
    waiting = [rng.permutation(np.flatnonzero(arms_N == arm)).tolist() for arm in range(count)]
    values = np.full(len(arms_N), np.nan)
    drawn, total, order, spent = np.zeros(count), np.zeros(count), list[int](), 0
    while spent < pulls.budget and any(waiting):
        arm = _next_arm(waiting, drawn, total, values, explore=pulls.explore)
        some = [waiting[arm].pop() for _ in range(min(pulls.draw, len(waiting[arm]), pulls.budget - spent))]
        found = np.asarray(reward(arm, some), dtype=np.float64)
        values[some] = found
        known = np.isfinite(found)
        drawn[arm] += max(1, int(known.sum()))
        total[arm] += float(found[known].sum())
        order.append(arm)
        spent += len(some)
    return _settled(arms_N, values, count, tuple(order))


def _next_arm(
    waiting: Sequence[list[int]], drawn: np.ndarray, total: np.ndarray, values: np.ndarray, *, explore: float
) -> int:
    """Arms never drawn first, larger ones before smaller; then the highest bound (ties to the lower number)."""
    untried = [arm for arm, rows in enumerate(waiting) if rows and not drawn[arm]]
    if untried:
        return max(untried, key=lambda arm: (len(waiting[arm]), -arm))
    spread = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
    bounds = total / np.maximum(drawn, 1) + explore * spread * np.sqrt(
        2 * np.log(max(drawn.sum(), 2)) / np.maximum(drawn, 1)
    )
    open_ = np.array([bool(rows) for rows in waiting])
    return int(np.where(open_, bounds, -np.inf).argmax())


def _settled(arms_N: np.ndarray, values: np.ndarray, count: int, order: tuple[int, ...]) -> Judged:
    judged = np.isfinite(values)
    overall = float(values[judged].mean()) if judged.any() else 0.0
    drawn = np.bincount(arms_N[judged], minlength=count)
    sums = np.bincount(arms_N[judged], weights=values[judged], minlength=count)
    means = (sums + overall) / (drawn + 1)
    return Judged(np.where(judged, values, means[arms_N]), judged, means, drawn, order)
