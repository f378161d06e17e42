"""Conjugate gradients on Gauss-Newton products of fixed rows: the truth for models too large to form it."""

from __future__ import annotations

from whence.curvature.base import Factors, Method, Problem
from whence.curvature.implicit import TRACE, Answer, Implicit, Shift, Solver, means_of, products_of
from whence.curvature.settings import check_counts, check_tolerance
from whence.gradients.products import Curvature
from whence.linalg.damping import Damping
from whence.linalg.iterative import conjugate_gradient


def method(
    *, curvature: Curvature = "gauss_newton", steps: int = 100, tolerance: float = 1e-4, rows: int | None = None
) -> Method:
    """CG with other settings: give the result as ``method=``.

    Args:
        curvature: ``gauss_newton`` (or, under ``fisher="empirical"``, the empirical Fisher) or ``hessian``.
        steps: products per query at most.
        tolerance: relative residual to reach.
        rows: size of the fixed set of rows; None = all.
    """
    check_counts(steps=(steps, "100"), rows=(rows, "none"))
    check_tolerance(tolerance, usual=1e-4)

    def operator(factors: Factors, problem: Problem) -> Implicit:
        products = products_of(problem, curvature, rows)

        def inverter(_damping: Damping, shift: Shift) -> Solver:
            def solve(rhs_KD) -> Answer:
                solution = conjugate_gradient(
                    shift.damped(products.apply), rhs_KD, tolerance=tolerance, max_steps=steps
                ).require("max_steps", "stalled")
                return solution.x_KD, {**solution.report(), "rows": products.rows, "note": products.note}

            return solve

        return Implicit(products, means_of(factors), inverter)

    return Method(
        name="cg",
        idea="solves with the whole curvature matrix, all layers together, by conjugate gradients",
        reference="Koh & Liang 2017, section 3; Martens 2010",
        passes="1 for the scale of the layers; per query up to 100 products of 3 to 4 passes; 1 to score",
        memory="a few gradients per query",
        exact_when="converged: the damped Gauss-Newton influence itself",
        stages=(TRACE,),
        operator=operator,
    )


METHOD = method()
