"""Numbers in four or eight bits. Scales are per row, so that a loud row does not silence a quiet one."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 7  # a nibble: one bit of sign, three of size


def log_levels(x_BK: Tensor, real_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Nibbles on a logarithmic scale between each row's smallest and largest size, and that range.

    Args:
        x_BK: numbers; the real ones are not 0.
        real_BK: which of them count.

    Returns:
        B x K nibbles (uint8, 0 to 15) and B x 2 natural logarithms (float32) of the smallest and largest size.
    """
    size = x_BK.abs().float()
    low = torch.where(real_BK, size, torch.inf).amin(1, keepdim=True)
    high = torch.where(real_BK, size, 0).amax(1, keepdim=True)
    empty = high <= 0
    low, high = torch.where(empty, 1, low).log(), torch.where(empty, 1, high).log()
    width = (high - low).clamp(min=1e-12)
    level = (torch.where(real_BK, size, 1).log() - low).div(width).mul(STEPS).round().clamp(0, STEPS)
    nibbles = level.to(torch.uint8) + 8 * (x_BK < 0).to(torch.uint8)
    return torch.where(real_BK, nibbles, 0).to(torch.uint8), torch.cat([low, high], dim=1)


def from_log_levels(nibbles_BK: Tensor, range_B2: Tensor) -> Tensor:
    """The numbers again, float32."""
    steps = torch.arange(STEPS + 1, device=nibbles_BK.device) / STEPS
    low, high = range_B2[:, :1], range_B2[:, 1:]
    positive = (low + (high - low) * steps).exp()
    return torch.cat([positive, -positive], dim=1).gather(1, nibbles_BK.long())


def packed(nibbles_BK: Tensor) -> Tensor:
    """Two nibbles a byte; K is even."""
    return nibbles_BK[:, 0::2] | (nibbles_BK[:, 1::2] << 4)


def unpacked(bytes_BK: Tensor) -> Tensor:
    """The inverse of ``packed``."""
    return torch.stack([bytes_BK & 15, bytes_BK >> 4], dim=2).flatten(1)


def eight_bits(x_BK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 on a linear scale, and B x 1 scales (float32): x is about level times scale."""
    scale = x_BK.abs().amax(1, keepdim=True).float() / 127
    return (x_BK / torch.where(scale > 0, scale, 1)).round().to(torch.int8), scale
