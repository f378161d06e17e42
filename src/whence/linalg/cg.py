"""Conjugate gradients on a *fixed* symmetric matrix, for a block of right-hand sides.

The matrix is known only by its products (``packing.Apply``). It must stay the same from step to step: the full set of
rows or one fixed batch, never a fresh mini-batch (ALGORITHMS 1.2). Two forms:

- ``conjugate_gradient``: every right-hand side walks its own Krylov space; they only share the products. The answer
  for one query does not depend on which others were asked with it.
- ``block_conjugate_gradient``: all right-hand sides share one growing search space, which needs fewer products.
  An answer that has *not* converged then depends a little on its company.

References: Hestenes & Stiefel 1952; Martens 2010 (Hessian-free optimisation, section 3);
O'Leary 1980 and Dubrulle 2001 ("Retooling the method of block conjugate gradients", BCGrQ).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whence.errors import CurvatureError
from whence.linalg.packing import Apply, rows_dot
from whence.linalg.solution import CONVERGED, INDEFINITE, MAX_STEPS, STALLED, Solution, explain


def conjugate_gradient(
    apply: Apply,
    rhs_KD: Tensor,
    *,
    precondition: Apply | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 100,
) -> Solution:
    """Solve ``matrix x = rhs`` for K right-hand sides at once.

    A column stops when its relative residual is below ``tolerance``; stopped columns leave the block, so the
    remaining products get cheaper. A direction with ``p'Hp <= 0`` ends its column with status ``indefinite`` and the
    iterate reached so far (the truncated solve of Steihaug 1983).

    Args:
        apply: the fixed symmetric matrix, damping included.
        rhs_KD: K right-hand sides.
        precondition: a symmetric positive approximation of the *inverse*.
        tolerance: relative residual to reach.
        max_steps: products per column at most.

    Example:
        >>> conjugate_gradient(matrix_apply(torch.eye(3)), torch.ones(1, 3)).steps
        (1,)
    """
    _check_settings(tolerance, max_steps)
    state = _start(rhs_KD, precondition)
    history = [state.residuals_K.clone()]
    for _ in range(max_steps):
        state.stop(state.residuals_K <= tolerance, CONVERGED)
        if not state.active_K.any():
            break
        _step(apply, precondition, state)
        history.append(state.residuals_K.clone())
    state.stop(state.residuals_K <= tolerance, CONVERGED)
    return _finish(state, history, tolerance)


def block_conjugate_gradient(
    apply: Apply,
    rhs_KD: Tensor,
    *,
    half_precondition: Apply | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 100,
) -> Solution:
    """Solve ``matrix x = rhs`` with one search space shared by all K right-hand sides.

    Args:
        apply: the fixed symmetric matrix, damping included.
        rhs_KD: K right-hand sides, K <= D; dependent ones are allowed.
        half_precondition: symmetric *square root* of the approximate inverse; applied on both sides, residuals are
            then measured in the preconditioned space.
        tolerance: relative residual to reach.
        max_steps: products per column at most.
    """
    _check_settings(tolerance, max_steps)
    half: Apply = half_precondition or (lambda x: x)
    b_KD = half(rhs_KD)
    norms_K = torch.linalg.vector_norm(b_KD, dim=1)
    safe_K = torch.where(norms_K > 0, norms_K, torch.ones_like(norms_K))
    w_DK, sigma_KK = torch.linalg.qr(b_KD.T)
    s_DK, x_DK = w_DK, torch.zeros_like(w_DK)
    history, status = [norms_K / safe_K], MAX_STEPS
    for _ in range(max_steps):
        if bool((history[-1] <= tolerance).all()):
            break
        as_DK = half(apply(half(s_DK.T))).T
        curvature_KK = s_DK.T @ as_DK
        factor, failed = torch.linalg.cholesky_ex((curvature_KK + curvature_KK.T) / 2)
        if failed:
            status = INDEFINITE
            break
        x_DK = x_DK + s_DK @ torch.cholesky_solve(sigma_KK, factor)
        as_DK = torch.cholesky_solve(as_DK.T.contiguous(), factor).T
        w_DK, zeta_KK = torch.linalg.qr(w_DK - as_DK)
        s_DK = w_DK + s_DK @ zeta_KK.T
        sigma_KK = zeta_KK @ sigma_KK
        history.append(torch.linalg.vector_norm(sigma_KK, dim=0) / safe_K)
    statuses = tuple(CONVERGED if r <= tolerance else status for r in history[-1].tolist())
    steps = (len(history) - 1,) * len(statuses)
    residuals = tuple(history[-1].tolist())
    return Solution(
        half(x_DK.T),
        steps,
        residuals,
        statuses,
        explain(statuses, residuals, steps),
        torch.stack(history),
        {"solver": "block conjugate gradients (shared search space)", "tolerance": tolerance},
    )


@dataclass
class _State:
    """The K walks. Mutable on purpose: one object is updated in place for the length of a solve."""

    x_KD: Tensor
    r_KD: Tensor
    p_KD: Tensor
    rz_K: Tensor
    norms_K: Tensor
    residuals_K: Tensor
    active_K: Tensor
    steps: list[int]
    statuses: list[str]
    worst_curvature: float = 0.0

    def stop(self, where_K: Tensor, status: str) -> None:
        """Retire the active columns of ``where_K`` with this status."""
        for k in torch.nonzero(where_K & self.active_K).flatten().tolist():
            self.statuses[k] = status
        self.active_K = self.active_K & ~where_K


def _start(rhs_KD: Tensor, precondition: Apply | None) -> _State:
    norms_K = torch.linalg.vector_norm(rhs_KD, dim=1)
    z_KD = precondition(rhs_KD) if precondition else rhs_KD
    rz_K = rows_dot(rhs_KD, z_KD)
    if bool((rz_K < 0).any()):
        raise CurvatureError(
            f"the preconditioner is not positive: r'Pr = {float(rz_K.min()):.3g}",
            wanted="a symmetric positive approximation of the inverse",
            try_="a larger damping in the preconditioner, or none",
        )
    k = len(rhs_KD)
    residuals_K = (norms_K > 0).to(norms_K.dtype)
    return _State(
        torch.zeros_like(rhs_KD),
        rhs_KD.clone(),
        z_KD.clone(),
        rz_K,
        norms_K,
        residuals_K,
        torch.ones(k, dtype=torch.bool, device=rhs_KD.device),
        [0] * k,
        [MAX_STEPS] * k,
    )


def _step(apply: Apply, precondition: Apply | None, state: _State) -> None:
    """One product and one update of every active column."""
    active = torch.nonzero(state.active_K).flatten()
    p_KD = state.p_KD[active]
    ap_KD = apply(p_KD)
    curvature_K = rows_dot(p_KD, ap_KD)
    negative_K = curvature_K <= 0
    if bool(negative_K.any()):
        rayleigh_K = curvature_K / rows_dot(p_KD, p_KD).clamp_min(torch.finfo(curvature_K.dtype).tiny)
        state.worst_curvature = min(state.worst_curvature, float(rayleigh_K.min()))
        stopped_K = torch.zeros_like(state.active_K)
        stopped_K[active[negative_K]] = True
        state.stop(stopped_K, INDEFINITE)
    keep_K = ~negative_K
    active, p_KD, ap_KD, curvature_K = active[keep_K], p_KD[keep_K], ap_KD[keep_K], curvature_K[keep_K]
    alpha_K1 = (state.rz_K[active] / curvature_K).unsqueeze(1).to(p_KD.dtype)
    state.x_KD[active] += alpha_K1 * p_KD
    state.r_KD[active] -= alpha_K1 * ap_KD
    r_KD = state.r_KD[active]
    z_KD = precondition(r_KD) if precondition else r_KD
    rz_K = rows_dot(r_KD, z_KD)
    beta_K1 = (rz_K / state.rz_K[active]).unsqueeze(1).to(p_KD.dtype)
    state.p_KD[active] = z_KD + beta_K1 * p_KD
    state.rz_K[active] = rz_K
    state.residuals_K[active] = torch.linalg.vector_norm(r_KD, dim=1) / state.norms_K[active]
    for k in active.tolist():
        state.steps[k] += 1
    _retire_stalled(state, active, rz_K)


def _retire_stalled(state: _State, active: Tensor, rz_K: Tensor) -> None:
    """A residual that is exactly spent, or no longer finite, cannot be improved by further steps."""
    stalled_K = torch.zeros_like(state.active_K)
    stalled_K[active[~(rz_K > 0) | ~torch.isfinite(rz_K)]] = True
    finished_K = stalled_K & (state.residuals_K == 0)
    state.stop(finished_K, CONVERGED)
    state.stop(stalled_K, STALLED)


def _finish(state: _State, history: list[Tensor], tolerance: float) -> Solution:
    residuals = tuple(state.residuals_K.tolist())
    statuses, steps = tuple(state.statuses), tuple(state.steps)
    extra = ""
    if state.worst_curvature < 0 or INDEFINITE in statuses:
        extra = (
            f"p'Hp / p'p = {state.worst_curvature:.3g}, so a damping above {-state.worst_curvature:.3g} more is needed"
        )
    about = {"solver": "conjugate gradients", "tolerance": tolerance}
    reason = explain(statuses, residuals, steps, extra=extra)
    return Solution(state.x_KD, steps, residuals, statuses, reason, torch.stack(history), about)


def _check_settings(tolerance: float, max_steps: int) -> None:
    if tolerance <= 0 or max_steps < 1:
        raise CurvatureError(
            f"tolerance {tolerance!r} and max_steps {max_steps!r}",
            wanted="a tolerance above 0 and at least one step",
            try_="tolerance 1e-5 and max_steps 100",
        )
