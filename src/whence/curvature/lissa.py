"""LiSSA: the inverse as a Neumann series over mini-batches. Kept for comparison; cg needs far fewer products."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from whence.curvature.base import Factors, Method, Problem
from whence.curvature.implicit import TRACE, Answer, Implicit, Shift, Solver, means_of, products_of
from whence.curvature.settings import check_counts
from whence.errors import OptionError
from whence.gradients.products import Curvature
from whence.linalg.damping import Damping
from whence.linalg.iterative import LissaSettings, lissa, lissa_scale

SCALE_BATCHES = 4  # batches whose largest eigenvalue is looked at


def method(
    *,
    curvature: Curvature = "gauss_newton",
    depth: int = 500,
    repeats: int = 1,
    scale: float | None = None,
    full_batch: bool = False,
) -> Method:
    """LiSSA with other settings.

    Args:
        curvature: as in ``cg.method``.
        depth: steps of one series.
        repeats: series whose answers are averaged.
        scale: s; None = measured by power iteration on several batches.
        full_batch: use every row at every step (the deterministic Neumann series).
    """
    check_counts(depth=(depth, "500"), repeats=(repeats, "1"))
    if scale is not None and not scale > 0:
        raise OptionError(f"scale={scale}", wanted="none (it is measured), or a number above 0", try_="scale=none")

    def operator(factors: Factors, problem: Problem) -> Implicit:
        products = products_of(problem, curvature)
        parts = [products] if full_batch else [products.on([n]) for n in problem.source.shuffled(problem.seed)]
        weights = [part.rows * len(parts) / products.rows for part in parts]  # batches differ in rows, not in say

        def inverter(_damping: Damping, shift: Shift) -> Solver:
            largest = float(shift.shift_D.max())

            def solve(rhs_KD) -> Answer:
                def apply_at(step: int, x_KD: Tensor) -> Tensor:
                    n = step % len(parts)
                    return parts[n].apply(x_KD * shift.live_D) * shift.live_D * weights[n]

                probes = [partial(apply_at, n) for n in range(min(SCALE_BATCHES, len(parts)))]
                s = scale or lissa_scale(probes, rhs_KD[0], damping=largest, seed=problem.seed)
                settings = LissaSettings(s, shift.shift_D, depth, repeats)
                solution = lissa(apply_at, rhs_KD, settings).require("max_steps")
                return solution.x_KD, {**solution.report(), "rows": products.rows, "note": products.note}

            return solve

        return Implicit(products, means_of(factors), inverter)

    return Method(
        name="lissa",
        idea="Neumann series over mini-batches; stopping at some depth is an extra damping, which is reported",
        reference="Agarwal et al. 2017; Koh & Liang 2017, section 3",
        passes="1 for the scale of the layers, some for power iteration, 500 mini-batch products per query, 1 to score",
        memory="a few gradients per query",
        exact_when="depth times damping well above the largest eigenvalue, and every step uses every row",
        stages=(TRACE,),
        operator=operator,
    )


METHOD = method()
