"""Trainings that repeat one run with rows left out *in place*: same order, same steps, weight 0 where a row was.

This is the counterfactual that a metagradient is the derivative of. The built-in trainer of ``evaluate`` closes the
gaps instead, so that everything after the first missing row moves by a place: another run, as another seed would be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.evaluate.stacked import Stacked, agrees, stack
from whence.evaluate.trainers import BatchedTrainer, Recipe, from_checkpoint
from whence.tasks.base import Example, Task, device_of, measurements_of, move
from whence.tasks.batches import plan_batches
from whence.unrolled.course import Course
from whence.unrolled.reverse import run_forward
from whence.unrolled.rules import Moment, clipped
from whence.unrolled.training import exact_attention, training_of

EVALUATION_TOKENS = 16384


@dataclass(frozen=True, eq=False)
class ReplayTrainer:
    """A trainer for banks (``evaluate.bank``).

    Attributes:
        model: what every training starts from.
        task: what a row costs.
        rows: N training rows; ``queries``: Q questions.
        course: seed -> what happens. The same seed is the very same run, apart from the rows left out.
        at_once: members trained together, where copies of the model can be stacked.
    """

    model: nn.Module
    task: Task
    rows: Sequence[Example]
    queries: Sequence[Example]
    course: Callable[[int], Course]
    at_once: int = 8

    def fingerprint(self) -> Mapping[str, Any]:
        """Course, start, task and contents."""
        start = from_checkpoint(self.model)
        contents = BatchedTrainer(start, self.task, self.rows, self.queries, Recipe()).fingerprint()
        kept = {name: contents[name] for name in ("rows", "queries", "start", "task")}
        return {"replay": True, **self.course(0).about(), **kept}

    def losses(self, kept_KN: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """K x Q measurements after training with weight 1 for the rows kept and 0 for the others."""
        weights_KN = np.asarray(kept_KN, dtype=np.float64)
        if not self.stacks:
            each = zip(weights_KN, seeds, strict=True)
            return np.stack([self._alone(weights, self.course(seed)) for weights, seed in each])
        courses = {seed: self.course(seed) for seed in set(seeds)}
        parts = range(0, len(seeds), self.at_once)
        return np.concatenate(
            [
                self._together(weights_KN[n : n + self.at_once], [courses[s] for s in seeds[n : n + self.at_once]])
                for n in parts
            ]
        )

    @cached_property
    def stacks(self) -> bool:
        """Whether copies of this model can be trained as one."""
        if self.at_once < 2:
            return False
        fresh, some = from_checkpoint(self.model), list(self.rows[:2])
        batches = [move(self.task.collate(part), device_of(self.model)) for part in (some, [*some, *some])]
        return agrees(self.task, [fresh(0), fresh(1)], *batches)

    def _alone(self, weights_N: np.ndarray, course: Course) -> np.ndarray:
        training = training_of(self.model, self.task, self.rows, course)
        with exact_attention(training):
            last = run_forward(training, training.start(), range(len(course)), weights_N)
            return training.measured(last.theta, self.queries)

    def _together(self, weights_KN: np.ndarray, courses: Sequence[Course]) -> np.ndarray:
        one = training_of(self.model, self.task, self.rows, courses[0])
        stacked, copies = stack([one.model] * len(courses)), len(courses)
        moving = [stacked.names[name] for name in one.names]
        state = courses[0].rule.begin(one.origin_P.repeat(copies, 1))
        with exact_attention(one):
            for number in range(len(courses[0])):
                _put(state.theta, moving)
                grad_KP = self._slopes(stacked, moving, weights_KN, courses, number=number)
                at = Moment(number, courses[0].rates[number], one.decays_P)
                state = courses[0].rule.step(state, clipped(grad_KP, courses[0].clip), at)
            _put(state.theta, moving)
            return self._measured(stacked, copies)

    def _slopes(
        self,
        model: Stacked,
        moving: Sequence[nn.Parameter],
        weights_KN: np.ndarray,
        courses: Sequence[Course],
        *,
        number: int,
    ) -> Tensor:
        """[K, P] gradients of every member's own objective."""
        batches = [course.batches[number] for course in courses]
        chosen = [self.rows[n] for batch in batches for n in batch]
        batch = move(self.task.collate(chosen), device_of(model))
        with torch.enable_grad():
            losses_KB = self.task.losses(self.task.outputs(model, batch), batch).view(len(batches), -1)
            weights = np.stack([w[list(b)] for w, b in zip(weights_KN, batches, strict=True)])
            divisors = [course.divisors[number] for course in courses]
            objective = (losses_KB * losses_KB.new_tensor(weights) / losses_KB.new_tensor(divisors)[:, None]).sum()
            grads = torch.autograd.grad(objective, moving, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, moving, strict=True)]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    @torch.no_grad()
    def _measured(self, model: Stacked, copies: int) -> np.ndarray:
        found = np.empty((copies, len(self.queries)))
        budget = max(1, EVALUATION_TOKENS // copies)
        for group in plan_batches([q.length for q in self.queries], token_budget=budget).batches:
            some = [self.queries[i] for i in group]
            batch = move(self.task.collate([q for _ in range(copies) for q in some]), device_of(model))
            values = measurements_of(self.task, model, batch)
            found[:, list(group)] = values.view(copies, -1).double().cpu().numpy()
        return found


def _put(theta_KP: Tensor, moving: Sequence[nn.Parameter]) -> None:
    parts = theta_KP.split([p[0].numel() for p in moving], dim=1)
    with torch.no_grad():
        for part, parameter in zip(parts, moving, strict=True):
            parameter.copy_(part.reshape(parameter.shape))
