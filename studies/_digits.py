"""Pictures of digits (or of clothes) as rows of features: their files, and the task that prices their classes."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.tasks.base import Batch, Example
from whence.tasks.sampling import row_uniforms, sample_categorical

Draw = Callable[[Tensor, Batch, int], Tensor]
"""B x C logits, their batch, a seed -> B labels."""


def drawn_by_row(logits_BC: Tensor, batch: Batch, seed: int) -> Tensor:
    """As the tasks of whence draw: seeded by (seed, row id)."""
    where = torch.ones(len(batch), 1, dtype=torch.bool)
    return sample_categorical(logits_BC.detach()[:, None, :], where, row_uniforms(seed, batch.ids, 1))


def drawn_by_batch(logits_BC: Tensor, batch: Batch, seed: int) -> Tensor:
    """Seeded by the ids of a whole batch: what the studies published with it were drawn by."""
    key = sum(int.from_bytes(id_.encode(), "little") % 1_000_003 for id_ in batch.ids) + seed
    drawn = torch.distributions.Categorical(logits=logits_BC.detach())
    with torch.random.fork_rng():
        torch.manual_seed(key % (1 << 62))
        return drawn.sample()


@dataclass(frozen=True)
class Digits:
    """Classes of feature vectors: a third-party task in twenty lines.

    Attributes:
        draw: how labels are drawn from the model.
    """

    draw: Draw = drawn_by_row
    name: str = "digits"

    def encode(self, row: Any) -> Example:
        raise NotImplementedError

    def collate(self, examples: Sequence[Example]) -> Batch:
        features = torch.from_numpy(np.stack([e.inputs["features"] for e in examples]))
        labels = torch.from_numpy(np.array([int(e.labels) for e in examples]))
        return Batch(tuple(e.id for e in examples), {"features": features}, labels, None, False)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.inputs["features"])

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch.labels, reduction="none")

    def measurements(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.losses(outputs, batch)

    def sample(self, outputs: Tensor, batch: Batch, seed: int) -> Batch:
        return batch.with_labels(self.draw(outputs, batch, seed))

    def fingerprint(self) -> dict[str, Any]:
        return {"task": self.name}


def pictures(folder: Path, part: str) -> np.ndarray:
    """N x 196 numbers between 0 and 1: all pictures of a part, 28 x 28 averaged to 14 x 14."""
    pixels = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
    return np.frombuffer(pixels, np.uint8).reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196) / 255


def classes(folder: Path, part: str) -> np.ndarray:
    """The N classes of a part's pictures."""
    return np.frombuffer(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
