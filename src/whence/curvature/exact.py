"""The curvature matrix written out: Gauss-Newton, Hessian or empirical Fisher, all layers together or block by block.

The truth that everything else is measured against. D x D numbers, so for small models and adapters only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whence.curvature.base import Factors, Method, Problem
from whence.curvature.implicit import example_tensor, layer_shift, packed, products_of, unpacked
from whence.errors import CurvatureError, ResourceError
from whence.gradients.fisher import FisherProducts, gradient_rows
from whence.gradients.products import Curvature
from whence.linalg.damping import Damping
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import Blocks, Dense, Gradients, Operator
from whence.linalg.packing import Layout

MOST_PARAMETERS = 12_000  # D: 1.1 GB in float64
COLUMNS = 64  # products taken at once


@dataclass(frozen=True, eq=False)
class WholeMatrix:
    """An explicit symmetric D x D matrix over all layers."""

    matrix_DD: Tensor
    layout: Layout

    def apply(self, x: Gradients) -> dict[str, MatrixBatch]:
        return unpacked(self.layout, packed(self.layout, x) @ self.matrix_DD)

    def power(self, exponent: float, damping: Damping) -> WholeMatrix:
        """(matrix + damping) ** exponent, damping on each layer's own scale.

        Raises:
            CurvatureError: not positive after damping (an indefinite Hessian): says which damping would do.
        """
        shift = layer_shift(damping, self.means(), self.layout, self.matrix_DD[0])
        live_D = shift.live_D
        damped_DD = self.matrix_DD * live_D[:, None] * live_D + torch.diag(shift.shift_D)
        values_D, vectors_DD = torch.linalg.eigh(damped_DD.double())
        if float(values_D[0]) <= 0:
            raise CurvatureError(
                f"the damped curvature is not positive: smallest eigenvalue {float(values_D[0]):.4g}",
                wanted="every eigenvalue plus the damping above 0",
                try_=f"the Gauss-Newton matrix, or absolute:{2 * damping.value - 2 * float(values_D[0]):.2g} and above",
            )
        powered_DD = (vectors_DD * values_D.pow(exponent)) @ vectors_DD.T
        return WholeMatrix(powered_DD.to(self.matrix_DD.dtype) * live_D[:, None] * live_D, self.layout)

    def means(self) -> Mapping[str, float]:
        """Mean eigenvalue of each layer's diagonal block; 0 where it is not positive (then nothing can be inverted)."""
        parts = torch.split(self.matrix_DD.diagonal(), list(self.layout.sizes.values()))
        return {name: max(0.0, float(part.mean())) for name, part in zip(self.layout.sizes, parts, strict=True)}

    def dense(self) -> Tensor:
        """The matrix."""
        return self.matrix_DD

    def blocks(self) -> Blocks:
        """The same without anything between layers."""
        found: dict[str, Dense] = {}
        start = 0
        for name, shape in self.layout.shapes:
            stop = start + self.layout.sizes[name]
            found[name] = Dense(self.matrix_DD[start:stop, start:stop], shape[0], shape[1])
            start = stop
        return Blocks(found)


def dense_curvature(problem: Problem, curvature: Curvature = "gauss_newton") -> WholeMatrix:
    """The matrix of all rows, by products with the identity or from the gradient rows.

    Raises:
        ResourceError: more than ``MOST_PARAMETERS`` attributed parameters.
    """
    size = problem.source.layers.parameters
    if size > MOST_PARAMETERS:
        raise ResourceError(
            f"an exact curvature of {size:,} parameters needs {8 * size**2 / 2**30:.1f} GiB",
            wanted=f"at most {MOST_PARAMETERS:,} attributed parameters",
            try_="fewer --layers, or cg, which solves with the same matrix without forming it",
        )
    products = products_of(problem, curvature)
    if isinstance(products, FisherProducts):
        kept = gradient_rows(problem.source, labels=products.labels, seed=problem.seed)
        rows_ND = torch.cat([kept[name] for name in products.layout.sizes], dim=1)
        return WholeMatrix(rows_ND.T @ rows_ND / len(rows_ND), products.layout)
    eye_DD = torch.eye(size, dtype=example_tensor(problem).dtype, device=example_tensor(problem).device)
    matrix_DD = torch.cat([products.apply(part) for part in eye_DD.split(COLUMNS)])
    return WholeMatrix((matrix_DD + matrix_DD.T) / 2, products.layout)


def method(*, curvature: Curvature = "gauss_newton", between_layers: Literal["kept", "dropped"] = "kept") -> Method:
    """The exact method with another matrix.

    Args:
        curvature: ``gauss_newton`` (or, under ``fisher="empirical"``, the empirical Fisher) or ``hessian``.
        between_layers: ``dropped`` = block-diagonal.
    """

    def operator(_factors: Factors, problem: Problem) -> Operator:
        whole = dense_curvature(problem, curvature)
        return whole if between_layers == "kept" else whole.blocks()

    return Method(
        name="exact" if between_layers == "kept" else "exact_block",
        idea="the whole Gauss-Newton matrix, formed and inverted"
        if between_layers == "kept"
        else "the Gauss-Newton matrix of each layer, formed and inverted",
        reference="Koh & Liang 2017, eq. 2, with the Gauss-Newton matrix of Martens 2010",
        passes="3 to 4 per 64 attributed parameters to fit, 1 to score",
        memory="D² for D attributed parameters",
        exact_when="always: this is the damped influence itself"
        if between_layers == "kept"
        else "no curvature between layers",
        stages=(),
        operator=operator,
    )


METHOD = method()
