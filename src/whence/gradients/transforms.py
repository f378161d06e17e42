"""Linear maps applied to every gradient on its way to whoever looks: projections and normalisers.

``TransformedGradients`` wraps a source and is one, so there is still one loop, and every fit, query and score works on
projected gradients unchanged. A transform acts on the inputs and output gradients of a layer before any O x I matrix
is formed, except the elementwise normaliser, which must form it.

Both sides of a score must have been transformed alike: ``require_same_transforms`` refuses anything else by name.
References: LoGra (Choe et al. 2024, section 3); TrackStar (Chang et al. 2024, section 3); TRAPS 5.2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from whence.errors import LayerError
from whence.gradients.layers import Layers
from whence.gradients.ranks import Ranks, Share, ranks_of, share_of
from whence.gradients.source import Closed, GradientSource, Labels, LiveGradients, Visitor
from whence.linalg import draws
from whence.linalg.compressed import Squeeze
from whence.linalg.matrix_batch import Full, MatrixBatch, Outer
from whence.linalg.operators import Blocks, Eigenbasis, LayerOperator
from whence.linalg.projection import require_same


class Transform(Protocol):
    """A linear map of each layer's gradients: a final of this file, or ``Projection``."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What it was made of; equal records mean equal numbers."""
        ...

    def one(self, layer: str, x: MatrixBatch) -> MatrixBatch:
        """The transformed gradients of one layer."""
        ...


@dataclass(frozen=True, eq=False)
class RowColumn:
    """Each layer's gradient times one number per output and one per input; keeps outer products outer.

    Attributes:
        factors: layer -> (rows [O], columns [I]).
        about: what they were made of.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    about: Mapping[str, Any]

    def one(self, layer: str, x: MatrixBatch) -> MatrixBatch:
        """The normalised gradients of one layer."""
        row_O, column_I = (f.to(device=x.device, dtype=x.dtype) for f in self.factors[layer])
        return x.sided(torch.diag(row_O), torch.diag(column_I))


@dataclass(frozen=True, eq=False)
class Elementwise:
    """Each layer's gradient times one number per entry; forms the matrices."""

    factors: Mapping[str, Tensor]
    about: Mapping[str, Any]

    def one(self, layer: str, x: MatrixBatch) -> MatrixBatch:
        """The normalised gradients of one layer."""
        return x.scaled(self.factors[layer].to(device=x.device, dtype=x.dtype))


@dataclass(frozen=True, eq=False)
class Squeezed:
    """Each layer through its ``Squeeze``: normalised and projected in one step, as a fitted method does it."""

    squeezes: Mapping[str, Squeeze]

    @property
    def about(self) -> Mapping[str, Any]:
        """Sizes only: what the squeezes were made of is with the method that made them."""
        layers = {n: [s.outputs, s.inputs, *s.sides.shape(s.outputs, s.inputs)] for n, s in self.squeezes.items()}
        return {"kind": "squeezed", "layers": layers}

    def one(self, layer: str, x: MatrixBatch) -> MatrixBatch:
        """The squeezed gradients of one layer."""
        return self.squeezes[layer].project(x)


@dataclass(frozen=True, eq=False)
class Whitened:
    """Each layer in coordinates where a plain dot product is the score: see ``LayerOperator.whiten``.

    Attributes:
        inverse: layer -> its damped inverse. EK-FAC's rotates into the eigenbasis and divides by the root of
            eigenvalue + damping; LoGra's and TrackStar's project on the way.
        about: what it was made of.
    """

    inverse: Mapping[str, LayerOperator]
    about: Mapping[str, Any]
    _rotated: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)  # last inputs, their basis, both

    def one(self, layer: str, x: MatrixBatch) -> MatrixBatch:
        """The whitened gradients of one layer, formed. Inputs that several layers are fed are rotated once."""
        inverse = self.inverse[layer]
        if not isinstance(inverse, Eigenbasis) or not isinstance(x, Outer):
            return inverse.whiten(x)
        known = self._rotated.get("last")
        if known is None or known[0] is not x.a_BTI or known[1] is not inverse.right_II:
            known = (x.a_BTI, inverse.right_II, x.a_BTI @ inverse.right_II)
            self._rotated["last"] = known
        return Outer(x.g_BTO @ inverse.left_OO, known[2], x.positions).scaled(inverse.eigenvalues_OI.sqrt())


def whitened(inverse: Blocks, sizes: Mapping[str, tuple[int, int]], **made_of: Any) -> Whitened:
    """The transform under which ⟨x, y⟩ is x' (G + damping)⁻¹ y.

    Args:
        inverse: the damped inverse, layer by layer.
        sizes: layer -> (O, I).
        made_of: what identifies the inverse (method, damping, fit ...), for ``about``.
    """
    layers = {}
    for name, (outputs, inputs) in sizes.items():
        first = next(iter(_tensors(inverse.layers[name])), torch.zeros(0))
        probe = Full(torch.zeros(1, outputs, inputs, dtype=first.dtype, device=first.device))
        layers[name] = [outputs, inputs, *inverse.layers[name].whiten(probe).shape[1:]]
    return Whitened(inverse.layers, {"kind": "whitened", **made_of, "layers": layers})


def _tensors(operator: object) -> Iterable[Tensor]:
    return (value for value in vars(operator).values() if isinstance(value, Tensor) and value.is_floating_point())


def row_column(second_moments: Mapping[str, Tensor], *, epsilon: float = 1e-12) -> RowColumn:
    """1 / sqrt(V) with V replaced by its rank-one form, row means x column means / mean (Adafactor, Shazeer 2018).

    Args:
        second_moments: layer -> [O, I] mean squares of gradients.
        epsilon: entries of V below this share of the layer's mean count as that much.
    """
    factors = {name: rank_one_roots(v, epsilon) for name, v in second_moments.items()}
    return RowColumn(factors, {"kind": "row_column", **_moments_about(second_moments, epsilon)})


def elementwise(second_moments: Mapping[str, Tensor], *, epsilon: float = 1e-12) -> Elementwise:
    """1 / sqrt(V), entry by entry (Adam); arguments as ``row_column``."""
    factors = {name: inverse_root(v, epsilon) for name, v in second_moments.items()}
    return Elementwise(factors, {"kind": "elementwise", **_moments_about(second_moments, epsilon)})


def rank_one_roots(v_OI: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Row and column factors whose outer product is 1 / sqrt(rank-one V); zeros for a layer without gradients."""
    mean = v_OI.mean()
    if not mean > 0:
        return torch.zeros_like(v_OI[:, 0]), torch.zeros_like(v_OI[0])
    return inverse_root(v_OI.mean(1), epsilon), inverse_root(v_OI.mean(0) / mean, epsilon)


def inverse_root(v: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(v), with v at least ``epsilon`` times its mean; 0 where the mean is 0."""
    mean = v.mean()
    return v.clamp(min=epsilon * float(mean)).rsqrt() if mean > 0 else torch.zeros_like(v)


def _moments_about(second_moments: Mapping[str, Tensor], epsilon: float) -> dict[str, Any]:
    sums = (f"{name}:{float(v.double().sum()):.9e}" for name, v in second_moments.items())
    layers = {name: [*v.shape, *v.shape] for name, v in second_moments.items()}
    return {"epsilon": epsilon, "moments": draws.digest(*sums), "layers": layers}


@dataclass(frozen=True)
class TransformedGradients:
    """A source whose gradients pass through transforms, first to last; a final of the ``GradientSource`` protocol."""

    source: GradientSource
    transforms: tuple[Transform, ...]

    @property
    def layers(self) -> Layers:
        """The same layers at the size that visitors see.

        Raises:
            LayerError: a transform that was made for other layers or sizes.
        """
        inner = self.source.layers
        sizes = dict(inner.sizes)
        for transform in self.transforms:
            sizes = {name: _resized(transform, name, size) for name, size in sizes.items()}
        seen = {
            name: replace(layer, outputs=sizes[name][0], inputs=sizes[name][1]) for name, layer in inner.layers.items()
        }
        return replace(inner, layers=seen, sizes=sizes)

    @property
    def ids(self) -> tuple[str, ...]:
        return self.source.ids

    @property
    def n_batches(self) -> int:
        return self.source.n_batches

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What every transform was made of, under ``1.kind``, ``1.seed``, ``2.kind`` ..., for storing and comparing."""
        return fingerprint(self.transforms)

    @property
    def ranks(self) -> Ranks | None:
        """Over which the model is spread, if it is."""
        return ranks_of(self.source)

    def batch_size(self, number: int) -> int:
        """Examples in one batch of the plan."""
        return self.source.batch_size(number)

    def shuffled(self, seed: int) -> list[int]:
        """Batch numbers in a seeded random order."""
        return self.source.shuffled(seed)

    def visit(
        self, visitor: Visitor, *, labels: Labels = "true", seed: int = 0, batches: Iterable[int] | None = None
    ) -> None:
        """Show the transformed gradients; arguments as ``LiveGradients.visit``."""
        self.source.visit(_Through(visitor, self.transforms), labels=labels, seed=seed, batches=batches)

    def with_progress(self, progress: Callable[[int], None] | None) -> TransformedGradients:
        """The same source reporting to someone else, where the inner one can."""
        inner = self.source
        if not isinstance(inner, (LiveGradients, TransformedGradients)):
            return self
        return replace(self, source=inner.with_progress(progress))


@dataclass(frozen=True)
class _Through:
    """Passes every layer through the transforms and on to the visitor."""

    visitor: Visitor
    transforms: tuple[Transform, ...]

    @property
    def share(self) -> Share | None:
        """As the visitor behind it shares."""
        return share_of(self.visitor)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        for transform in self.transforms:
            grads = transform.one(layer, grads)
        self.visitor.see(layer, grads)

    def close(self, closed: Closed) -> None:
        self.visitor.close(closed)


def fingerprint(transforms: Iterable[Transform]) -> dict[str, Any]:
    """One flat record of all transforms."""
    return {f"{n}.{key}": value for n, t in enumerate(transforms, start=1) for key, value in t.about.items()}


def require_same_transforms(query: GradientSource, train: GradientSource) -> None:
    """Refuse to score gradients against each other that were not transformed alike.

    Raises:
        StoreError: names every field that differs (``1.seed``, ``2.size`` ...), with both values.
    """
    require_same(_fingerprint_of(train), _fingerprint_of(query))


def _fingerprint_of(source: GradientSource) -> dict[str, Any]:
    return source.fingerprint if isinstance(source, TransformedGradients) else {}


def _resized(transform: Transform, name: str, size: tuple[int, int]) -> tuple[int, int]:
    known = transform.about["layers"].get(name)
    if known is None or tuple(known[:2]) != tuple(size):
        made = "no such layer" if known is None else f"{known[0]} x {known[1]}"
        raise LayerError(
            f"layer {name} is {size[0]} x {size[1]}; the {transform.about.get('kind')} transform has {made}",
            wanted="a transform made for these layers",
            try_="make it from source.layers.sizes",
        )
    return int(known[2]), int(known[3])
