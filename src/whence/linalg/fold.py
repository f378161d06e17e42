"""Long rows folded into short ones whose inner products are nearly the same, in time that the numbers kept take.

Every number goes to one place with a random sign (the count sketch of Charikar, Chen and Farach-Colton 2002, as a map
of vectors in Weinberger et al. 2009, "feature hashing"): the inner product of two folded rows is that of the rows on
average, with a variance of at most 2 |x|^2 |y|^2 / M. A Hadamard transform then spreads each row evenly over its M
numbers, as codes of one bit per number need it. Rows of at most M numbers are only spread: nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from whence.linalg import draws
from whence.linalg.codes.base import Code, sliced
from whence.linalg.codes.sparse import Sparse

MOST = 1 << 14  # numbers of a folded row: 2 KB at one bit each
LEAST = 64
AT_ONCE = 1 << 22  # numbers of a block of rows written out while it is folded


@dataclass(frozen=True)
class Fold:
    """How rows of D numbers become rows of M.

    Attributes:
        total: D.
        size: M, a power of 2.
    """

    total: int
    size: int

    @cached_property
    def places(self) -> Tensor:
        """D places; each number's own where there is room for all."""
        if self.total <= self.size:
            return torch.arange(self.total)
        words = draws.raw_words(self.total, "fold", self.total, self.size)
        return torch.from_numpy((words % np.uint64(self.size)).astype(np.int64))

    @cached_property
    def signs(self) -> Tensor:
        """D signs."""
        return torch.from_numpy(draws.signs(1, self.total, "fold signs", self.total, self.size)[0]).float()

    def dense(self, x_BD: Tensor) -> Tensor:
        """B x M of whole rows."""
        signed = x_BD.float() * self.signs
        return spread(torch.zeros(len(x_BD), self.size).index_add_(1, self.places, signed))

    def coded(self, code: Code, record: Mapping[str, Tensor]) -> Tensor:
        """B x M of coded rows."""
        kept = code.slots if isinstance(code, Sparse) else self.total
        blocks = sliced(record, max(1, AT_ONCE // max(kept, self.size)))
        return torch.cat([torch.zeros(0, self.size), *(self._folded(code, block) for block in blocks)])

    def _folded(self, code: Code, record: Mapping[str, Tensor]) -> Tensor:
        if not isinstance(code, Sparse):
            return self.dense(code.restored(record))
        at, values = code.entries(record)
        return spread(torch.zeros(len(at), self.size).scatter_add_(1, self.places[at], values * self.signs[at]))


def fold_of(total: int) -> Fold:
    """The fold of rows with ``total`` numbers: without loss up to ``MOST`` of them."""
    size = LEAST
    while size < min(total, MOST):
        size *= 2
    return Fold(total, size)


def spread(x_BM: Tensor) -> Tensor:
    """The orthonormal Hadamard transform of every row; M is a power of 2.

    The transform of M = A B numbers is one over the rows and one over the columns of an A x B matrix.
    """
    power = (x_BM.shape[1] - 1).bit_length()
    left, right = hadamard(power // 2).to(x_BM), hadamard(power - power // 2).to(x_BM)
    return (left @ x_BM.view(-1, len(left), len(right)) @ right).flatten(1)


def hadamard(power: int) -> Tensor:
    """The symmetric orthonormal Hadamard matrix with 2**power rows (Sylvester), float64."""
    found = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(power):
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)]) / 2**0.5
    return found
