"""LiSSA: the inverse as a (stochastic) Neumann series, with everything that usually stays unsaid said.

    r_0 = v;   r_j = v + r_{j-1} - (1/s) (G_j + damping) r_{j-1};   answer = r_depth / s

G_j may be the curvature of a different mini-batch at every step. The series converges only if every eigenvalue of
(G_j + damping)/s lies in (0, 2), so s comes from power iteration over several batches. Stopping early acts as a
spectral filter ``[1 - (1 - sigma/s)^(depth+1)] / sigma``, that is, as an extra damping of about s/depth.

References: Agarwal, Bullins & Hazan 2017; Koh & Liang 2017 (section 3); ALGORITHMS 1.3. We part from the DataInf
reference code, which subtracts the damping, and from the pyDVL page, whose printed update lacks a sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.errors import CurvatureError
from whence.linalg.draws import normal_block
from whence.linalg.packing import Apply
from whence.linalg.solution import CONVERGED, DIVERGED, MAX_STEPS, Solution, explain

StepApply = Callable[[int, Tensor], Tensor]
"""``(step, x_KD) -> G_step x``: the curvature of the mini-batch used at that step, without damping."""

SAFETY = 1.1
"""Power iteration approaches the largest eigenvalue from below; the scale is raised by this factor."""


@dataclass(frozen=True)
class LargestEigenvalue:
    """The largest eigenvalue in size, its vector's residual, and the steps taken."""

    value: float
    residual: float
    steps: int


def power_iteration(
    apply: Apply, like_D: Tensor, *, seed: int = 0, steps: int = 50, tolerance: float = 1e-3
) -> LargestEigenvalue:
    """The eigenvalue of largest absolute value of a symmetric matrix of size D (``like_D`` gives dtype and device).

    The value is approached from below; ``residual`` is ``|Hx - value x| / |value|``, a bound on the distance to
    *some* eigenvalue.
    """
    x_1D = normal_block(1, like_D, seed=seed, purpose="power iteration")
    x_1D = x_1D / torch.linalg.vector_norm(x_1D)
    value, residual = 0.0, float("inf")
    for step in range(1, steps + 1):
        y_1D = apply(x_1D)
        value = float((x_1D * y_1D).sum())
        norm = float(torch.linalg.vector_norm(y_1D))
        if norm == 0.0:
            return LargestEigenvalue(0.0, 0.0, step)
        residual = float(torch.linalg.vector_norm(y_1D - value * x_1D)) / max(abs(value), norm * 1e-12)
        if residual <= tolerance:
            return LargestEigenvalue(value, residual, step)
        x_1D = y_1D / norm
    return LargestEigenvalue(value, residual, steps)


def lissa_scale(batches: Sequence[Apply], like_D: Tensor, *, damping: float, seed: int = 0, steps: int = 30) -> float:
    """The scale s: (largest eigenvalue over these batches) x SAFETY + damping."""
    found = [power_iteration(apply, like_D, seed=seed + i, steps=steps) for i, apply in enumerate(batches)]
    return SAFETY * max(abs(f.value) * (1.0 + min(f.residual, 1.0)) for f in found) + damping


@dataclass(frozen=True)
class LissaSettings:
    """How long and how often the series is run.

    Attributes:
        scale: s; at least the largest eigenvalue of any batch plus the damping.
        damping: added to the curvature, on its own scale: one number, or one per coordinate [D].
        depth: steps of one run.
        repeats: runs whose answers are averaged (useful only when the batches differ between runs).
        tolerance: relative residual below which a run counts as converged.
    """

    scale: float
    damping: float | Tensor
    depth: int = 1000
    repeats: int = 1
    tolerance: float = 1e-3

    def check(self) -> LissaSettings:
        """Itself.

        Raises:
            CurvatureError: a setting under which the series cannot converge.
        """
        damping = torch.as_tensor(self.damping)
        lowest, highest = float(damping.min()), float(damping.max())
        if self.scale <= 0 or self.depth < 1 or self.repeats < 1 or lowest < 0:
            raise CurvatureError(
                f"LiSSA with scale {self.scale}, damping {lowest:g}, depth {self.depth}, repeats {self.repeats}",
                wanted="scale > 0, damping >= 0, depth and repeats of at least 1",
                try_="the scale of lissa_scale() and a damping of 0.1 x the mean eigenvalue",
            )
        if highest >= self.scale:
            raise CurvatureError(
                f"LiSSA with scale {self.scale:.3g} not above its damping {highest:.3g}",
                wanted="a scale of at least the largest eigenvalue plus the damping",
                try_="the scale of lissa_scale()",
            )
        return self


def lissa(apply_at: StepApply, rhs_KD: Tensor, settings: LissaSettings) -> Solution:
    """``(G + damping)^-1 rhs`` by ``repeats`` Neumann series of ``depth`` steps.

    The last update of the series *is* the residual of the answer before it, so the residual costs nothing. With
    mini-batches it is the residual against the last batch's matrix and never goes to 0; ``about`` says so by number.

    Divergence is certain, not guessed: while all eigenvalues stay in [0, 2s], |r_j| <= (j + 1) |v|; a longer r_j
    proves that one does not, and the run stops.
    """
    settings.check()
    runs = [_series(apply_at, rhs_KD, settings, offset=r * settings.depth) for r in range(settings.repeats)]
    x_KD = torch.stack([run.r_KD for run in runs]).mean(dim=0) / settings.scale
    return _explain(x_KD, runs, settings)


@dataclass(frozen=True)
class _Run:
    """One series: r_depth, the relative sizes of its updates, and whether it was proved to diverge."""

    r_KD: Tensor
    updates: list[Tensor]
    diverged: bool


def _series(apply_at: StepApply, v_KD: Tensor, settings: LissaSettings, *, offset: int) -> _Run:
    norms_K = torch.linalg.vector_norm(v_KD, dim=1)
    safe_K = torch.where(norms_K > 0, norms_K, torch.ones_like(norms_K))
    r_KD, updates = v_KD.clone(), [norms_K / safe_K]
    for step in range(1, settings.depth + 1):
        product_KD = apply_at(offset + step - 1, r_KD) + settings.damping * r_KD
        update_KD = v_KD - product_KD / settings.scale
        r_KD = r_KD + update_KD
        updates.append(torch.linalg.vector_norm(update_KD, dim=1) / safe_K)
        length_K = torch.linalg.vector_norm(r_KD, dim=1)
        if not bool((length_K <= 1.01 * (step + 1) * norms_K).all()):
            return _Run(r_KD, updates, True)
    return _Run(r_KD, updates, False)


def _explain(x_KD: Tensor, runs: Sequence[_Run], settings: LissaSettings) -> Solution:
    residual_K = torch.stack([run.updates[-1] for run in runs]).mean(dim=0)
    diverged = any(run.diverged for run in runs)
    steps = (max(len(run.updates) - 1 for run in runs),) * len(residual_K)
    residuals = tuple(residual_K.tolist())
    statuses = tuple(DIVERGED if diverged else CONVERGED if r <= settings.tolerance else MAX_STEPS for r in residuals)
    extra_damping = settings.scale / settings.depth
    extra = (
        f"depth {settings.depth} at scale {settings.scale:.3g} acts as an extra damping of about {extra_damping:.3g}"
    )
    if diverged:
        extra = f"an eigenvalue of (curvature + damping) lies outside [0, 2 x {settings.scale:.3g}]"
    about = {
        "solver": "LiSSA",
        "scale": settings.scale,
        "damping": float(torch.as_tensor(settings.damping).mean()),
        "depth": settings.depth,
        "repeats": settings.repeats,
        "extra_damping": extra_damping,
    }
    reason = explain(statuses, residuals, steps, extra=extra)
    return Solution(x_KD, steps, residuals, statuses, reason, torch.stack(runs[0].updates), about)


def neumann_filter(eigenvalues: Tensor, *, scale: float, depth: int) -> Tensor:
    """What ``depth`` steps make of an eigenvalue, damping included: ``[1 - (1 - sigma/s)^(depth+1)] / sigma``."""
    shrink = 1.0 - (1.0 - eigenvalues / scale) ** (depth + 1)
    return torch.where(eigenvalues == 0, torch.full_like(eigenvalues, (depth + 1) / scale), shrink / eigenvalues)
