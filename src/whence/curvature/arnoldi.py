"""Arnoldi: the top eigenpairs of the curvature by a Krylov walk, with the complement term the paper leaves out."""

from __future__ import annotations

from typing import Literal

from whence.curvature.base import Factors, Method, Problem
from whence.curvature.implicit import TRACE, Answer, Implicit, Shift, Solver, example_tensor, means_of, products_of
from whence.curvature.settings import check_counts
from whence.gradients.products import Curvature
from whence.linalg.damping import Damping
from whence.linalg.iterative import lanczos


def method(
    *,
    curvature: Curvature = "gauss_newton",
    steps: int = 200,
    keep: int = 50,
    rows: int | None = None,
    outside: Literal["damped", "dropped"] = "damped",
) -> Method:
    """Arnoldi with other settings.

    Args:
        curvature: as in ``cg.method``; the paper takes the Hessian.
        steps: length of the walk.
        keep: eigenpairs kept, largest absolute values first.
        rows: size of the fixed set of rows; None = all.
        outside: what happens to all other directions: ``damped`` (the complement term) or ``dropped`` and the kept
            ones undamped (as published).
    """
    check_counts(steps=(steps, "200"), keep=(keep, "50"), rows=(rows, "none"))

    def operator(factors: Factors, problem: Problem) -> Implicit:
        products = products_of(problem, curvature, rows)
        pairs = lanczos(products.apply, example_tensor(problem), steps=steps, keep=keep, seed=problem.seed)

        def inverter(_damping: Damping, shift: Shift) -> Solver:
            def solve(rhs_KD) -> Answer:
                found = pairs.inverse(rhs_KD, shift.shift_D) if outside == "damped" else pairs.inverse_within(rhs_KD)
                return found, {"solver": "Arnoldi", "reason": pairs.reason, "outside": outside}

            return solve

        return Implicit(products, means_of(factors), inverter)

    return Method(
        name="arnoldi",
        idea="top 50 eigenpairs of the whole curvature matrix; the rest counts as flat, not as absent",
        reference="Schioppa et al. 2022, section 3 (without its complement term)",
        passes="1 for the scale of the layers, 200 products for all queries together, 1 to score",
        memory="200 gradients while walking, then 50",
        exact_when="all eigenpairs with curvature are kept",
        stages=(TRACE,),
        operator=operator,
    )


METHOD = method()
