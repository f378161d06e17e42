"""Squared error on plain feature vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from whence.errors import TaskError
from whence.tasks.base import Batch, Example, RowProblem, Setup
from whence.tasks.records import Row
from whence.tasks.sampling import row_generator
from whence.tasks.shapes import check_fields


@dataclass(frozen=True)
class Regression:
    """Half the squared error, summed over outputs.

    This is the negative log-likelihood, up to a constant, of a normal distribution of unit variance: nats here too.

    The model is a module that takes a B x F tensor of features and returns B x D (or B) predictions. Rows have
    ``features`` and ``target``, each a number or a list of numbers.
    """

    name: str = "regression"

    @classmethod
    def of(cls, _setup: Setup, /) -> Regression:
        """The task; there is nothing to set."""
        return cls()

    def encode(self, row: Row) -> Example:
        """Read one row's numbers. Raises ``RowProblem`` when they are not finite numbers."""
        problem = check_fields(row.fields, "features")
        if problem:
            raise RowProblem(*problem)
        features = np.atleast_1d(np.asarray(row.fields["features"], dtype=np.float64))
        target = np.atleast_1d(np.asarray(row.fields["target"], dtype=np.float64))
        return Example(row.id, {"features": features}, target, 1, 1)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stack B examples.

        Raises:
            TaskError: rows of different widths.
        """
        features = [e.inputs["features"] for e in examples]
        labels = [e.labels for e in examples]
        for what, arrays in (("features", features), ("target", labels)):
            widths = sorted({len(a) for a in arrays})
            if len(widths) > 1:
                raise TaskError(f"rows have {widths[0]} to {widths[-1]} {what}", wanted="one width for all rows")
        inputs = {"features": torch.from_numpy(np.stack(features))}
        return Batch(tuple(e.id for e in examples), inputs, torch.from_numpy(np.stack(labels)), None, False)

    def outputs(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """B x D predictions, the features in the model's own precision."""
        weight = next(model.parameters(), None)
        features = batch.inputs["features"]
        return model(features if weight is None else features.to(weight.dtype))

    def losses(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B losses, 0.5 * ||y - prediction||^2."""
        predicted = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).reshape(len(batch), -1)
        if predicted.shape != batch.labels.shape:
            got, wanted = predicted.shape[1], batch.labels.shape[1]
            raise TaskError(f"the model predicts {got} numbers, the rows have {wanted}", wanted="the same number")
        return 0.5 * (batch.labels.to(predicted.dtype) - predicted).square().sum(dim=1)

    def measurements(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B numbers to explain, lower is better: the loss."""
        return self.losses(outputs, batch)

    def sample(self, outputs: torch.Tensor, batch: Batch, seed: int) -> Batch:
        """Targets drawn from a unit normal around the predictions, seeded by (seed, row id)."""
        predicted = outputs.detach().reshape(len(batch), -1).double()
        noise = np.stack([row_generator(seed, i).standard_normal(predicted.shape[1]) for i in batch.ids])
        return batch.with_labels(predicted + torch.from_numpy(noise).to(predicted.device))

    def fingerprint(self) -> dict[str, Any]:
        """What must match for two runs to price the same loss."""
        return {"task": self.name}


TASK = Regression
