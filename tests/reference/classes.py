"""Classes of feature vectors: a task of the tests' own, since whence reads classes of texts only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from whence.tasks.base import Batch, Example
from whence.tasks.regression import Regression


class Classes(Regression):
    """Feature vectors with a class: their cross-entropy."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        features = torch.from_numpy(np.stack([e.inputs["features"] for e in examples]))
        labels = torch.tensor([int(e.labels) for e in examples])
        return Batch(tuple(e.id for e in examples), {"features": features}, labels, None, False)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch.labels, reduction="none")

    def sample(self, outputs: Tensor, batch: Batch, seed: int) -> Batch:
        raise NotImplementedError
