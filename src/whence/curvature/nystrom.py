"""Nystrom: a low-rank picture of the curvature from one block of products, and the damping everywhere else."""

from __future__ import annotations

from whence.curvature.base import Factors, Method, Problem
from whence.curvature.implicit import TRACE, Answer, Implicit, Shift, Solver, example_tensor, means_of, products_of
from whence.curvature.settings import check_counts
from whence.linalg.damping import Damping
from whence.linalg.iterative import nystrom


def method(*, rank: int = 100, rows: int | None = None) -> Method:
    """Nystrom with another rank.

    Args:
        rank: directions kept; at most the number of attributed parameters.
        rows: size of the fixed set of rows; None = all.
    """
    check_counts(rank=(rank, "100"), rows=(rows, "none"))

    def operator(factors: Factors, problem: Problem) -> Implicit:
        products = products_of(problem, rows=rows)
        like_D = example_tensor(problem)
        pairs = nystrom(products.apply, like_D, rank=min(rank, len(like_D)), seed=problem.seed)

        def inverter(_damping: Damping, shift: Shift) -> Solver:
            def solve(rhs_KD) -> Answer:
                return pairs.inverse(rhs_KD, shift.shift_D), {"solver": "Nystrom", "reason": pairs.reason}

            return solve

        return Implicit(products, means_of(factors), inverter)

    return Method(
        name="nystrom",
        idea="rank-100 picture of the whole curvature matrix from one block of products",
        reference="Frangella, Tropp & Udell 2021; Hataya & Yamada 2023",
        passes="1 for the scale of the layers, 100 products for all queries together, 1 to score",
        memory="100 gradients",
        exact_when="the rank of the curvature is at most 100",
        stages=(TRACE,),
        operator=operator,
    )


METHOD = method()
