"""Random numbers that are the same on every device, dtype, platform and library version.

torch's generators differ between CPU and GPU, and NumPy promises a stable stream only for its *raw* bits. So every
draw here comes from the raw 64-bit output of PCG64, seeded by a hash of what the numbers are for, and is shaped by
our own few lines: signs from single bits, normals by Box-Muller in float64.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

VERSION = 1
"""Raised whenever these draws change; stored beside everything that was made from them."""


def digest(*key: str | int) -> str:
    """128 bits of the key, in hex."""
    text = "\x1f".join([f"whence-draws-{VERSION}", *(str(part) for part in key)])
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def raw_words(count: int, *key: str | int) -> np.ndarray:
    """``count`` uint64 words that depend on nothing but the key."""
    return np.random.PCG64(int(digest(*key), 16)).random_raw(count)


def signs(rows: int, columns: int, *key: str | int) -> np.ndarray:
    """A rows x columns matrix of -1 and +1, float64."""
    count = rows * columns
    words = raw_words(-(-count // 64), *key).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:count]
    return bits.astype(np.float64).reshape(rows, columns) * 2.0 - 1.0


def normals(rows: int, columns: int, *key: str | int) -> np.ndarray:
    """A rows x columns matrix of standard normals, float64 (Box-Muller on 53-bit uniforms)."""
    count = rows * columns
    half = -(-count // 2)
    uniform = ((raw_words(2 * half, *key) >> np.uint64(11)).astype(np.float64) + 0.5) / float(1 << 53)
    radius = np.sqrt(-2.0 * np.log(uniform[:half]))
    angle = 2.0 * np.pi * uniform[half:]
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return both[:count].reshape(rows, columns)


def normal_block(rows: int, like_D: Tensor, *, seed: int, purpose: str) -> Tensor:
    """``rows`` standard normal vectors of ``like_D``'s length, dtype and device."""
    drawn = normals(rows, like_D.shape[-1], purpose, seed)
    return torch.from_numpy(drawn).to(device=like_D.device, dtype=like_D.dtype)
