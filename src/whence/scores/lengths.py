"""Squared lengths of gradients, one number per row: the sum over layers that several visitors take in their own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.gradients.ranks import Ranks
from whence.gradients.source import Closed
from whence.linalg.matrix_batch import MatrixBatch


@dataclass
class Lengths(ABC):
    """A visitor that keeps one number per row, made of the squared lengths of its layers; NaN where not finite.

    Attributes:
        values: row id -> number.
    """

    values: dict[str, float] = field(default_factory=dict, kw_only=True)
    _total_B: Tensor | None = field(default=None, init=False)

    @abstractmethod
    def measured(self, layer: str, grads: MatrixBatch) -> MatrixBatch:
        """What is measured of a layer's B gradients."""

    def told(self, total_B: Tensor) -> Tensor:
        """B numbers from the B sums over layers: the sums."""
        return total_B

    def see(self, layer: str, grads: MatrixBatch) -> None:
        squared_B = self.measured(layer, grads).squared_norm()
        self._total_B = squared_B if self._total_B is None else self._total_B + squared_B

    def close(self, closed: Closed) -> None:
        assert self._total_B is not None
        total = torch.where(closed.finite, self.told(self._total_B).cpu().double(), torch.nan)
        self.values.update(zip(closed.ids, total.tolist(), strict=True))
        self._total_B = None

    def share(self, ranks: Ranks) -> None:
        """Take in the values of the rows that other ranks saw."""
        self.values = ranks.merged(self.values)


@dataclass
class SquaredNorms(Lengths):
    """The visitor of |g|², of the gradients as they come."""

    def measured(self, layer: str, grads: MatrixBatch) -> MatrixBatch:
        return grads
