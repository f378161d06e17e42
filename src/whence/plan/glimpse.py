"""A few batches of the rows, each timed: the source that a rehearsal is fed with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from whence.gradients.layers import Layers
from whence.gradients.source import GradientSource, Labels, Visitor
from whence.plan.meter import Meter


@dataclass(frozen=True)
class Timed:
    """One batch that was visited."""

    number: int
    seconds: float
    cpu_seconds: float


@dataclass
class Glimpse:
    """A source that shows the first batches of every random order, and last the batch that takes most memory.

    A fit that is fed with it sees the very batches, in the very order, with which the real fit begins.

    Attributes:
        inner: all rows.
        count: batches shown of an order.
        meter: measures each batch.
        chosen: batches shown to a visitor who does not say which; None = all.
        timed: batches visited so far; whoever reads them takes them away.
    """

    inner: GradientSource
    count: int
    meter: Meter
    chosen: Sequence[int] | None = None
    timed: list[Timed] = field(default_factory=list)

    @property
    def layers(self) -> Layers:
        return self.inner.layers

    @property
    def ids(self) -> tuple[str, ...]:
        return self.inner.ids

    @property
    def n_batches(self) -> int:
        return self.inner.n_batches

    def batch_size(self, number: int) -> int:
        return self.inner.batch_size(number)

    def shuffled(self, seed: int) -> list[int]:
        order = self.inner.shuffled(seed)[: self.count]
        return order if 0 in order else [*order, 0]  # batches are planned longest first

    def visit(
        self, visitor: Visitor, *, labels: Labels = "true", seed: int = 0, batches: Iterable[int] | None = None
    ) -> None:
        everyone = range(self.n_batches) if self.chosen is None else self.chosen
        for number in everyone if batches is None else batches:
            with self.meter.timing() as found:
                self.inner.visit(visitor, labels=labels, seed=seed, batches=[number])
            self.timed.append(Timed(number, found.seconds, found.cpu_seconds))

    def with_progress(self, _progress: object) -> Glimpse:
        """Itself: a glimpse is over before anyone asks."""
        return self

    def taken(self) -> list[Timed]:
        """The batches visited since the last call."""
        found, self.timed = self.timed, []
        return found


def spread(batches: int, count: int) -> list[int]:
    """``count`` batch numbers over the whole plan, from the longest rows to the shortest, the ends first."""
    if count >= batches:
        return list(range(batches))
    even = [round(i * (batches - 1) / max(1, count - 1)) for i in range(count)]
    return list(dict.fromkeys([even[0], even[-1], *even[1:-1]]))


def batch_tokens(plan_batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(rows, longest row) of every batch."""
    return [(len(batch), max((lengths[i] for i in batch), default=0)) for batch in plan_batches]
