"""One search space for many dampings: a solver that is swept takes its curvature products once.

With a basis V of a space that holds good answers for every damping, and the images G V, the best answer within the
space costs a small dense solve for each damping: x = V' (V G V' + V D V')^-1 V b (Galerkin; the optimum in the energy
norm, Saad 2003, section 5.2). Each answer reports how far it is from solving its equation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from whence.curvature.implicit import layer_shift, packed, unpacked
from whence.curvature.shrinkage import orthonormal
from whence.errors import CurvatureError
from whence.linalg.damping import Damping
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import Gradients
from whence.linalg.packing import Apply, Layout


@dataclass(frozen=True, eq=False)
class Together:
    """A curvature within a search space.

    Attributes:
        layout: of the flat vectors.
        means: mean eigenvalue per layer, for relative damping.
        basis_SD: S orthonormal rows; ``image_SD`` the curvature times each of them.
    """

    layout: Layout
    means: Mapping[str, float]
    basis_SD: Tensor
    image_SD: Tensor

    def apply(self, x: Gradients) -> dict[str, MatrixBatch]:
        """The curvature times what of each vector lies in the space."""
        return unpacked(self.layout, packed(self.layout, x) @ self.basis_SD.T @ self.image_SD)

    def power(self, exponent: float, damping: Damping) -> Within:
        """The damped inverse, power -1.

        Raises:
            CurvatureError: another power.
        """
        if exponent != -1:
            raise CurvatureError(f"power {exponent} within a search space", wanted="the inverse, power -1")
        return Within(self, damping)


@dataclass(frozen=True, eq=False)
class Within:
    """The damped inverse, as far as the search space goes. ``reports`` has a relative residual for each vector."""

    space: Together
    damping: Damping
    reports: list[Mapping[str, Any]] = field(default_factory=list)

    def apply(self, x: Gradients) -> dict[str, MatrixBatch]:
        space, rhs_KD = self.space, packed(self.space.layout, x)
        shift = layer_shift(self.damping, space.means, space.layout, rhs_KD)
        rhs_KD = rhs_KD * shift.live_D
        basis_SD = space.basis_SD
        inner_SS = basis_SD @ space.image_SD.T
        small_SS = (inner_SS + inner_SS.T) / 2 + (basis_SD * shift.shift_D) @ basis_SD.T
        inside_KS = torch.linalg.solve(small_SS.double(), (basis_SD @ rhs_KD.T).double()).T.to(rhs_KD.dtype)
        found_KD = inside_KS @ basis_SD * shift.live_D
        rest_KD = rhs_KD - inside_KS @ space.image_SD * shift.live_D - found_KD * shift.shift_D
        residuals_K = torch.linalg.vector_norm(rest_KD, dim=1) / torch.linalg.vector_norm(rhs_KD, dim=1).clamp_min(
            1e-30
        )
        self.reports.append({"damping": str(self.damping), "relative_residuals": residuals_K.tolist()})
        return unpacked(space.layout, found_KD)

    def power(self, exponent: float, damping: Damping) -> Within:
        """Of the same space at another damping."""
        return self.space.power(exponent, damping)


def search_space(matrix: Apply, inverses: Sequence[Apply], rhs_KD: Tensor, *, depth: int) -> tuple[Tensor, Tensor]:
    """Basis and images: what each approximate inverse makes of the vectors, then the middle one's Krylov blocks.

    Args:
        matrix: products with the undamped curvature.
        inverses: approximate inverses at several dampings.
        rhs_KD: vectors to be solved for.
        depth: Krylov blocks; (len(inverses) + depth - 1) x K products in all.
    """
    middle = inverses[len(inverses) // 2]
    blocks: list[Tensor] = []
    images: list[Tensor] = []
    fresh_KD = torch.cat([inverse(rhs_KD) for inverse in inverses])
    for _ in range(depth):
        fresh_KD = orthonormal(fresh_KD, blocks)
        if not len(fresh_KD):
            break
        blocks.append(fresh_KD)
        images.append(matrix(fresh_KD))
        fresh_KD = middle(_of_middle(images[-1], len(rhs_KD)))
    return torch.cat(blocks), torch.cat(images)


def _of_middle(image_KD: Tensor, count: int) -> Tensor:
    """At most as many vectors as there are questions: the leading directions of a block that is wider."""
    if len(image_KD) <= count:
        return image_KD
    return torch.linalg.svd(image_KD, full_matrices=False)[2][:count]
