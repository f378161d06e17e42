"""Gradients kept in memory: what only looks at gradients then costs no passes through the model of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from whence.gradients.layers import Layers
from whence.gradients.source import Closed, Labels, LiveGradients, Visitor
from whence.linalg.matrix_batch import Full
from whence.scores.score import Queries, collect


@dataclass(frozen=True)
class Kept:
    """A source that shows formed gradients of rows again, with their true labels only."""

    layers: Layers
    grads: Queries
    size: int = 64

    @property
    def ids(self) -> tuple[str, ...]:
        return self.grads.ids

    @property
    def n_batches(self) -> int:
        return -(-len(self.ids) // self.size)

    def _rows(self, number: int) -> slice:
        return slice(number * self.size, min((number + 1) * self.size, len(self.ids)))

    def batch_size(self, number: int) -> int:
        return len(self.ids[self._rows(number)])

    def shuffled(self, seed: int) -> list[int]:
        return np.random.default_rng(seed).permutation(self.n_batches).tolist()

    def visit(
        self, visitor: Visitor, *, labels: Labels = "true", seed: int = 0, batches: Iterable[int] | None = None
    ) -> None:
        assert labels == "true", "gradients of other labels were not kept"
        for number in range(self.n_batches) if batches is None else batches:
            rows = self._rows(number)
            for layer, grads in self.grads.grads.items():
                visitor.see(layer, grads.rows(rows.start, rows.stop))
            losses = torch.from_numpy(self.grads.measurements[rows])
            visitor.close(Closed(self.ids[rows], losses, torch.isfinite(losses)))


def kept(source: LiveGradients) -> Kept:
    """One pass; everything formed."""
    found = collect(source, "true")
    formed = {name: Full(grads.full()) for name, grads in found.grads.items()}
    return Kept(source.layers, Queries(found.ids, formed, found.measurements))
