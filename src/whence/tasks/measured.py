"""Any measurement a user writes: influence on f(x), not only on a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import TaskError
from whence.tasks.base import Batch, Example, RowProblem, Task
from whence.tasks.records import Row
from whence.tasks.wrapping import Wrapping

Measure = Callable[[torch.nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Measured(Wrapping):
    """A task whose rows are priced as before and whose questions are *measured* by ``fn(model, batch)``."""

    task: Task
    fn: Measure
    title: str = "measurement"

    def measure(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """B numbers, lower is better, each depending on its own example only.

        Raises:
            TaskError: not one differentiable number per example.
        """
        found = self.fn(model, batch)
        if not isinstance(found, Tensor) or found.shape != (len(batch),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TaskError(
                f"{self.title} returned {shape}", wanted=f"a vector of {len(batch)}, one number per example"
            )
        if not found.requires_grad:
            raise TaskError(f"{self.title} does not depend on the weights", wanted="a differentiable function of them")
        return found

    def encode_many(self, rows: Sequence[Row]) -> list[Example | RowProblem]:
        """As the task does."""
        many = getattr(self.task, "encode_many", None)
        return many(rows) if many is not None else [_tried(self.task, row) for row in rows]

    def fingerprint(self) -> dict[str, Any]:
        """The task's, and the name of the measurement."""
        return {**self.task.fingerprint(), "measurement": self.title}

    def __getattr__(self, name: str) -> Any:
        """What only some tasks have: token losses, token places."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.task, name)


def _tried(task: Task, row: Row) -> Example | RowProblem:
    try:
        return task.encode(row)
    except RowProblem as problem:
        return problem


def with_measurement(task: Task, fn: Measure) -> Measured:
    """The task with another measurement: ``fn(model, batch)`` -> one number per example, where **lower is better**.

    Positive scores then belong to rows that lower it. A logit difference, for example, at the last position::

        def wrong_minus_right(model, batch):
            logits = model(**batch.inputs).logits[torch.arange(len(batch)), batch.mask.sum(1) - 1]
            return logits[:, wrong] - logits[:, right]
    """
    return Measured(task, fn, getattr(fn, "__name__", "measurement"))
