"""EK-FAC-preconditioned conjugate gradients on Gauss-Newton products of fixed rows: the quality mode.

EK-FAC gets each layer roughly right; a few CG steps add what it leaves out, the terms between layers. The solve has
its own damping: a matrix of few rows is flat in most directions, and with too little damping more steps fit that
flatness instead of the curvature (EVIDENCE A11).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from whence.curvature import ekfac
from whence.curvature.base import Factors, Method, Problem
from whence.curvature.implicit import Answer, Implicit, Shift, Solver, means_of, packed, products_of, unpacked
from whence.linalg.damping import Damping
from whence.linalg.iterative import block_conjugate_gradient, conjugate_gradient

Search = Literal["single", "shared"]


def method(*, steps: int = 20, rows: int | None = None, tolerance: float = 1e-3, search: Search = "single") -> Method:
    """The same with other settings.

    Args:
        steps: CG steps per query at most.
        rows: size of the fixed set of rows; None = all.
        tolerance: relative residual at which a query's solve is done.
        search: ``single``: each query has its own Krylov space; ``shared``: all queries share one, which converges in
            fewer products, but an unfinished answer then depends a little on the other queries.
    """

    def operator(factors: Factors, problem: Problem) -> Implicit:
        products = products_of(problem, rows=rows)
        blocks = ekfac.blocks(factors.tensors)

        def inverter(damping: Damping, shift: Shift) -> Solver:
            apply = shift.damped(products.apply)

            def solve(rhs_KD: Tensor) -> Answer:
                if search == "shared":
                    half = blocks.power(-0.5, damping)
                    solution = block_conjugate_gradient(
                        apply,
                        rhs_KD,
                        half_precondition=lambda x: packed(products.layout, half.apply(unpacked(products.layout, x))),
                        tolerance=tolerance,
                        max_steps=steps,
                    )
                else:
                    inverse = blocks.power(-1, damping)
                    solution = conjugate_gradient(
                        apply,
                        rhs_KD,
                        precondition=lambda x: packed(products.layout, inverse.apply(unpacked(products.layout, x))),
                        tolerance=tolerance,
                        max_steps=steps,
                    )
                solution.require("max_steps", "stalled")
                return solution.x_KD, {**solution.report(), "rows": products.rows, "note": products.note}

            return solve

        return Implicit(products, means_of(factors), inverter)

    return Method(
        name="ekfac_cg",
        idea="EK-FAC, then up to 20 conjugate-gradient steps with the whole curvature matrix: the quality mode",
        reference="ASTRA (2507.14740) and its CG form in Bergson; ALGORITHMS of preconditioned CG: Martens 2010",
        passes="2 to fit; per query up to 20 products of 3 to 4 passes over the fixed rows; 1 to score",
        memory="EK-FAC's, and a few gradients per query",
        exact_when="converged: the damped Gauss-Newton influence itself",
        stages=ekfac.METHOD.stages,
        operator=operator,
    )


METHOD = method()
