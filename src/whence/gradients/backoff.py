"""When a batch does not fit in memory: that batch in halves, and no other.

The plan stays what it is. A pass over some batches starts again without the half-made sums, with the batch that failed
in two parts; what was learned is remembered, so that the next pass does not fail again. A row that does not fit alone
is given up. Which rows are together changes their numbers within rounding only; every process decides for itself.

Ranks that share a model (FSDP2) cannot start again in the middle of a batch: they write down what they have learned and
end, and the next start goes on with it.

(accelerate's ``find_executable_batch_size`` shrinks every batch of every process instead.)
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from whence import faults
from whence.errors import ResourceError, out_of_memory
from whence.gradients.ranks import Share, share_of
from whence.gradients.source import Closed, GradientSource, Labels, LiveGradients, Visitor
from whence.linalg.matrix_batch import MatrixBatch

MOST_LOST = 0.05  # share of the rows that may be too large before something else is the matter
V = TypeVar("V", bound=Visitor)
Part = tuple[int, tuple[int, ...]]  # number of a batch, and positions of some of its rows


@dataclass
class Splits:
    """What is known about batches that did not fit.

    Attributes:
        sizes: batch number -> rows in each of its parts.
        too_large: ids of rows that do not fit alone.
        record: told (name, facts) of everything learned, to be kept.
    """

    sizes: dict[int, list[int]] = field(default_factory=dict)
    too_large: set[str] = field(default_factory=set)
    record: Callable[[str, Mapping[str, Any]], None] = lambda _name, _facts: None

    def parts(self, source: LiveGradients, batches: Iterable[int]) -> list[Part]:
        """What to compute for these batches."""
        found: list[Part] = []
        for number in batches:
            rows, start = source.plan.batches[number], 0
            for size in self.sizes.get(number, [len(rows)]):
                kept = [i for i in rows[start : start + size] if source.examples[i].id not in self.too_large]
                start += size
                if kept:
                    found.append((number, tuple(kept)))
        return found

    def learn(self, source: LiveGradients, part: Part) -> None:
        """This part did not fit.

        Raises:
            ResourceError: too many rows that do not fit alone.
        """
        number, rows = part
        if len(rows) == 1:
            self.give_up(source, rows[0])
            return
        whole, halved = source.plan.batches[number], []
        start = 0
        for size in self.sizes.get(number, [len(whole)]):
            hit = rows[0] in whole[start : start + size]
            halved += [(size + 1) // 2, size // 2] if hit and size > 1 else [size]
            start += size
        self.sizes[number] = halved
        self.record(f"split {number}", {"batch": number, "parts": halved})

    def give_up(self, source: LiveGradients, position: int) -> None:
        """A row that does not fit alone."""
        example = source.examples[position]
        self.too_large.add(example.id)
        self.record(f"too_large {example.id}", {"row": example.id, "tokens": example.length})
        if len(self.too_large) > MOST_LOST * len(source.examples):
            raise ResourceError(
                f"{len(self.too_large)} rows do not fit in memory, even alone (the last has {example.length} tokens)",
                wanted="memory for the model, the factors and one row",
                try_="--max-length, --layers with fewer layers, or --method diagonal",
            )


@dataclass(frozen=True)
class Pass(Generic[V]):
    """One pass over some batches.

    Attributes:
        source: the rows.
        visitor: makes a visitor that has seen nothing.
        seen_as: the source as the visitor should see it (transformed).
        labels, seed: as in ``LiveGradients.visit``.
    """

    source: LiveGradients
    visitor: Callable[[], V]
    seen_as: Callable[[LiveGradients], GradientSource] = lambda source: source
    labels: Labels = "true"
    seed: int = 0

    def over(self, batches: Iterable[int], splits: Splits) -> V:
        """The visitor after these batches, whatever had to be split.

        Raises:
            ResourceError: too many rows that do not fit alone; or any batch that does not fit, among ranks.
        """
        numbers = list(batches)
        while True:
            parts = splits.parts(self.source, numbers)
            found, done = self._attempt(parts)
            if found is not None:
                return found
            # Here, outside the handler, the traceback no longer holds the tensors of the batch.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if done < len(parts):
                splits.learn(self.source, parts[done])
            if self.source.ranks is not None:
                raise ResourceError(
                    "a batch does not fit in memory",
                    wanted="memory for the largest block of the model, one batch of activations and the factors",
                    try_="the same command again: it goes on, with that batch in halves",
                )

    def _attempt(self, parts: list[Part]) -> tuple[V | None, int]:
        """The visitor, or None and the place of the part that did not fit."""
        visitor = self.visitor()
        mine = self._mine(visitor, len(parts))
        watched = _Watched(visitor, [parts[n][0] for n in mine])
        source = self.source.regrouped([rows for _, rows in parts]) if parts else self.source
        try:
            self.seen_as(source).visit(watched, labels=self.labels, seed=self.seed, batches=range(len(parts)))
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None, (*mine, len(parts))[watched.done]
        return watched.visitor, len(parts)

    def _mine(self, visitor: V, parts: int) -> range:
        """Which parts this process sees."""
        ranks = self.source.ranks
        divided = ranks is not None and not self.source.abreast and share_of(visitor) is not None
        return range(ranks.rank, parts, ranks.world) if ranks is not None and divided else range(parts)


@dataclass
class _Watched(Generic[V]):
    """Counts the parts that are finished."""

    visitor: V
    numbers: list[int]
    done: int = 0

    @property
    def share(self) -> Share | None:
        """As the visitor that is watched shares."""
        return share_of(self.visitor)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        faults.batch(self.numbers[self.done])
        self.visitor.see(layer, grads)

    def close(self, closed: Closed) -> None:
        self.visitor.close(closed)
        self.done += 1
