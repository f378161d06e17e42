"""Gram curvature of projected gradients: what logra, trackstar, trak and projected share.

Each layer is squeezed to P x R numbers (``linalg.compressed``), over which the second moment is an ordinary dense
matrix of (P R)² numbers, summed over the rows. A side that is not longer than its projection is kept whole, which is
said aloud (``Sketch.notes``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whence.curvature.base import Factors, LayerTensors, Memo, Problem, Stage, Sums
from whence.curvature.kfac import covariance
from whence.errors import CurvatureError, OptionError
from whence.linalg.compressed import Compressed, Squeeze
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import Blocks, Dense, eigh
from whence.linalg.partition import Partition, side
from whence.linalg.projection import KINDS, Kind, Sides, random_projection

Sizes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Sketch:
    """How layers are projected.

    Attributes:
        size: P = R.
        kind: ``rademacher`` or ``gaussian`` (random), or ``pca``: the top eigenvectors of the K-FAC covariances.
        seed: of the random sides.
    """

    size: int = 16
    kind: Kind = "rademacher"
    seed: int = 0

    def checked(self) -> Sketch:
        """Itself.

        Raises:
            OptionError: a size below 1 or an unknown kind.
        """
        if self.size < 1:
            raise OptionError(f"size={self.size}", wanted="a whole number of at least 1", try_="16")
        if self.kind not in KINDS:
            raise OptionError(f"kind={self.kind}", wanted="one of " + ", ".join(KINDS), try_="rademacher")
        return self

    def begin(self, sizes: Sizes) -> LayerTensors:
        """Layer sizes, and the random sides."""
        known = {name: {"size": torch.tensor(pair)} for name, pair in sizes.items()}
        if self.kind == "pca":
            return known
        drawn = random_projection(sizes, size=self.size, kind=self.kind, seed=self.seed, small="keep")
        return {name: {**known[name], **_stored(drawn.sides[name])} for name in sizes}

    def stages(self) -> tuple[Stage, ...]:
        """The pass that finds the sides, for PCA."""
        if self.kind != "pca":
            return ()
        kfac = covariance(Partition())
        return (replace(kfac, finish=lambda sums, before: merged(before, kfac.finish(sums, before))),)

    def prepare(self, factors: LayerTensors) -> LayerTensors:
        """Sides from covariances, where there are such; the covariances are let go."""
        if self.kind != "pca":
            return factors
        return {name: {"size": t["size"], **_stored(self._top(name, t))} for name, t in factors.items()}

    def _top(self, name: str, tensors: Mapping[str, Tensor]) -> Sides:
        return Sides(self._vectors(name, tensors, "G"), self._vectors(name, tensors, "A"))

    def _vectors(self, name: str, tensors: Mapping[str, Tensor], which: str) -> Tensor | None:
        """Top eigenvectors in rows, [size, n]; None where the side is not longer than that."""
        blocks = side(tensors, which).blocks
        if len(blocks) != 1 or blocks[0].dim() != 2:
            raise CurvatureError(
                f"layer {name}: a side too long to be decomposed", wanted="random sides", try_="kind=rademacher"
            )
        if self.size >= len(blocks[0]):
            return None
        return eigh(blocks[0])[1][:, -self.size :].T.flip(0).contiguous()

    def notes(self, sizes: Sizes) -> tuple[str, ...]:
        """Which layers are not projected, or on one side only."""
        small = [name for name, pair in sizes.items() if self.size >= min(pair)]
        if not small:
            return ()
        shown = ", ".join(small[:3]) + (" ..." if len(small) > 3 else "")
        return (f"projection {self.size} x {self.size} is not smaller than {shown}: such sides are kept whole",)


def _stored(sides: Sides) -> dict[str, Tensor]:
    pairs = {"left": sides.left_PO, "right": sides.right_RI}
    return {name: value for name, value in pairs.items() if value is not None}


def merged(before: LayerTensors, found: LayerTensors) -> LayerTensors:
    """Both sets of tensors per layer."""
    return {name: {**before.get(name, {}), **tensors} for name, tensors in found.items()}


def squeeze(tensors: Mapping[str, Tensor]) -> Squeeze:
    """The projection of one layer from its factors: ``left``, ``right``, ``weights``, as far as there are any."""
    outputs, inputs = (int(n) for n in tensors["size"])
    return Squeeze(Sides(tensors.get("left"), tensors.get("right")), outputs, inputs, tensors.get("weights"))


def terms(layer: str, grads: MatrixBatch, factors: LayerTensors, _memo: Memo) -> Mapping[str, Tensor]:
    """Outer products of the squeezed gradients, summed over examples: [P*R, P*R]."""
    small = squeeze(factors[layer]).project(grads)
    parts = [piece.full().flatten(1) for piece in small.pieces()]
    return {"gram": torch.stack([part.T @ part for part in parts]).sum(0) if len(parts) > 1 else parts[0].T @ parts[0]}


def finish(sums: Sums, factors: LayerTensors) -> LayerTensors:
    return merged(factors, {layer: {"gram": t["gram"] / sums.examples} for layer, t in sums.tensors.items()})


def blocks(factors: LayerTensors) -> Blocks:
    return Blocks({layer: _compressed(tensors) for layer, tensors in factors.items()})


def _compressed(tensors: Mapping[str, Tensor]) -> Compressed:
    small = squeeze(tensors)
    return Compressed(small, Dense(tensors["gram"], *small.sides.shape(small.outputs, small.inputs)))


def operator(factors: Factors, _problem: Problem) -> Blocks:
    return blocks(factors.tensors)


def stage(prepare: Callable[[LayerTensors], LayerTensors]) -> Stage:
    """The pass that sums the Gram matrices, after ``prepare`` has made the sides."""
    return Stage("gram", prepare, terms, finish, blocks)
