"""The Fisher matrix of fixed rows: its products, and the rows of per-example gradients that make it.

F = mean over rows of g g', with g from the data's labels (empirical) or from labels drawn from the model (sampled). A
product costs one forward and backward pass and forms no D x D matrix; ``gradient_rows`` keeps the N x D rows, which
the kernel form, DataInf and dense references work on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.errors import ResourceError
from whence.gradients.ranks import Ranks
from whence.gradients.source import Closed, GradientSource, Labels
from whence.linalg.matrix_batch import Full, MatrixBatch
from whence.linalg.packing import Layout

# Bytes of kept gradient rows beyond which the kernel form is the wrong tool.
MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class FisherProducts:
    """A fixed Fisher matrix, known by its products (the counterpart of ``products.Products``).

    Attributes:
        source: where gradients come from.
        labels: ``true`` (empirical Fisher) or ``sampled``.
        seed: of sampled labels.
        batches: numbers of the plan's batches it runs over; None = every row.
    """

    source: GradientSource
    labels: Labels = "true"
    seed: int = 0
    batches: tuple[int, ...] | None = None

    @property
    def layout(self) -> Layout:
        """The order of the layers in a flat vector."""
        return Layout.of(self.source.layers.sizes)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The batch numbers it runs over."""
        return tuple(range(self.source.n_batches)) if self.batches is None else self.batches

    @property
    def rows(self) -> int:
        """How many training rows the matrix averages over."""
        return sum(self.source.batch_size(number) for number in self.numbers)

    @property
    def note(self) -> str:
        """How the products are taken, for people."""
        return f"{'empirical' if self.labels == 'true' else 'sampled'} Fisher of {self.rows} rows"

    def apply(self, x_KD: Tensor) -> Tensor:
        """The matrix times each row of ``x_KD``."""
        visitor = _Multiply(self.layout.unpack(x_KD))
        self.source.visit(visitor, labels=self.labels, seed=self.seed, batches=self.numbers)
        return self.layout.pack(visitor.total) / self.rows

    def on(self, batches: Sequence[int]) -> FisherProducts:
        """The same matrix over other batches of the plan."""
        return FisherProducts(self.source, self.labels, self.seed, tuple(batches))


@dataclass
class _Multiply:
    """Holds one batch's gradients until all layers have been seen: g'x runs over all of them."""

    x: dict[str, Tensor]
    total: dict[str, Tensor] = field(default_factory=dict)
    _held: dict[str, MatrixBatch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total = {name: torch.zeros_like(part) for name, part in self.x.items()}

    def see(self, layer: str, grads: MatrixBatch) -> None:
        self._held[layer] = grads

    def close(self, closed: Closed) -> None:
        inside_BK = sum(grads.dot(Full(self.x[name])) for name, grads in self._held.items())
        assert isinstance(inside_BK, Tensor)
        for name, grads in self._held.items():
            start = 0
            for piece in grads.pieces():
                weights_BK = inside_BK[start : start + len(piece)]
                self.total[name] += (weights_BK.T @ piece.full().flatten(1)).view_as(self.total[name])
                start += len(piece)
        self._held = {}

    def share(self, ranks: Ranks) -> None:
        """Add what other ranks saw."""
        self.total = {name: ranks.total(part) for name, part in self.total.items()}


@dataclass
class _Keep:
    """Keeps every gradient, formed."""

    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        self.parts.setdefault(layer, []).append(grads.full().flatten(1).clone())

    def close(self, closed: Closed) -> None:
        self.ids += closed.ids


def gradient_rows(
    source: GradientSource, *, labels: Labels = "true", seed: int = 0, batches: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Per-example gradients ``{layer: [N, O*I]}``, batch after batch.

    Raises:
        ResourceError: more than ``MOST_BYTES`` of them.
    """
    numbers = range(source.n_batches) if batches is None else batches
    rows = sum(source.batch_size(number) for number in numbers)
    need = 4 * rows * source.layers.parameters
    if need > MOST_BYTES:
        raise ResourceError(
            f"{rows:,} gradients of {source.layers.parameters:,} numbers need {need / 2**30:.1f} GiB",
            wanted=f"at most {MOST_BYTES / 2**30:.0f} GiB of kept gradients",
            try_="fewer rows or layers (an adapter's matrices, say), or a method that keeps none (ekfac, cg)",
        )
    visitor = _Keep()
    source.visit(visitor, labels=labels, seed=seed, batches=numbers)
    return {name: torch.cat(visitor.parts[name]) for name in source.layers.sizes}
