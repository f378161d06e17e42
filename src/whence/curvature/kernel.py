"""The empirical Fisher of N rows inverted in N x N form: exact when there are fewer rows than parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.curvature.base import Factors, Method, Problem
from whence.curvature.implicit import layer_shift, packed, unpacked
from whence.errors import CurvatureError
from whence.gradients.fisher import gradient_rows
from whence.linalg.damping import Damping
from whence.linalg.iterative import kernel_inverse
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import Gradients
from whence.linalg.packing import Layout


@dataclass(frozen=True, eq=False)
class RowFisher:
    """mean of g g' over N kept rows, all layers together."""

    rows_ND: Tensor
    layout: Layout

    def apply(self, x: Gradients) -> dict[str, MatrixBatch]:
        inside_KN = packed(self.layout, x) @ self.rows_ND.T
        return unpacked(self.layout, inside_KN @ self.rows_ND / len(self.rows_ND))

    def power(self, exponent: float, damping: Damping) -> KernelInverse:
        """The damped inverse (power -1 only)."""
        if exponent != -1:
            raise CurvatureError(f"power {exponent} of a kernel", wanted="the inverse, power -1", try_="exact")
        return KernelInverse(self, damping)

    def means(self) -> Mapping[str, float]:
        """Mean eigenvalue per layer."""
        squares = torch.split(self.rows_ND.square().mean(0), list(self.layout.sizes.values()))
        return {name: float(part.mean()) for name, part in zip(self.layout.sizes, squares, strict=True)}


@dataclass(frozen=True, eq=False)
class KernelInverse:
    """(F + diag(shift))^-1 through an N x N Cholesky, whatever the number of parameters."""

    fisher: RowFisher
    damping: Damping

    def apply(self, x: Gradients) -> dict[str, MatrixBatch]:
        block_KD = packed(self.fisher.layout, x)
        shift = layer_shift(self.damping, self.fisher.means(), self.fisher.layout, block_KD)
        # A different shift per layer is a change of scale: (F + S)^-1 = s (s F s + 1)^-1 s with s = S^-1/2.
        scale_D = shift.live_D / shift.shift_D.sqrt()
        found_KD = kernel_inverse(self.fisher.rows_ND * scale_D, block_KD * scale_D, 1.0)
        return unpacked(self.fisher.layout, found_KD * scale_D)

    def power(self, exponent: float, damping: Damping) -> KernelInverse:
        return self.fisher.power(exponent, damping)


def operator(_factors: Factors, problem: Problem) -> RowFisher:
    labels = "true" if problem.fisher == "empirical" else "sampled"
    kept = gradient_rows(problem.source, labels=labels, seed=problem.seed)
    layout = Layout.of(problem.source.layers.sizes)
    return RowFisher(torch.cat([kept[name] for name in layout.sizes], dim=1), layout)


METHOD = Method(
    name="kernel",
    idea="the Fisher of the rows themselves, all layers together, inverted in rows x rows form",
    reference="Woodbury 1950; the kernel of TRAK (Park et al. 2023) and LoGra (Choe et al. 2024) without projection",
    passes="1 to collect gradients, 1 to score",
    memory="N gradients and N² numbers",
    exact_when="always for the empirical Fisher; in expectation over labels for the sampled one",
    stages=(),
    operator=operator,
)
