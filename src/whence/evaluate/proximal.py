"""The Bregman distance from a trained model's own outputs, as a task: what holds a model in place in ``pbrf``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.gradients.capture import frozen
from whence.gradients.source import LiveGradients
from whence.tasks.base import Batch, Task, device_of, move
from whence.tasks.wrapping import Wrapping


@dataclass(frozen=True, eq=False)
class Anchor:
    """One batch at the trained weights: outputs, losses, and the losses' slopes in the outputs."""

    outputs: Tensor
    losses_B: Tensor
    slopes: Tensor


@dataclass(frozen=True, eq=False)
class Proximal(Wrapping):
    """A task priced by its Bregman distance from the trained outputs; one row's own loss on top, ``weight`` times.

    The mean over N rows is the objective without its last term, with epsilon = weight / N. Its Gauss-Newton matrix is
    the task's own but for that row's weight, since D differs from L by what is linear in the outputs.
    """

    task: Task
    anchors: Mapping[tuple[str, ...], Anchor]
    row: str
    weight: float

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """B distances, one of them with the row's loss."""
        anchor, losses_B = self.anchors[batch.ids], self.task.losses(outputs, batch)
        linear_B = ((outputs - anchor.outputs) * anchor.slopes).reshape(len(batch), -1).sum(1)
        weights_B = losses_B.new_tensor([self.weight * (id_ == self.row) for id_ in batch.ids])
        return losses_B - anchor.losses_B - linear_B + weights_B * losses_B

    def measurements(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The distances."""
        return self.losses(outputs, batch)

    def fingerprint(self) -> dict[str, Any]:
        """The task's, and which row."""
        return {**self.task.fingerprint(), "proximal": [self.row, self.weight]}


def anchors_of(source: LiveGradients) -> dict[tuple[str, ...], Anchor]:
    """Every batch of the plan at the model's present weights."""
    found = {}
    device = device_of(source.model)
    with frozen(source.model):
        for group in source.plan.batches:
            batch = move(source.task.collate([source.examples[i] for i in group]), device)
            with torch.no_grad():
                outputs = source.task.outputs(source.model, batch)
            leaf = outputs.detach().clone().requires_grad_(True)
            losses_B = source.task.losses(leaf, batch)
            (slopes,) = torch.autograd.grad(losses_B.sum(), leaf)
            found[batch.ids] = Anchor(leaf.detach(), losses_B.detach(), slopes)
    return found
