"""Two-sided projections: each layer's O x I gradient becomes left · X · rightᵀ of size P x R, before X is formed.

Random sides have entries of variance 1/P (left) and 1/R (right), so that E[PᵀP] = I: inner products are unbiased and
layers of different shape keep their relative weight (TRAPS 5.2.13). The numbers come from ``draws``: the same on every
device, dtype and version. A PCA side holds orthonormal top eigenvectors of a covariance instead.

What a projection was made of (``about``) is stored with everything projected, and ``require_same`` refuses a mismatch.

References: LoGra (Choe et al. 2024, section 3); TrackStar (Chang et al. 2024); ALGORITHMS 12 and 13.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.errors import OptionError, StoreError
from whence.linalg import draws
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import eigh

Kind = Literal["rademacher", "gaussian", "pca"]
KINDS: tuple[Kind, ...] = ("rademacher", "gaussian", "pca")
Small = Literal["refuse", "keep"]


@dataclass(frozen=True, eq=False)
class Sides:
    """The two thin matrices of one layer; None keeps that side as it is."""

    left_PO: Tensor | None
    right_RI: Tensor | None

    def shape(self, outputs: int, inputs: int) -> tuple[int, int]:
        """(P, R) for a layer of this size."""
        left = outputs if self.left_PO is None else len(self.left_PO)
        return left, inputs if self.right_RI is None else len(self.right_RI)


@dataclass(frozen=True, eq=False)
class Projection:
    """Two thin matrices per layer, and what they were made of."""

    sides: Mapping[str, Sides]
    about: Mapping[str, Any]

    def apply(self, gradients: Mapping[str, MatrixBatch]) -> dict[str, MatrixBatch]:
        """The projected gradients; an ``Outer`` stays an ``Outer``."""
        return {name: self.one(name, x) for name, x in gradients.items()}

    def one(self, layer: str, x: MatrixBatch) -> MatrixBatch:
        """The projected gradients of one layer, in the gradients' dtype and on their device."""
        sides = self.sides[layer]
        return x.sided(_like(sides.left_PO, x), _like(sides.right_RI, x))

    def transpose(self, layer: str, x: MatrixBatch) -> MatrixBatch:
        """leftᵀ · X · right: back to the layer's own size (the inverse only for a full PCA)."""
        sides = self.sides[layer]
        left, right = _like(sides.left_PO, x), _like(sides.right_RI, x)
        return x.sided(None if left is None else left.T, None if right is None else right.T)


def _like(side: Tensor | None, x: MatrixBatch) -> Tensor | None:
    return None if side is None else side.to(device=x.device, dtype=x.dtype)


def random_projection(
    shapes: Mapping[str, tuple[int, int]],
    *,
    size: int | tuple[int, int],
    kind: Kind = "rademacher",
    seed: int = 0,
    small: Small = "refuse",
) -> Projection:
    """Random sides for every layer.

    Args:
        shapes: layer -> (O, I), the bias column included in I.
        size: (P, R), or one number for both.
        kind: ``rademacher`` (signs) or ``gaussian``.
        seed: each side is drawn from (seed, kind, layer name, side), so adding a layer changes no other.
        small: a side that is not longer than its projection is an error (``refuse``) or left alone (``keep``).

    Raises:
        OptionError: unknown kind, or a projection larger than a layer under ``refuse``.
    """
    if kind not in ("rademacher", "gaussian"):
        raise OptionError(f"random projection of kind {kind!r}", wanted="rademacher or gaussian", try_="rademacher")
    sizes = _sizes(size)
    _check_fit(shapes, sizes, small)
    sides = {
        name: Sides(
            _draw(kind, (sizes[0], outputs), seed, name, "left"), _draw(kind, (sizes[1], inputs), seed, name, "right")
        )
        for name, (outputs, inputs) in shapes.items()
    }
    return Projection(sides, _about(kind, sizes, shapes, sides, seed=seed))


def pca_projection(
    covariances: Mapping[str, tuple[Tensor, Tensor]], *, size: int | tuple[int, int], small: Small = "refuse"
) -> Projection:
    """Sides of top eigenvectors of the output-gradient and input covariances.

    Args:
        covariances: layer -> (G [O, O], A [I, I]), as the ``kfac`` fit makes them.
        size: (P, R), or one number for both.
        small: as in ``random_projection``.
    """
    shapes = {name: (len(g), len(a)) for name, (g, a) in covariances.items()}
    sizes = _sizes(size)
    _check_fit(shapes, sizes, small)
    sides = {name: Sides(_top(g, sizes[0]), _top(a, sizes[1])) for name, (g, a) in covariances.items()}
    digest = draws.digest(*(f"{n}:{float(g.trace()):.6e}:{float(a.trace()):.6e}" for n, (g, a) in covariances.items()))
    return Projection(sides, _about("pca", sizes, shapes, sides, basis=digest))


def _sizes(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(pair) < 1:
        raise OptionError(f"projection size {size!r}", wanted="at least 1", try_="16")
    return pair


def _check_fit(shapes: Mapping[str, tuple[int, int]], sizes: tuple[int, int], small: Small) -> None:
    """A projection that *enlarges* a side wastes space and adds noise; say which layer and what would fit."""
    if small == "keep":
        return
    for name, (outputs, inputs) in shapes.items():
        if sizes[0] > outputs or sizes[1] > inputs:
            most = min(min(shape) for shape in shapes.values())
            raise OptionError(
                f"projection {sizes[0]} x {sizes[1]} is larger than layer {name!r} ({outputs} x {inputs})",
                wanted="a projection no larger than the smallest layer",
                try_=f"size {most} or less, small='keep' to leave short sides as they are, or fewer layers",
            )


def _draw(kind: Kind, shape: tuple[int, int], *key: str | int) -> Tensor | None:
    size, length = shape
    if size >= length:
        return None
    draw = draws.signs if kind == "rademacher" else draws.normals
    return torch.from_numpy(draw(size, length, "projection", kind, *key) / np.sqrt(size))


def _top(covariance: Tensor, size: int) -> Tensor | None:
    if size >= len(covariance):
        return None
    _, vectors = eigh(covariance)
    return vectors[:, -size:].T.flip(0).contiguous()


def _about(
    kind: Kind,
    sizes: tuple[int, int],
    shapes: Mapping[str, tuple[int, int]],
    sides: Mapping[str, Sides],
    **more: int | str,
) -> dict[str, Any]:
    layers = {name: [*shape, *sides[name].shape(*shape)] for name, shape in shapes.items()}
    return {"kind": kind, "size": list(sizes), "version": draws.VERSION, "layers": layers, **more}


def require_same(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to compare what was projected in two different ways.

    Raises:
        StoreError: naming every field that differs, with both values.
    """
    fields = sorted({*stored, *now})
    wrong = [f for f in fields if stored.get(f) != now.get(f)]
    if wrong:
        shown = "; ".join(f"{f}: stored {_short(stored.get(f))}, now {_short(now.get(f))}" for f in wrong)
        raise StoreError(
            f"these gradients were projected differently ({shown})",
            wanted="the same kind, size, seed, version and layers on both sides",
            try_="the stored settings for the queries, or a new index",
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_injective(projection: Projection, rank: Mapping[str, int]) -> list[str]:
    """Layers whose projection cannot keep ``rank`` independent gradients apart (2602.10449: P >= rank is needed)."""
    short = []
    for name, needed in rank.items():
        outputs, inputs, left, right = projection.about["layers"][name]
        if left * right < min(needed, outputs * inputs):
            short.append(name)
    return short


__all__ = [
    "KINDS", "Projection", "Sides", "check_injective", "pca_projection", "random_projection",
    "require_same",
]  # fmt: skip
