"""EK-FAC-preconditioned conjugate gradients on Gauss-Newton products of fixed rows: the quality mode.

EK-FAC gets each layer roughly right; a few CG steps add what it leaves out, the terms between layers. With every row
in the fixed set the solve converges to the damped Gauss-Newton influence itself. With fewer rows their matrix is
noisy, and solving with it alone makes things *worse* than EK-FAC (EVIDENCE A11); published remedies damp that solve
ten times more. Here it is mixed with EK-FAC instead, by a share found on held-out rows: see ``shrinkage``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from whence.curvature import ekfac
from whence.curvature.base import Factors, Method, Problem
from whence.curvature.implicit import (
    Answer,
    Implicit,
    MatrixProducts,
    Shift,
    Solver,
    layer_shift,
    means_of,
    on_flat,
    products_of,
)
from whence.curvature.settings import check_counts, check_tolerance
from whence.curvature.shrinkage import Mixture, Share, choose_share
from whence.curvature.together import Together, search_space
from whence.errors import OptionError
from whence.gradients.fisher import gradient_rows
from whence.linalg.damping import Damping
from whence.linalg.iterative import Apply, block_conjugate_gradient, conjugate_gradient
from whence.linalg.operators import Blocks

Search = Literal["single", "shared"]
# Ten times the mean eigenvalue (A11, docs/studies/lds_board.md): for want of evidence. ``implied:MODEL`` measures it.
UNMEASURED = "relative:10"
DEPTH = 3  # Krylov blocks of a sweep over dampings
PROBES = 8  # rows outside the fixed ones whose gradients choose the share


@dataclass(frozen=True)
class Settings:
    """What ``method`` was given."""

    steps: int
    rows: int | None
    share: float | None
    tolerance: float
    search: Search

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share <= 1:
            raise OptionError(
                f"share={self.share}", wanted="none, or a number from 0 (EK-FAC alone) to 1", try_="share=none"
            )
        check_counts(steps=(self.steps, "20"), rows=(self.rows, "none"))
        check_tolerance(self.tolerance, usual=1e-3)


def method(
    *,
    steps: int = 20,
    rows: int | None = 1024,
    share: float | None = None,
    tolerance: float = 1e-3,
    search: Search = "single",
) -> Method:
    """The same with other settings.

    Args:
        steps: CG steps per query at most.
        rows: size of the fixed set of rows; None = all.
        share: weight of the fixed rows' own matrix against EK-FAC; None = 1 when every row is in the fixed set, else
            chosen on held-out rows.
        tolerance: relative residual at which a query's solve is done.
        search: ``single``: each query has its own Krylov space; ``shared``: all queries share one, which converges in
            fewer products, but an unfinished answer then depends a little on the other queries.
    """
    settings = Settings(steps, rows, share, tolerance, search)

    def operator(factors: Factors, problem: Problem) -> Implicit:
        products = products_of(problem, rows=rows)
        blocks, means = ekfac.blocks(factors.tensors), means_of(factors)

        def inverter(damping: Damping, shift: Shift) -> Solver:
            return _Solve(settings, problem, products, blocks, damping, shift)

        def together(dampings: Sequence[Damping], rhs_KD: Tensor) -> Together:
            middle = dampings[len(dampings) // 2]
            shift = layer_shift(middle, means, products.layout, rhs_KD)
            solves = [_Solve(settings, problem, products, blocks, each, shift) for each in dampings]
            chosen = sorted({0, len(dampings) // 2, len(dampings) - 1})
            matrix = solves[len(dampings) // 2].mixed()[0]
            space = search_space(matrix, [solves[n].inverse(-1) for n in chosen], rhs_KD, depth=DEPTH)
            return Together(products.layout, means, *space)

        return Implicit(products, means, inverter, together)

    return Method(
        name="ekfac_cg",
        idea="EK-FAC, then up to 20 conjugate-gradient steps with the whole curvature matrix: the quality mode",
        reference="preconditioned CG as in ASTRA (2507.14740) and Bergson; the mixture: curvature/shrinkage.py",
        passes="2 to fit; per query up to 20 products of 3 to 4 passes over up to 1,024 rows; 1 to score",
        memory="EK-FAC's, and a few gradients per query",
        exact_when="converged with every row in the fixed set: the damped Gauss-Newton influence itself",
        stages=ekfac.METHOD.stages,
        operator=operator,
        damping=UNMEASURED,
    )


@dataclass(frozen=True, eq=False)
class _Solve:
    """One damped solve: choose the share, mix, iterate, report."""

    settings: Settings
    problem: Problem
    products: MatrixProducts
    blocks: Blocks
    damping: Damping
    shift: Shift

    def __call__(self, rhs_KD: Tensor) -> Answer:
        settings = self.settings
        mixed, share = self.mixed()
        limits = {"tolerance": settings.tolerance, "max_steps": settings.steps}
        if settings.search == "shared":
            half = self.inverse(-0.5)
            found = block_conjugate_gradient(self.shift.damped(mixed), rhs_KD, half_precondition=half, **limits)
        else:
            found = conjugate_gradient(self.shift.damped(mixed), rhs_KD, precondition=self.inverse(-1), **limits)
        found.require("max_steps", "stalled")
        about = {"rows": self.products.rows, "note": self.products.note, **share.report()}
        return found.x_KD, {**found.report(), **about}

    def mixed(self) -> tuple[Apply, Share]:
        """The matrix to be solved with, undamped, and the share of the rows' own one in it."""
        share, structured = self.share(), on_flat(self.blocks, self.products.layout)

        def apply(x_KD: Tensor) -> Tensor:
            own_KD = self.products.apply(x_KD)
            return own_KD if share.value == 1 else share.value * own_KD + (1 - share.value) * structured(x_KD)

        return apply, share

    def share(self) -> Share:
        """As set, or 1 with every row, or chosen on held-out rows."""
        fixed, source = self.products.rows, self.problem.source
        if self.settings.share is not None:
            return Share(self.settings.share, {}, "as set")
        if fixed >= len(source.ids):
            return Share(1.0, {}, "every row is in the fixed set")
        numbers = self.products.numbers
        if len(numbers) < 2:
            return Share(0.5, {}, "one batch cannot be split into halves: an even mixture")
        halves = [self.shift.on_live(self.products.on(numbers[n::2]).apply) for n in (0, 1)]
        structured = self.shift.on_live(on_flat(self.blocks, self.products.layout))
        mixture = Mixture(halves, structured, self.inverse(-1), self.shift.shift_D)
        return choose_share(mixture, self._probes() * self.shift.live_D)

    def inverse(self, exponent: float) -> Apply:
        """EK-FAC's damped power: the preconditioner."""
        return on_flat(self.blocks.power(exponent, self.damping), self.products.layout)

    def _probes(self) -> Tensor:
        """Gradients of the first rows after the fixed ones, in the same seeded order."""
        source, taken = self.problem.source, len(self.products.numbers)
        outside, rows = [], 0
        for number in source.shuffled(self.problem.seed)[taken:]:
            outside.append(number)
            rows += source.batch_size(number)
            if rows >= PROBES:
                break
        kept = gradient_rows(source, batches=outside)
        return self.products.layout.pack({name: rows_ND[:PROBES] for name, rows_ND in kept.items()})


METHOD = method()
