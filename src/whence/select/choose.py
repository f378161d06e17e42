"""Which rows to keep, and why each one was kept or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from whence.errors import DataError, OptionError
from whence.select.amounts import Amount, Quota, most_by_source
from whence.select.values import Balance, bids_order, values_of

KEPT, BELOW, ALIKE, FULL, UNSCORED = "kept", "below the cut", "near-duplicate", "quota full", "not scored"


@dataclass(frozen=True)
class Rule:
    """What to keep.

    Attributes:
        keep: this many of the most helpful; None with ``drop``.
        drop: leave out this many of the least helpful; None with ``keep``.
        balance: how influence on several questions becomes one value: see ``values``.
        quota: by source.
        diverse: at most this many of a group of near-duplicates, the most helpful first; 0 = no limit.
        unscored: rows without a score: ``auto`` leaves them out with ``keep`` and keeps them with ``drop``.
    """

    keep: Amount | None = None
    drop: Amount | None = None
    balance: Balance = "mean"
    quota: Quota = field(default_factory=Quota)
    diverse: int = 0
    unscored: Literal["auto", "keep", "drop"] = "auto"

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.drop is None):
            got = "neither keep nor drop" if self.keep is None else "both keep and drop"
            raise OptionError(got, wanted="one of them", try_="--keep 10%, or --drop 1%")

    @property
    def keeps_unscored(self) -> bool:
        """Whether rows without a score stay."""
        return self.unscored == "keep" or (self.unscored == "auto" and self.drop is not None)


@dataclass(frozen=True)
class Choice:
    """What was decided about N rows.

    Attributes:
        values: N numbers that rows were ordered by, higher = keep first; NaN = not scored. For ``bids`` the place in
            its order, negated.
        kept: N booleans.
        reasons: N short texts.
    """

    values: np.ndarray
    kept: np.ndarray
    reasons: tuple[str, ...]


def choose(
    scores_QN: np.ndarray,
    tasks: Sequence[str],
    rule: Rule,
    *,
    sources: Sequence[str],
    groups: Mapping[int, str] | None = None,
) -> Choice:
    """Apply a rule.

    Rows are taken from the most helpful on, ties in row order, as long as their source's quota and their group of
    near-duplicates have room.

    Args:
        scores_QN: influence, positive = helps; NaN for rows without a score.
        tasks: Q names of sub-tasks.
        rule: the rule.
        sources: N names.
        groups: position -> group of near-duplicates, for rows that have company.

    Raises:
        DataError: no row with a score, or numbers of rows that differ.
        OptionError: a quota for an unknown source.
    """
    scores_QN = np.asarray(scores_QN, dtype=np.float64)
    count = scores_QN.shape[1]
    if len(sources) != count:
        raise DataError(f"{len(sources)} sources for {count} rows", wanted="one per row")
    scored_N = np.isfinite(scores_QN).all(0)
    if not scored_N.any():
        raise DataError("no row has a score", wanted="at least one")
    wanted = _wanted(rule, count, int(scored_N.sum()))
    values, order = _ordered(scores_QN, tasks, rule, wanted if rule.diverse == 0 and rule.quota == Quota() else count)
    return _taken(values, order, wanted, rule=rule, sources=sources, groups=groups or {})


def choose_by_value(
    values_N: np.ndarray, rule: Rule, *, sources: Sequence[str], groups: Mapping[int, str] | None = None
) -> Choice:
    """``choose`` for rows that have one value already."""
    return choose(np.asarray(values_N)[None], ("value",), rule, sources=sources, groups=groups)


def _wanted(rule: Rule, count: int, scored: int) -> int:
    """How many scored rows are kept: shares are of all rows."""
    if rule.keep is not None:
        return min(scored, rule.keep.of(count))
    assert rule.drop is not None
    return max(0, scored - rule.drop.of(count))


def _ordered(scores_QN: np.ndarray, tasks: Sequence[str], rule: Rule, needed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values, and positions of scored rows from the most helpful on."""
    if rule.balance != "bids":
        values = values_of(scores_QN, tasks, rule.balance)
        order = np.argsort(-values, kind="stable")
        return values, order[np.isfinite(values[order])]
    values = np.where(np.isfinite(scores_QN).all(0), -np.inf, np.nan)
    order = bids_order(scores_QN, tasks, needed)
    values[order] = -np.arange(1.0, len(order) + 1)
    values[np.isneginf(values)] = -1.0 - len(order)
    return values, order


def _taken(
    values_N: np.ndarray,
    order: np.ndarray,
    wanted: int,
    *,
    rule: Rule,
    sources: Sequence[str],
    groups: Mapping[int, str],
) -> Choice:
    scored_N = np.isfinite(values_N)
    have = Counter(source for source, scored in zip(sources, scored_N.tolist(), strict=True) if scored)
    most = most_by_source(rule.quota, {source: have[source] for source in dict.fromkeys(sources)}, wanted)
    kept, reasons = np.zeros(len(values_N), dtype=bool), [BELOW if s else UNSCORED for s in scored_N.tolist()]
    by_source: Counter[str] = Counter()
    by_group: Counter[str] = Counter()
    left = wanted
    places: list[int] = order.tolist()
    for n in places:
        group = groups.get(n, "") if rule.diverse else ""
        if group and by_group[group] >= rule.diverse:
            reasons[n] = f"{ALIKE} of {group}"
            left -= rule.drop is not None  # of rows to drop, a near-duplicate is one more, not one instead
        elif left <= 0:
            continue
        elif by_source[sources[n]] >= most[sources[n]]:
            reasons[n] = FULL
        else:
            kept[n], reasons[n] = True, KEPT
            by_source[sources[n]] += 1
            by_group[group] += 1
            left -= 1
    if rule.keeps_unscored:
        kept |= ~scored_N
        reasons = [f"{KEPT}: {UNSCORED}" if r == UNSCORED else r for r in reasons]
    return Choice(values_N, kept, tuple(reasons))
