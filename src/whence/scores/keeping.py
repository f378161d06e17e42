"""A pass over the rows whose finished blocks are kept: a process that has to begin again goes on behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from whence.gradients.source import Closed, GradientSource, Visitor
from whence.linalg.matrix_batch import MatrixBatch
from whence.scores.score import Pairwise, Together

Arrays = Mapping[str, np.ndarray]
SINK = "sink."  # names of what the sink said of its rows


class Blocks(Protocol):
    """Someone who keeps blocks of a pass, and knows those of an earlier process."""

    def block(self, number: int) -> tuple[Arrays, int] | None:
        """A block, and how many batches of the pass are over with it; None = that one is not there."""
        ...

    def due(self) -> bool:
        """Is it time for a block?"""
        ...

    def keep(self, number: int, arrays: Arrays, batches: int) -> None:
        """A block was finished."""
        ...


@dataclass
class Pass:
    """One pass that scores, with what else looks at it.

    Attributes:
        scoring: scores and losses.
        lengths: name -> row id -> number, as its visitor fills it.
        visitors: everyone who looks, ``scoring`` among them.
    """

    scoring: Pairwise
    lengths: Mapping[str, dict[str, float]]
    visitors: Sequence[Visitor]

    def over(self, source: GradientSource, blocks: Blocks | None = None) -> None:
        """All rows of the source, those that blocks hold without computing them again."""
        if blocks is None:
            source.visit(Together(self.visitors))
            return
        number, batches = self._taken(source, blocks)
        keeping = _Keeping(self, blocks, number, batches)
        source.visit(Together([*self.visitors, keeping]), batches=range(batches, source.n_batches))

    def arrays(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """What is known of these rows, and of the sink so far."""
        sink = self.scoring.sink
        found: dict[str, np.ndarray] = {"column": np.array([sink.columns[id_] for id_ in ids], dtype=np.int64)}
        found["loss"] = np.array([self.scoring.losses[id_] for id_ in ids], dtype=np.float64)
        found |= {name: np.array([values[id_] for id_ in ids]) for name, values in self.lengths.items()}
        return found | {f"{SINK}{name}": array for name, array in sink.kept(ids).items()}

    def _taken(self, source: GradientSource, blocks: Blocks) -> tuple[int, int]:
        """What blocks there are put in place; how many, and how many batches they are."""
        number, batches, names = 0, 0, list(self.scoring.sink.columns)
        while batches < source.n_batches and (found := blocks.block(number)) is not None:
            arrays, over = found
            ids = [names[n] for n in arrays["column"].tolist()]
            if len(ids) != sum(source.batch_size(n) for n in range(batches, over)):
                break  # not the neighbour of the block before
            self.scoring.losses.update(zip(ids, arrays["loss"].tolist(), strict=True))
            for name, values in self.lengths.items():
                values.update(zip(ids, arrays[name].tolist(), strict=True))
            said = {n.removeprefix(SINK): a for n, a in arrays.items() if n.startswith(SINK)}
            self.scoring.sink.take(ids, said)
            number, batches = number + 1, over
        return number, batches


@dataclass
class _Keeping:
    """The last visitor of a batch: everyone else has closed it."""

    whole: Pass
    blocks: Blocks
    number: int
    batches: int
    ids: list[str] = field(default_factory=list)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        """The others look."""

    def close(self, closed: Closed) -> None:
        self.batches += 1
        self.ids += closed.ids
        if self.blocks.due():
            self.blocks.keep(self.number, self.whole.arrays(self.ids), self.batches)
            self.number, self.ids = self.number + 1, []
