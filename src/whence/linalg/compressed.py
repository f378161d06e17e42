"""Curvature of projected gradients, seen from the unprojected side.

With P the two-sided projection of a layer (X -> left X rightᵀ) and F the second moment of projected gradients, the
inverse that LoGra, TrackStar and TRAK score with is Pᵀ (F + damping)⁻¹ P: an operator like any other, of low rank. So
the loop, the sinks and the normalisers need not know that anything was projected, and ``whiten`` gives the P x R
numbers whose plain dot product is the score (what an index stores).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.errors import CurvatureError
from whence.linalg.damping import Damping
from whence.linalg.matrix_batch import Full, MatrixBatch, Outer
from whence.linalg.operators import Dense, Gradients, LayerOperator, Operator
from whence.linalg.projection import Sides


@dataclass(frozen=True, eq=False)
class Squeeze:
    """P of one layer: X -> left (X ∘ weights) rightᵀ.

    Attributes:
        sides: the two thin matrices; a row or column normaliser is a factor of them.
        outputs, inputs: the layer's own size.
        weights_OI: elementwise normaliser applied before projecting, or None.
    """

    sides: Sides
    outputs: int
    inputs: int
    weights_OI: Tensor | None = None

    def project(self, x: MatrixBatch) -> MatrixBatch:
        """The P x R coordinates; an ``Outer`` stays one unless there is an elementwise normaliser."""
        x = x if self.weights_OI is None else x.scaled(self.weights_OI)
        return x.sided(_like(self.sides.left_PO, x), _like(self.sides.right_RI, x))

    def expand(self, small: MatrixBatch) -> MatrixBatch:
        """Pᵀ: full size again, kept as an ``Outer`` of P tokens where it can be (a low-rank query)."""
        left_PO, right_RI = _like(self.sides.left_PO, small), _like(self.sides.right_RI, small)
        x = small.full()
        a_QPI = x if right_RI is None else x @ right_RI
        if left_PO is None:
            return Full(a_QPI) if self.weights_OI is None else Full(a_QPI).scaled(self.weights_OI)
        whole = Outer(left_PO.expand(len(x), -1, -1), a_QPI)
        return whole if self.weights_OI is None else whole.scaled(self.weights_OI)

    def dense(self) -> Tensor:
        """The P*R x O*I matrix in float64."""
        left, right = (
            torch.eye(size, dtype=torch.float64) if side is None else side.double().cpu()
            for side, size in ((self.sides.left_PO, self.outputs), (self.sides.right_RI, self.inputs))
        )
        both = torch.kron(left.contiguous(), right.contiguous())
        return both if self.weights_OI is None else both * self.weights_OI.double().cpu().flatten()


@dataclass(frozen=True, eq=False)
class Compressed:
    """Pᵀ · inner · P for one layer; ``inner`` is an operator over the P x R numbers that are left."""

    squeeze: Squeeze
    inner: LayerOperator

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        return self.squeeze.expand(self.inner.apply(self.squeeze.project(x)))

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        return self.inner.whiten(self.squeeze.project(x))

    def power(self, exponent: float, damping: Damping) -> Compressed:
        """The same projection around a power of the damped inner operator: -1 is what scores are made with."""
        if exponent == -1 and isinstance(self.inner, Dense):
            return Compressed(self.squeeze, DampedInverse.of(self.inner, damping))
        return Compressed(self.squeeze, self.inner.power(exponent, damping))

    def dense(self) -> Tensor:
        both = self.squeeze.dense()
        return both.T @ self.inner.dense().double().cpu() @ both


@dataclass(frozen=True, eq=False)
class CompressedTogether:
    """Pᵀ · inner · P with an inner operator over all layers at once (TRAK's kernel)."""

    squeezes: Mapping[str, Squeeze]
    inner: Operator

    def apply(self, x: Gradients) -> dict[str, MatrixBatch]:
        small = self.inner.apply({name: self.squeezes[name].project(grads) for name, grads in x.items()})
        return {name: self.squeezes[name].expand(small[name]) for name in x}

    def power(self, exponent: float, damping: Damping) -> CompressedTogether:
        """The same projections around a power of the damped inner operator."""
        return CompressedTogether(self.squeezes, self.inner.power(exponent, damping))


@dataclass(frozen=True, eq=False)
class DampedInverse:
    """(F + damping)⁻¹ of a dense second moment, by Cholesky: far cheaper than its eigenvectors at 4,096 numbers.

    Attributes:
        factor: lower triangular L in float64, L Lᵀ = F + damping; None for a layer without any curvature, whose
            inverse is 0 here as everywhere.
    """

    factor: Tensor | None
    outputs: int
    inputs: int

    @staticmethod
    def of(curvature: Dense, damping: Damping) -> DampedInverse:
        """Factor the damped matrix.

        Raises:
            CurvatureError: a matrix that is not finite, or factored damping (a Gram matrix has no Kronecker factors).
        """
        if damping.kind == "factored":
            raise CurvatureError(
                f"damping {damping} for a Gram matrix, which is not a Kronecker product",
                wanted="relative or absolute damping",
                try_=f"relative:{damping.value:g}",
            )
        wide = curvature.matrix.double()
        shift = damping.shift(wide.diagonal()[None]).flatten() - wide.diagonal()
        if not bool(torch.isfinite(shift).all()):
            return DampedInverse(None, curvature.outputs, curvature.inputs)
        factor = torch.linalg.cholesky((wide + wide.T) / 2 + torch.diag(shift))
        return DampedInverse(factor, curvature.outputs, curvature.inputs)

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        return self._solved(x, torch.cholesky_solve)

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        return self._solved(x, lambda flat, factor: torch.linalg.solve_triangular(factor, flat, upper=False))

    def _solved(self, x: MatrixBatch, solve: Callable[[Tensor, Tensor], Tensor]) -> MatrixBatch:
        formed = x.full()
        if self.factor is None:
            return Full(torch.zeros_like(formed))
        flat = solve(formed.flatten(1).double().T, self.factor).T
        return Full(flat.to(formed.dtype).reshape(formed.shape))

    def power(self, exponent: float, damping: Damping) -> LayerOperator:
        return Dense(self.dense(), self.outputs, self.inputs).power(exponent, damping)

    def dense(self) -> Tensor:
        size = self.outputs * self.inputs
        if self.factor is None:
            return torch.zeros(size, size, dtype=torch.float64)
        return torch.cholesky_inverse(self.factor)


def _like(side: Tensor | None, x: MatrixBatch) -> Tensor | None:
    return None if side is None else side.to(device=x.device, dtype=x.dtype)
