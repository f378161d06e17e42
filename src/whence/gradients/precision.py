"""Gradients of models in half precision: kept from underflow by a scaled loss, and compared with full precision.

float16 has no numbers below 6e-8 and none above 65504. The backward pass of such a model starts from the losses times
a power of two, and what arrives is divided by it in float32: exact, but for what would have been lost. A batch whose
scaled gradients overflow is repeated with a smaller scale, down to 1, so that scaling loses no row. (Micikevicius et
al. 2018, section 3.2.) bfloat16 has the range of float32 and needs none of this.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from whence.linalg.matrix_batch import MatrixBatch, Outer

HALVES = (torch.float16, torch.bfloat16)
NOISE = 1e-5  # of a layer's largest output gradient
SCALES = (2.0**14, 2.0**7, 1.0)


def scales(model: nn.Module) -> tuple[float, ...]:
    """Factors of the loss to try in turn: a plain 1 unless the model computes in float16."""
    return SCALES if any(p.dtype == torch.float16 for p in model.parameters()) else (1.0,)


@dataclass
class Held:
    """The visitor of a batch that may have to be repeated: shows nothing until it is known to be finite."""

    seen: list[tuple[str, MatrixBatch]] = field(default_factory=list)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        """Keep it."""
        self.seen.append((layer, grads))


@dataclass(frozen=True)
class Lost:
    """What half precision does to the output gradients of one layer.

    Attributes:
        entries: numbers compared: those that full precision has as more than the noise of its own rounding.
        zeros: of these, how many half precision has as zero: too small, or in a row with a number too large.
    """

    entries: int
    zeros: int

    @property
    def share(self) -> float:
        """Share of the numbers that are lost."""
        return self.zeros / max(1, self.entries)


@dataclass
class OutputGradients:
    """The visitor that keeps the output gradients of every layer, batch by batch."""

    seen: dict[str, list[Tensor]] = field(default_factory=dict)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        """Keep B x T x O of it."""
        assert isinstance(grads, Outer)
        self.seen.setdefault(layer, []).append(grads.g_BTO)

    def close(self, closed: object) -> None:
        """Rows that are not finite were shown as zeros."""


def lost(half: OutputGradients, full: OutputGradients) -> dict[str, Lost]:
    """What is lost per layer between two passes over the same rows; experts that were fed other tokens are left out."""
    found = {}
    for name, truths in full.seen.items():
        pairs = [(g, t) for g, t in zip(half.seen[name], truths, strict=True) if g.shape == t.shape]
        # sums that cancel to 0 (attention to a single token) come out as rounding noise in one precision or the other
        noise = NOISE * max((float(t.abs().max()) for _, t in pairs if t.numel()), default=0.0)
        there = [t.abs() > noise for _, t in pairs]
        zeros = sum(int(((g == 0) & real).sum()) for (g, _), real in zip(pairs, there, strict=True))
        found[name] = Lost(sum(int(real.sum()) for real in there), zeros)
    return found


def in_full(model: nn.Module) -> nn.Module:
    """A copy of the model in float32."""
    return copy.deepcopy(model).float().eval()
