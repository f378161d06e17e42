"""Training to the minimum: for models where that is well defined (ridge, logistic regression), truth without noise."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from whence.errors import CurvatureError, OptionError
from whence.evaluate.trainers import BatchedTrainer, Recipe, from_checkpoint
from whence.linalg.iterative import conjugate_gradient
from whence.tasks.base import Batch, Example, Task

FORCING = 0.1  # relative residual of an inner solve, and the squared slope near the end: quadratic convergence
HALVINGS = 30  # of a step that does not make the gradient smaller
PRODUCTS = 2000  # of one inner solve at most


@dataclass(frozen=True, eq=False)
class ConvergedTrainer:
    """Minimises mean over *all* N rows of the kept rows' losses, plus penalty / 2 times the squared weights.

    A row left out has weight 0 and N stays, which is what score / N predicts. In float64, by Newton steps that are
    solved by conjugate gradients and halved until the gradient shrinks, from the minimum of all rows. Seeds change
    nothing.

    Attributes:
        model: any start; a copy is trained.
        task: what a row costs.
        rows: N training rows; ``queries``: Q questions.
        penalty: of the squared weights of all parameters; the absolute damping that matches it has the same value.
        tolerance: length of the gradient at which it has converged.
        most: Newton steps before giving up.
        at_once: a bank is written after this many members.
    """

    model: nn.Module
    task: Task
    rows: Sequence[Example]
    queries: Sequence[Example]
    penalty: float
    tolerance: float = 1e-11
    most: int = 100
    at_once: int = 8

    def fingerprint(self) -> dict[str, Any]:
        """Penalty, tolerance, task and contents."""
        own = self._as_batched.fingerprint()
        contents = {name: own[name] for name in ("rows", "queries", "task")}
        return {"converged": True, "penalty": self.penalty, "tolerance": self.tolerance, **contents}

    def losses(self, kept_KN: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """K x Q measurements.

        Raises:
            CurvatureError: no convergence.
        """
        found = np.empty((len(kept_KN), len(self.queries)))
        for k, kept in enumerate(kept_KN):
            model = self.minimum(kept)
            with torch.no_grad():
                batch = self._batches[1]
                found[k] = self.task.measurements(self.task.outputs(model, batch), batch).double().numpy()
        return found

    def minimum(self, kept_N: np.ndarray | None = None) -> nn.Module:
        """The minimising model, of all rows or of those kept."""
        if kept_N is None:
            return deepcopy(self._whole)
        return self._minimised(deepcopy(self._whole), np.asarray(kept_N))

    @cached_property
    def _whole(self) -> nn.Module:
        if self.penalty <= 0:
            raise OptionError(f"penalty {self.penalty:g}", wanted="above 0: without one the minimum may not exist")
        return self._minimised(deepcopy(self.model).double().cpu().eval(), np.ones(len(self.rows), dtype=bool))

    @cached_property
    def _batches(self) -> tuple[Batch, Batch]:
        return self.task.collate(self.rows), self.task.collate(self.queries)

    @cached_property
    def _as_batched(self) -> BatchedTrainer:
        return BatchedTrainer(from_checkpoint(self.model), self.task, self.rows, self.queries, Recipe())

    def _minimised(self, model: nn.Module, kept_N: np.ndarray) -> nn.Module:
        weights_N = torch.from_numpy(kept_N.astype(np.float64) / len(kept_N))
        moving = [p for p in model.parameters() if p.requires_grad]
        slope = self._slope(model, moving, weights_N)
        for _ in range(self.most):
            if _length(slope) <= self.tolerance:
                return model
            slope = self._step(model, moving, weights_N, slope)
        raise CurvatureError(
            f"training did not converge: a gradient of {_length(slope):.1e} after {self.most} steps",
            wanted=f"at most {self.tolerance:g}, from a model that is convex in its weights",
            try_="a larger penalty, or retraining by a recipe",
        )

    def _slope(self, model: nn.Module, moving: Sequence[nn.Parameter], weights_N: Tensor) -> Tensor:
        """The objective's gradient as one vector, differentiable."""
        with torch.enable_grad():
            losses_N = self.task.losses(self.task.outputs(model, self._batches[0]), self._batches[0])
            parts = torch.autograd.grad((losses_N * weights_N).sum(), moving, create_graph=True)
            return torch.cat([(g + self.penalty * p).reshape(-1) for g, p in zip(parts, moving, strict=True)])

    def _step(self, model: nn.Module, moving: Sequence[nn.Parameter], weights_N: Tensor, slope: Tensor) -> Tensor:
        """Move by one Newton step; returns the new gradient."""

        def product(x_1D: Tensor) -> Tensor:
            parts = torch.autograd.grad(slope, moving, x_1D[0], retain_graph=True)
            return torch.cat([part.reshape(-1) for part in parts])[None]

        length = _length(slope)
        solved = conjugate_gradient(
            product, slope.detach()[None], tolerance=min(FORCING, max(length, 1e-8)), max_steps=PRODUCTS
        ).require("max_steps", "stalled")
        start, share = parameters_to_vector(moving).detach(), 1.0
        for _ in range(HALVINGS):
            vector_to_parameters(start - share * solved.x_KD[0], moving)
            reached = self._slope(model, moving, weights_N)
            if _length(reached) < length:
                return reached
            share /= 2
        vector_to_parameters(start, moving)
        return self._slope(model, moving, weights_N)


def _length(slope: Tensor) -> float:
    return float(slope.detach().norm())
