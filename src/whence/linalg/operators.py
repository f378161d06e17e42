"""Symmetric operators on gradients, layer by layer. The inverse of an operator is an operator.

A ``LayerOperator`` acts on the O x I matrices of one layer; ``Blocks`` puts one on each layer and is what most of the
library holds. Damping is an argument of ``power``: re-damping never refits.

Row-major convention: ``dense()`` acts on ``X.reshape(O*I)``, so a Kronecker pair is ``kron(left, right)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from whence.errors import CurvatureError
from whence.linalg.damping import Damping
from whence.linalg.eigen import eigh
from whence.linalg.matrix_batch import Full, MatrixBatch

Gradients = Mapping[str, MatrixBatch]


@runtime_checkable
class LayerOperator(Protocol):
    """A symmetric positive semi-definite matrix over the entries of one layer."""

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        """The operator times each matrix of the batch."""
        ...

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        """Coordinates in which a plain dot product is this operator: x and y then have the product ⟨x, apply(y)⟩."""
        ...

    def power(self, exponent: float, damping: Damping) -> LayerOperator:
        """Power of the damped operator, (self + damping) ** exponent; -1 is the damped inverse."""
        ...

    def dense(self) -> Tensor:
        """The O*I x O*I matrix, row-major; for tests and tiny layers."""
        ...


@runtime_checkable
class Operator(Protocol):
    """A symmetric matrix over all layers together."""

    def apply(self, x: Gradients) -> dict[str, MatrixBatch]: ...

    def power(self, exponent: float, damping: Damping) -> Operator: ...


@dataclass(frozen=True)
class Identity:
    """The identity; its powers ignore damping, so that ``identity`` is the plain gradient dot product."""

    outputs: int
    inputs: int

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        return x

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        return x

    def power(self, exponent: float, damping: Damping) -> Identity:
        return self

    def dense(self) -> Tensor:
        return torch.eye(self.outputs * self.inputs)


@dataclass(frozen=True, eq=False)
class Diagonal:
    """One number per entry of the layer."""

    diagonal_OI: Tensor

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        return x.scaled(self.diagonal_OI)

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        return x.scaled(self.diagonal_OI.sqrt())

    def power(self, exponent: float, damping: Damping) -> Diagonal:
        return Diagonal(damping.shift(self.diagonal_OI).pow(exponent))

    def dense(self) -> Tensor:
        return torch.diag(self.diagonal_OI.flatten())


@dataclass(frozen=True, eq=False)
class Kronecker:
    """left ⊗ right: X -> left · X · right. Keeps outer products outer."""

    left_OO: Tensor
    right_II: Tensor

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        return x.sided(self.left_OO, self.right_II)

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        return x.sided(matrix_power(self.left_OO, 0.5), matrix_power(self.right_II, 0.5))

    def power(self, exponent: float, damping: Damping) -> LayerOperator:
        """Factored damping keeps the Kronecker form; the others need the eigenvalues of the product."""
        if damping.kind == "factored" and exponent == -1:
            root = damping.value**0.5
            return Kronecker(_shifted_inverse(self.left_OO, root), _shifted_inverse(self.right_II, root))
        return self.eigen().power(exponent, damping)

    def eigen(self) -> Eigenbasis:
        """The same operator in its eigenbasis."""
        (lam_O, q_OO), (lam_I, q_II) = eigh(self.left_OO), eigh(self.right_II)
        return Eigenbasis(q_OO, q_II, torch.outer(lam_O, lam_I))

    def dense(self) -> Tensor:
        return torch.kron(self.left_OO.contiguous(), self.right_II.contiguous())


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """left_OO and right_II hold eigenvectors in *columns* (as eigh returns them); one eigenvalue per entry.

    X -> left [ (leftᵀ X right) ∘ eigenvalues ] rightᵀ. EK-FAC: George et al. 2018; Grosse et al. 2023, eq. 20.
    """

    left_OO: Tensor
    right_II: Tensor
    eigenvalues_OI: Tensor

    def rotate(self, x: MatrixBatch) -> MatrixBatch:
        """leftᵀ X right: the coordinates of X in the eigenbasis."""
        return x.sided(self.left_OO.T, self.right_II.T)

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        return self.rotate(x).scaled(self.eigenvalues_OI).sided(self.left_OO, self.right_II)

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        return self.rotate(x).scaled(self.eigenvalues_OI.sqrt())

    def power(self, exponent: float, damping: Damping) -> Eigenbasis:
        return Eigenbasis(self.left_OO, self.right_II, damping.shift(self.eigenvalues_OI).pow(exponent))

    def dense(self) -> Tensor:
        basis = torch.kron(self.left_OO.contiguous(), self.right_II.contiguous())
        return basis @ torch.diag(self.eigenvalues_OI.flatten()) @ basis.T


@dataclass(frozen=True, eq=False)
class Dense:
    """An explicit O*I x O*I matrix, row-major; the truth for small layers."""

    matrix: Tensor
    outputs: int
    inputs: int

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        flat = x.full().flatten(1) @ self.matrix.T
        return Full(flat.view(-1, self.outputs, self.inputs))

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        flat = x.full().flatten(1) @ matrix_power(self.matrix, 0.5)
        return Full(flat.view(-1, self.outputs, self.inputs))

    def power(self, exponent: float, damping: Damping) -> Dense:
        lam, q = eigh(self.matrix)
        shifted = damping.shift(lam[None]).flatten().pow(exponent)
        return Dense((q * shifted) @ q.T, self.outputs, self.inputs)

    def dense(self) -> Tensor:
        return self.matrix


@dataclass(frozen=True, eq=False)
class Blocks:
    """One operator per layer: block-diagonal curvature."""

    layers: Mapping[str, LayerOperator]

    def apply(self, x: Gradients) -> dict[str, MatrixBatch]:
        return {name: self.layers[name].apply(x[name]) for name in x}

    def power(self, exponent: float, damping: Damping) -> Blocks:
        return Blocks({name: _named(name, op, exponent, damping) for name, op in self.layers.items()})

    def dense(self) -> Tensor:
        return torch.block_diag(*[op.dense() for op in self.layers.values()])


def _named(name: str, op: LayerOperator, exponent: float, damping: Damping) -> LayerOperator:
    try:
        return op.power(exponent, damping.of(name))
    except CurvatureError as error:
        raise CurvatureError(f"layer {name}: {error.got}", wanted=error.wanted, try_=error.try_) from error


def matrix_power(matrix: Tensor, exponent: float) -> Tensor:
    """Power of a symmetric positive semi-definite matrix."""
    lam, q = eigh(matrix)
    return (q * lam.pow(exponent)) @ q.T


def _shifted_inverse(matrix: Tensor, root: float) -> Tensor:
    """Inverse of (M + root x its mean eigenvalue) by Cholesky in float64, cheaper than an eigh; 0 for a zero matrix."""
    wide = matrix.double()
    mean = wide.diagonal().mean()
    if not bool(torch.isfinite(mean)):
        raise CurvatureError("a covariance is not finite", wanted="finite statistics", try_="whence check")
    if mean <= 0:
        return torch.zeros_like(matrix)
    shifted = wide + root * mean * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted)).to(matrix.dtype)


__all__ = [
    "Blocks", "Dense", "Diagonal", "Eigenbasis", "Gradients", "Identity", "Kronecker", "LayerOperator", "Operator",
    "eigh", "matrix_power",
]  # fmt: skip
