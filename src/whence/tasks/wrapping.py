"""What every task that wraps another has in common: all that it does not say itself is as the inner task does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from whence.tasks.base import Batch, Example, Task
from whence.tasks.records import Row


class Wrapping(ABC):
    """A task around ``task``; whoever changes what is priced or measured says so in its fingerprint."""

    task: Task

    @property
    def name(self) -> str:
        """As the task's."""
        return self.task.name

    def encode(self, row: Row) -> Example:
        """As the task does."""
        return self.task.encode(row)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """As the task does."""
        return self.task.collate(examples)

    def outputs(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """As the task does."""
        return self.task.outputs(model, batch)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """As the task does."""
        return self.task.losses(outputs, batch)

    def measurements(self, outputs: Tensor, batch: Batch) -> Tensor:
        """As the task does."""
        return self.task.measurements(outputs, batch)

    def sample(self, outputs: Tensor, batch: Batch, seed: int) -> Batch:
        """As the task does."""
        return self.task.sample(outputs, batch, seed)

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """The task's, and what is different."""
