"""From a few batches to all of them: how time grows with rows, and when a fit will have seen enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whence.plan.glimpse import Timed

LAST_LOOKS = 4  # looks whose trend is drawn on: early ones are not yet on it
SLOPES = (0.5, 1.5)  # of log disagreement against log rows; errors of independent rows fall with 1


@dataclass(frozen=True)
class Cost:
    """Wall clock and CPU seconds."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def times(self, factor: float) -> Cost:
        """This many of it."""
        return Cost(self.seconds * factor, self.cpu_seconds * factor)

    def without(self, other: Cost) -> Cost:
        """What is left of it, never less than nothing."""
        return Cost(max(0.0, self.seconds - other.seconds), max(0.0, self.cpu_seconds - other.cpu_seconds))


def all_batches(timed: Sequence[Timed], sizes: Sequence[tuple[int, int]]) -> list[Cost]:
    """The cost of every batch, from that of a few.

    Seconds per padded token depend on the longest row (attention) and little else, so they are drawn through the
    batches seen and read off at every batch's longest row.

    Args:
        timed: batches seen; a batch may be there several times.
        sizes: (rows, longest row) of every batch.
    """
    if not timed:
        return [Cost() for _ in sizes]
    rates: dict[int, list[tuple[float, float]]] = {}
    for batch in timed:
        rows, longest = sizes[batch.number]
        tokens = max(1, rows * longest)
        rates.setdefault(longest, []).append((batch.seconds / tokens, batch.cpu_seconds / tokens))
    widths = sorted(rates)
    wall, cpu = ([float(np.median([pair[k] for pair in rates[w]])) for w in widths] for k in (0, 1))
    wanted = [longest for _, longest in sizes]
    tokens = [max(1, rows * longest) for rows, longest in sizes]
    walls, cpus = np.interp(wanted, widths, wall), np.interp(wanted, widths, cpu)
    return [Cost(float(w) * n, float(c) * n) for w, c, n in zip(walls, cpus, tokens, strict=True)]


def total(costs: Sequence[Cost]) -> Cost:
    """Their sum."""
    return Cost(math.fsum(c.seconds for c in costs), math.fsum(c.cpu_seconds for c in costs))


def rows_needed(trail: Sequence[Mapping[str, float]], agreement: float, most: int) -> tuple[int, bool]:
    """Rows at which a split-half check will be satisfied, and whether it already was.

    The disagreement 1 - cosine of two halves falls as a power of the rows: a line in logarithms, drawn through the last
    looks and followed to where it crosses 1 - ``agreement``.

    Args:
        trail: what the looks so far said: ``rows`` and ``predicted`` agreement.
        agreement: where the fit stops.
        most: rows there are.
    """
    if not trail:
        return most, False
    for look in trail:
        if look["predicted"] >= agreement:
            return min(int(look["rows"]), most), True
    looks = [look for look in trail[-LAST_LOOKS:] if 0 < look["predicted"] < 1]
    if not looks:
        return most, False
    x, y = (np.log([f(look) for look in looks]) for f in (lambda k: k["rows"], lambda k: 1 - k["predicted"]))
    slope = -float(np.polyfit(x, y, 1)[0]) if len(looks) > 1 else 1.0
    slope = min(max(slope, SLOPES[0]), SLOPES[1])
    ahead = (float(np.mean(y)) - math.log(1 - agreement)) / slope + float(np.mean(x))
    return (most, False) if ahead >= math.log(most) else (max(1, math.ceil(math.exp(ahead))), False)


def batches_for(rows: int, order: Sequence[int], sizes: Sequence[tuple[int, int]], looks: Sequence[int]) -> int:
    """Batches of an order that hold this many rows, rounded up to the next look (no looks: exactly)."""
    held = np.cumsum([sizes[number][0] for number in order])
    count = min(len(order), int(np.searchsorted(held, rows)) + 1)
    return next((stop for stop in looks if stop >= count), count)
