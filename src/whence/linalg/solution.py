"""What an iterative solver hands back: the answer, and in words how far it can be trusted.

A solver never answers silently. Each of the K vectors has its own number of steps, its relative residual
``|matrix x - rhs| / |rhs|`` and a status; ``reason`` says the same for people and names what to try.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from whence.errors import CurvatureError
from whence.linalg.packing import Apply

CONVERGED, MAX_STEPS, INDEFINITE, DIVERGED, STALLED = "converged", "max_steps", "indefinite", "diverged", "stalled"

_WORDS = {
    CONVERGED: "reached the tolerance",
    MAX_STEPS: "stopped at the step limit",
    INDEFINITE: "met a direction of negative curvature",
    DIVERGED: "diverged",
    STALLED: "stalled at rounding level",
}


@dataclass(frozen=True)
class Solution:
    """The answer of an iterative solve with K right-hand sides.

    Attributes:
        x_KD: the answers.
        steps: iterations used, per right-hand side.
        residuals: relative residual of each answer, as the method itself tracked it.
        statuses: one of converged, max_steps, indefinite, diverged, stalled per right-hand side.
        reason: the whole in words, with what to try when something fell short.
        history: relative residuals ``[steps + 1, K]``; rows repeat the last value once a column has stopped.
        about: settings and derived numbers worth keeping (scale, effective damping ...).
    """

    x_KD: Tensor
    steps: tuple[int, ...]
    residuals: tuple[float, ...]
    statuses: tuple[str, ...]
    reason: str
    history: Tensor
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def converged(self) -> bool:
        """True when every right-hand side reached the tolerance."""
        return all(status == CONVERGED for status in self.statuses)

    def require(self, *allowed: str) -> Solution:
        """Itself when every status is converged or among ``allowed``.

        Raises:
            CurvatureError: otherwise, with the reason.
        """
        wrong = [s for s in self.statuses if s != CONVERGED and s not in allowed]
        if wrong:
            raise CurvatureError(self.reason, wanted="a solve that ends well", try_=advice(Counter(wrong)))
        return self

    def report(self) -> dict[str, Any]:
        """Plain numbers for ``run.json``: no tensors."""
        return {
            "steps": list(self.steps),
            "relative_residuals": [float(f"{r:.6g}") for r in self.residuals],
            "statuses": list(self.statuses),
            "reason": self.reason,
            **dict(self.about),
        }


def advice(statuses: Mapping[str, int]) -> str:
    """What to try, for the worst status present."""
    if statuses.get(INDEFINITE):
        return "a Gauss-Newton or Fisher matrix instead of the Hessian, or a larger damping"
    if statuses.get(DIVERGED):
        return "a larger scale (at least the largest eigenvalue plus the damping), or more damping"
    if statuses.get(STALLED):
        return "float64, or a looser tolerance"
    return "more steps, more damping, a preconditioner, or a looser tolerance"


def explain(statuses: tuple[str, ...], residuals: tuple[float, ...], steps: tuple[int, ...], *, extra: str = "") -> str:
    """One sentence (two when something fell short) about a block of solves."""
    if not statuses:
        return "nothing to solve"
    counts = Counter(statuses)
    parts = [f"{n} of {len(statuses)} {_WORDS[s]}" for s, n in counts.most_common()]
    text = f"{'; '.join(parts)} ({_span(steps)} steps, relative residual up to {max(residuals):.2g})"
    if extra:
        text += f"; {extra}"
    if set(counts) != {CONVERGED}:
        text += f". Try {advice(counts)}"
    return text


def _span(steps: tuple[int, ...]) -> str:
    low, high = min(steps), max(steps)
    return str(high) if low == high else f"{low} to {high}"


def true_residuals(apply: Apply, x_KD: Tensor, rhs_KD: Tensor) -> Tensor:
    """``|apply(x) - rhs| / |rhs|`` per row, measured (one product), not tracked; 0 for a zero right-hand side."""
    norms_K = torch.linalg.vector_norm(rhs_KD, dim=1)
    gaps_K = torch.linalg.vector_norm(apply(x_KD) - rhs_KD, dim=1)
    return torch.where(norms_K > 0, gaps_K / norms_K.clamp_min(torch.finfo(norms_K.dtype).tiny), gaps_K)
