"""A block of K vectors: as ``{layer: [K, O, I]}`` for the library, as one matrix ``[K, D]`` for the solvers.

Iterative solvers need nothing of a curvature but the ability to multiply with it, so they work on plain matrices
whose **rows are the vectors**; D is the sum of O*I over the layers. ``Layout`` is the fixed order in which the layers
lie in such a row, and the only place that knows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Apply = Callable[[Tensor], Tensor]
"""A fixed symmetric matrix seen from outside: ``x_KD -> (matrix @ x.T).T``, row by row."""


@dataclass(frozen=True)
class Layout:
    """Where each layer's O x I matrix lies in a flat row of length D."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """The layout of these layers, in the mapping's own order."""
        return Layout(tuple((name, tuple(shape)) for name, shape in shapes.items()))

    @property
    def size(self) -> int:
        """D, the length of a flat row."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers per layer."""
        return {name: math.prod(shape) for name, shape in self.shapes}

    def pack(self, block: Mapping[str, Tensor]) -> Tensor:
        """``{layer: [K, O, I]} -> [K, D]``."""
        return torch.cat([block[name].reshape(block[name].shape[0], -1) for name, _ in self.shapes], dim=1)

    def unpack(self, x_KD: Tensor) -> dict[str, Tensor]:
        """``[K, D] -> {layer: [K, O, I]}`` (views where possible)."""
        parts = torch.split(x_KD, list(self.sizes.values()), dim=1)
        return {name: part.reshape(-1, *shape) for (name, shape), part in zip(self.shapes, parts, strict=True)}

    def spread(self, per_layer: Mapping[str, float], like: Tensor) -> Tensor:
        """One number per layer, repeated over its entries: ``[D]`` in ``like``'s dtype and device."""
        return torch.cat([like.new_full((size,), float(per_layer[name])) for name, size in self.sizes.items()])


def rows_dot(x_KD: Tensor, y_KD: Tensor) -> Tensor:
    """Row-wise inner products ``[K]``, accumulated in at least float32."""
    wide = torch.promote_types(x_KD.dtype, torch.float32)
    return (x_KD.to(wide) * y_KD.to(wide)).sum(dim=1)


def shifted(apply: Apply, damping: float | Tensor) -> Apply:
    """``x -> apply(x) + damping * x``; damping is one number or one per coordinate ``[D]``."""
    return lambda x_KD: apply(x_KD) + x_KD * damping


def matrix_apply(matrix_DD: Tensor) -> Apply:
    """A dense symmetric matrix as an ``Apply``."""
    return lambda x_KD: x_KD @ matrix_DD
