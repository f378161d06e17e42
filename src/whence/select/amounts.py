"""How many: shares and counts as people write them, and how a number is dealt out to sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whence.errors import OptionError

SPREADS = ("even", "proportional")


@dataclass(frozen=True)
class Amount:
    """A share of something, or a count.

    Attributes:
        share: 0 to 1, or None.
        count: whole number, or None.
    """

    share: float | None = None
    count: int | None = None

    def of(self, total: int) -> int:
        """How many of ``total`` (a share is rounded to the nearest whole, at least 1 of a share above 0)."""
        if self.count is not None:
            return min(self.count, total)
        assert self.share is not None
        return min(total, max(1, math.floor(self.share * total + 0.5))) if self.share > 0 and total else 0

    def __str__(self) -> str:
        return f"{self.count:,}" if self.share is None else f"{100 * self.share:g} %"


def parse_amount(text: object, *, name: str = "keep") -> Amount:
    """``10%``, ``0.1`` (below 1: a share) or ``500`` (from 1: a count).

    Raises:
        OptionError: none of these.
    """
    words = str(text).strip()
    try:
        number = float(words.removesuffix("%").strip())
    except ValueError:
        number = math.nan
    if words.endswith("%") and 0 <= number <= 100:
        return Amount(share=number / 100)
    if not words.endswith("%") and 0 <= number < 1:
        return Amount(share=number)
    if not words.endswith("%") and number >= 1 and number.is_integer():
        return Amount(count=int(number))
    raise OptionError(f"{name} {text!r}", wanted="a share or a count of rows", try_=f"{name} 10%, or {name} 500")


@dataclass(frozen=True)
class Quota:
    """How kept rows are dealt out to sources.

    Attributes:
        spread: ``even`` (each the same number), ``proportional`` (each its share of the rows) or "" (as it comes).
        caps: source -> at most this many; a share is of all kept rows.
    """

    spread: str = ""
    caps: Mapping[str, Amount] | None = None


def parse_quota(texts: Sequence[str]) -> Quota:
    """``even``, ``proportional``, or any number of ``source=30%``.

    Raises:
        OptionError: something else, or a mixture.
    """
    words = [text.strip() for text in texts if text.strip()]
    if not words:
        return Quota()
    if len(words) == 1 and words[0] in SPREADS:
        return Quota(words[0])
    caps: dict[str, Amount] = {}
    for word in words:
        source, equals, amount = word.rpartition("=")
        if not (equals and source.strip()):
            raise OptionError(
                f"quota {word!r}",
                wanted="even, proportional, or source=share",
                try_="--quota even, or --quota books=30%",
            )
        caps[source.strip()] = parse_amount(amount, name=f"quota {source.strip()}")
    return Quota("", caps)


def most_by_source(quota: Quota, have: Mapping[str, int], count: int) -> dict[str, int]:
    """Source -> how many rows of it may be among ``count`` kept ones.

    Args:
        quota: the rule.
        have: source -> rows that could be kept.
        count: rows to keep.

    Raises:
        OptionError: a cap for a source that is not there.
    """
    if quota.spread == "even":
        return _even(have, count)
    if quota.spread == "proportional":
        return _proportional(have, count)
    caps = quota.caps or {}
    for source in caps:
        if source not in have:
            raise OptionError(
                f"quota for {source!r}", wanted="a source of these rows", try_=", ".join(sorted(have)[:8])
            )
    return {source: min(rows, caps[source].of(count)) if source in caps else rows for source, rows in have.items()}


def _even(have: Mapping[str, int], count: int) -> dict[str, int]:
    """The same number each; what a small source cannot give is asked of the others."""
    count = min(count, sum(have.values()))
    left, level = count, 0
    for n, rows in enumerate(sorted(have.values())):  # the smallest give all they have, as long as the rest can match
        level = left // (len(have) - n)
        if rows > level:
            break
        left -= rows
    given = {source: min(rows, level) for source, rows in have.items()}
    for source in [source for source, rows in have.items() if rows > level][: count - sum(given.values())]:
        given[source] += 1
    return given


def _proportional(have: Mapping[str, int], count: int) -> dict[str, int]:
    """Shares of the whole, rounded by largest remainders (ties to the earlier source)."""
    total = sum(have.values())
    count = min(count, total)
    exact = {source: count * rows / max(1, total) for source, rows in have.items()}
    given = {source: math.floor(share) for source, share in exact.items()}
    order = sorted(have, key=lambda source: given[source] - exact[source])
    for source in order[: count - sum(given.values())]:
        given[source] += 1
    return given


def counts_of(sources: Sequence[str], chosen_N: np.ndarray) -> dict[str, int]:
    """Source -> chosen rows, all sources named, in order of first appearance."""
    found = dict.fromkeys(sources, 0)
    for source, chosen in zip(sources, chosen_N.tolist(), strict=True):
        found[source] += bool(chosen)
    return found
