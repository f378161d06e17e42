"""A batch of B matrices of size O x I, and the verbs the field needs of them. The heart of the library.

The gradient of a linear layer for one example is a **sum over its tokens of outer products** of the output gradient g
and the input a. ``Outer`` keeps the pair, ``Full`` holds the matrices. What looks like a feature elsewhere is one
operation here:

=======================================  =====================================================
bias gradient                            a column of ones appended to a
module used k times, tied weights        concatenation along T (a longer sum)
padding                                  zero token rows
per-token attribution                    T moved into the batch axis (``tokens``)
random projection                        ``sided`` by two thin matrices, before anything is formed
row / column normaliser                  ``sided`` by two diagonals
rotation into a Kronecker eigenbasis     ``sided`` by the two eigenvector matrices
K-FAC inverse (factored damping)         ``sided`` by two damped inverses: still an ``Outer``
low-rank query                           an ``Outer`` whose T is the rank
gradient norm                            token Gram product inside ``squared_norm``
K-FAC covariances                        read a and g directly
diagonal Fisher, EK-FAC eigenvalues      ``scaled`` / ``sum_of_squares``: the one step that must form matrices
=======================================  =====================================================

Shape letters: B examples, T tokens, O outputs, I inputs, Q other batch. Nothing here knows a model or a text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Matrices formed at once, in elements: 16M floats = 64 MB. Bounds the memory of every verb that must form them.
FORMED_ELEMENTS = 1 << 24


class MatrixBatch(ABC):
    """B matrices of size O x I. Exactly two finals: ``Outer`` and ``Full``."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(B, O, I)."""

    @abstractmethod
    def sided(self, left_PO: Tensor | None, right_RI: Tensor | None) -> MatrixBatch:
        """Matrix products left · X · rightᵀ for each matrix X; None stands for the identity. Keeps the form."""

    @abstractmethod
    def full(self) -> Tensor:
        """B x O x I tensor."""

    @abstractmethod
    def squared_norm(self) -> Tensor:
        """B squared Frobenius norms."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> MatrixBatch:
        """Matrices start..stop of the batch."""

    @abstractmethod
    def times(self, weights_B: Tensor) -> MatrixBatch:
        """Each matrix multiplied by its own number."""

    def __len__(self) -> int:
        return self.shape[0]

    def scaled(self, weights_OI: Tensor) -> Full:
        """Elementwise product with one O x I matrix; like those of ``sided`` it may be in another memory."""
        return Full(self.full() * weights_OI.to(self.device))

    def dot(self, other: MatrixBatch) -> Tensor:
        """B x Q Frobenius inner products with every matrix of the other batch."""
        (_, outputs, inputs), (_, outputs_q, inputs_q) = self.shape, other.shape
        assert (outputs, inputs) == (outputs_q, inputs_q), (self.shape, other.shape)
        if isinstance(self, Outer) and isinstance(other, Outer) and _gram_is_cheaper(self, other):
            return _gram_dot(self, other)
        # The side that is cheap to form (or formed already) is formed once, the other in bounded pieces.
        if isinstance(other, Outer) and len(other) > len(self):
            return other.dot(self).T
        other_flat = other.full().flatten(1).T  # [O*I, Q]
        return torch.cat([piece.full().flatten(1) @ other_flat for piece in self.pieces()])

    def sum_of_squares(self) -> Tensor:
        """O x I: the squares of the entries, summed over the batch."""
        _, outputs, inputs = self.shape
        total = torch.zeros(outputs, inputs, dtype=self.dtype, device=self.device)
        for piece in self.pieces():
            for matrix in piece.full():  # one fused multiply-add in cache each; a reduction over B sweeps memory twice
                total.addcmul_(matrix, matrix)
        return total

    def pieces(self) -> Iterator[MatrixBatch]:
        """The batch cut so that forming one piece stays within ``FORMED_ELEMENTS``."""
        batch, outputs, inputs = self.shape
        step = max(1, FORMED_ELEMENTS // max(1, outputs * inputs))
        if step >= batch:
            yield self
            return
        for start in range(0, batch, step):
            yield self.rows(start, min(batch, start + step))

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @property
    @abstractmethod
    def device(self) -> torch.device: ...


@dataclass(frozen=True, eq=False)
class Full(MatrixBatch):
    """The matrices themselves, B x O x I."""

    x_BOI: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, outputs, inputs = self.x_BOI.shape
        return batch, outputs, inputs

    @property
    def dtype(self) -> torch.dtype:
        return self.x_BOI.dtype

    @property
    def device(self) -> torch.device:
        return self.x_BOI.device

    def sided(self, left_PO: Tensor | None, right_RI: Tensor | None) -> Full:
        x = self.x_BOI
        if right_RI is not None:
            x = x @ right_RI.to(x.device).T
        if left_PO is not None:
            x = left_PO.to(x.device) @ x
        return Full(x)

    def full(self) -> Tensor:
        return self.x_BOI

    def squared_norm(self) -> Tensor:
        return self.x_BOI.flatten(1).square().sum(1)

    def rows(self, start: int, stop: int) -> Full:
        return Full(self.x_BOI[start:stop])

    def times(self, weights_B: Tensor) -> Full:
        return Full(self.x_BOI * weights_B[:, None, None])


@dataclass(frozen=True, eq=False)
class Outer(MatrixBatch):
    """Sums over T tokens of outer products: X_b = Σ_t g_bt a_btᵀ.

    Attributes:
        g_BTO: output gradients, zero at padding.
        a_BTI: inputs (with a last column of ones where the layer has a bias), zero at padding.
        positions: how many of the B*T token rows are real (not padding); None means all.
    """

    g_BTO: Tensor
    a_BTI: Tensor
    positions: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.g_BTO.shape[0], self.g_BTO.shape[2], self.a_BTI.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.g_BTO.dtype

    @property
    def device(self) -> torch.device:
        return self.g_BTO.device

    @property
    def count(self) -> int:
        """Real token rows in the whole batch."""
        return self.g_BTO.shape[0] * self.g_BTO.shape[1] if self.positions is None else self.positions

    def sided(self, left_PO: Tensor | None, right_RI: Tensor | None) -> Outer:
        g = self.g_BTO if left_PO is None else self.g_BTO @ left_PO.to(self.device).T
        a = self.a_BTI if right_RI is None else self.a_BTI @ right_RI.to(self.device).T
        return Outer(g, a, self.positions)

    def full(self) -> Tensor:
        return self.g_BTO.transpose(1, 2) @ self.a_BTI

    def scaled(self, weights_OI: Tensor) -> Full:
        formed, weights_OI = (
            self.full(),
            weights_OI.to(self.device),
        )
        # formed is ours alone: no need for a second tensor of its size
        return Full(formed.mul_(weights_OI) if weights_OI.dtype == formed.dtype else formed * weights_OI)

    def squared_norm(self) -> Tensor:
        tokens = self.g_BTO.shape[1]
        _, outputs, inputs = self.shape
        if tokens * (outputs + inputs) < outputs * inputs:  # T²(O+I) against T·O·I multiplications
            gram_g = self.g_BTO @ self.g_BTO.transpose(1, 2)  # [B, T, T]
            return (gram_g * (self.a_BTI @ self.a_BTI.transpose(1, 2))).sum((1, 2))
        return torch.cat([piece.full().flatten(1).square().sum(1) for piece in self.pieces()])

    def rows(self, start: int, stop: int) -> Outer:
        return Outer(self.g_BTO[start:stop], self.a_BTI[start:stop])

    def times(self, weights_B: Tensor) -> Outer:
        return Outer(self.g_BTO * weights_B[:, None, None], self.a_BTI, self.positions)

    def tokens(self) -> Outer:
        """B*T one-token matrices whose sum over T is this batch: per-token attribution."""
        return Outer(self.g_BTO.flatten(0, 1)[:, None], self.a_BTI.flatten(0, 1)[:, None])

    def dot_by_token(self, other: MatrixBatch) -> Tensor:
        """B x T x Q inner products of each token's outer product; summed over T they are ``dot``.

        The same as ``tokens().dot(other)``, without forming B*T matrices: g_t' Y a_t costs one product with Y.
        """
        return torch.stack([((self.g_BTO @ y_OI) * self.a_BTI).sum(-1) for y_OI in other.full()], dim=-1)


def concat_tokens(parts: list[Outer]) -> Outer:
    """One batch whose token sums run over all parts: a module used several times, or tied weights."""
    if len(parts) == 1:
        return parts[0]
    return Outer(
        torch.cat([p.g_BTO for p in parts], dim=1),
        torch.cat([p.a_BTI for p in parts], dim=1),
        sum(p.count for p in parts),
    )


def concat_rows(parts: list[MatrixBatch]) -> MatrixBatch:
    """The matrices of several batches, formed, as one batch."""
    return parts[0] if len(parts) == 1 else Full(torch.cat([p.full() for p in parts]))


def _gram_is_cheaper(left: Outer, right: Outer) -> bool:
    """The cost rule, in one place: multiplications of the token Gram product against forming both sides."""
    batch, outputs, inputs = left.shape
    queries = len(right)
    t, s = left.g_BTO.shape[1], right.g_BTO.shape[1]
    gram = batch * t * queries * s * (outputs + inputs + 1)
    formed = (batch * t + queries * s + batch * queries) * outputs * inputs
    # The two token Gram tensors of one query must also fit the same bound as formed matrices do.
    return gram < formed and batch * t * s <= FORMED_ELEMENTS


def _gram_dot(left: Outer, right: Outer) -> Tensor:
    """Σ_ts (g_bt·g_qs)(a_bt·a_qs): inner products without forming any O x I matrix, as many queries as fit at once."""
    batch, t, s = len(left), left.g_BTO.shape[1], right.g_BTO.shape[1]
    step = max(1, FORMED_ELEMENTS // max(1, batch * t * s))
    blocks = []
    for start in range(0, len(right), step):
        some = right if step >= len(right) else right.rows(start, start + step)
        gram = left.g_BTO.flatten(0, 1) @ some.g_BTO.flatten(0, 1).T  # [B*T, Q*S]
        gram *= left.a_BTI.flatten(0, 1) @ some.a_BTI.flatten(0, 1).T
        blocks.append(gram.view(batch, t, len(some), s).sum((1, 3)))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
