"""DataInf: the inverse of a mean replaced by the mean of inverses, layer by layer. Made for small LoRA matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from whence.curvature.base import Factors, Method, Problem
from whence.errors import CurvatureError
from whence.gradients.fisher import gradient_rows
from whence.linalg.damping import Damping
from whence.linalg.iterative import datainf_inverse
from whence.linalg.matrix_batch import Full, MatrixBatch
from whence.linalg.operators import Blocks


@dataclass(frozen=True, eq=False)
class MeanOfRows:
    """One layer's empirical Fisher, as its N rows."""

    rows_ND: Tensor

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        flat = x.full().flatten(1)
        return Full(((flat @ self.rows_ND.T) @ self.rows_ND / len(self.rows_ND)).view(x.shape))

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        """N coordinates: g'x / sqrt(N)."""
        return Full((x.full().flatten(1) @ self.rows_ND.T / len(self.rows_ND) ** 0.5)[:, None])

    def power(self, exponent: float, damping: Damping) -> MeanOfInverses:
        """DataInf's stand-in for the damped inverse. ``relative:0.1`` is the paper's own choice of lambda."""
        if exponent != -1:
            raise CurvatureError(f"power {exponent} under DataInf", wanted="the inverse, power -1", try_="ekfac")
        mean = self.rows_ND.square().mean()
        amount = float(damping.shift(torch.zeros_like(mean)[None, None] + mean)[0, 0] - mean)
        return MeanOfInverses(self.rows_ND, amount)

    def dense(self) -> Tensor:
        return self.rows_ND.T @ self.rows_ND / len(self.rows_ND)


@dataclass(frozen=True, eq=False)
class MeanOfInverses:
    """(1/N) sum of (g g' + damping)^-1, symmetric and positive; 0 for a layer whose rows are all 0."""

    rows_ND: Tensor
    damping: float

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        flat = x.full().flatten(1)
        if not self.damping < float("inf"):
            return Full(torch.zeros_like(flat).view(x.shape))
        return Full(datainf_inverse(self.rows_ND, flat, self.damping).view(x.shape))

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        """The symmetric root: 1/sqrt(damping) (I - V (1 - sqrt(1 - s²)) V'), from the rows scaled to V s."""
        if not self.damping < float("inf"):
            return self.apply(x)
        flat = x.full().flatten(1)
        share_R, vectors_RD = self._spectrum
        inside = (flat @ vectors_RD.T) * (1.0 - (1.0 - share_R).clamp_min(0.0).sqrt())
        return Full(((flat - inside @ vectors_RD) / self.damping**0.5).view(x.shape))

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        weights_N = 1.0 / (self.damping + self.rows_ND.square().sum(1)) / len(self.rows_ND)
        _, singular_R, vectors_RD = torch.linalg.svd(self.rows_ND * weights_N.sqrt()[:, None], full_matrices=False)
        return singular_R.square(), vectors_RD

    def power(self, exponent: float, damping: Damping) -> MeanOfInverses:
        raise CurvatureError("a DataInf inverse cannot be damped again", wanted="power of the fitted operator")

    def dense(self) -> Tensor:
        eye = torch.eye(self.rows_ND.shape[1], dtype=self.rows_ND.dtype, device=self.rows_ND.device)
        return eye * 0 if not self.damping < float("inf") else datainf_inverse(self.rows_ND, eye, self.damping)


def operator(_factors: Factors, problem: Problem) -> Blocks:
    """The empirical Fisher always, as published: Sherman-Morrison needs the rows, not their labels' distribution."""
    kept = gradient_rows(problem.source, labels="true")
    return Blocks({name: MeanOfRows(rows_ND) for name, rows_ND in kept.items()})


METHOD = Method(
    name="datainf",
    idea="the mean of per-row inverses in place of the inverse of the mean; made for LoRA matrices",
    reference="Kwon, Wu, Wu & Zou, ICLR 2024, eq. 5",
    passes="1 to collect gradients, 1 to score",
    memory="N gradients",
    exact_when="a single row, or a damping far above every squared gradient length",
    stages=(),
    operator=operator,
)
