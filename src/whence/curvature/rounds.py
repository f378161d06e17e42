"""A fit in pieces that can be made by different processes, at different times, and put together to the same bits.

Each stage's rows are divided into *units*, each with sums of its own, and the units into *rounds*. After a round its
units are added, in their order, to what the rounds before came to. The division depends on the batch plan and the
settings only, never on who computes: that is why a resumed fit, or one on four ranks, is the undisturbed one.

With ``rows="auto"`` a round ends where ``fit`` looks at its two halves, and each half is a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whence.curvature.base import LayerTensors, Stage, Sums
from whence.curvature.fit import Accumulate, FitOptions, looks, wanted_batches
from whence.gradients.backoff import Pass, Splits
from whence.gradients.source import GradientSource, LiveGradients

PER_ROUND = 8  # units whose sums lie side by side until they are added
MOST_UNITS, FEWEST_UNITS = 64, 4
SUMS_BYTES = 32_000_000_000  # sums of large models are written less often


@dataclass(frozen=True)
class Unit:
    """Batches whose sums are kept apart.

    Attributes:
        half: 0 or 1, where halves are compared; else 0.
        batches: batch numbers, in this order.
    """

    half: int
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Round:
    """Units that are added together.

    Attributes:
        units: in the order of addition.
        judged: whether the fit may end after it.
    """

    units: tuple[Unit, ...]
    judged: bool = False


def rounds(source: GradientSource, options: FitOptions, *, sums_bytes: int, judged: bool) -> list[Round]:
    """The division of one stage.

    Args:
        source: the rows.
        options: how many of them, in which order.
        sums_bytes: of one set of sums.
        judged: whether halves are compared (``rows="auto"`` with something to judge by).
    """
    if judged:
        return _judged_rounds(source.shuffled(options.seed))
    batches = wanted_batches(source, options)
    most = max(FEWEST_UNITS, min(MOST_UNITS, SUMS_BYTES // max(1, sums_bytes)))
    units = [Unit(0, tuple(part)) for part in _even_parts(batches, min(most, len(batches)))]
    return [Round(tuple(units[n : n + PER_ROUND])) for n in range(0, len(units), PER_ROUND)]


def _judged_rounds(order: list[int]) -> list[Round]:
    found, done = [], 0
    for stop in looks(len(order)):
        halves = (tuple(order[i] for i in range(done, stop) if i % 2 == half) for half in (0, 1))
        units = tuple(Unit(half, batches) for half, batches in enumerate(halves) if batches)
        found.append(Round(units, judged=stop < len(order)))  # at the end there is nothing left to decide
        done = stop
    return [each for each in found if each.units]


def _even_parts(numbers: Sequence[int], count: int) -> list[Sequence[int]]:
    return [numbers[len(numbers) * n // count : len(numbers) * (n + 1) // count] for n in range(count)]


def unit_sums(
    source: LiveGradients, stage: Stage, tensors: LayerTensors, *, unit: Unit, options: FitOptions, splits: Splits
) -> Sums:
    """The sums over the rows of one unit; ``options.seed`` is that of the stage."""
    one = Pass(
        source,
        lambda: Accumulate(stage, tensors, Sums()),
        labels="sampled" if options.fisher == "sampled" else "true",
        seed=options.seed,
    )
    return one.over(unit.batches, splits).sums
