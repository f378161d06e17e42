"""Curvature over all layers together, known only by its products: what cg, lissa, arnoldi, nystrom and ekfac_cg share.

``Implicit`` is the undamped operator, ``Solved`` its damped inverse; how it is inverted is a function that each method
brings. Damping is one number per layer on that layer's own scale, so the matrix to invert is G + diag(shift); the
scale (the mean eigenvalue, trace / size) is measured by ``TRACE``, one cheap pass of gradient norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from whence.curvature.base import Factors, LayerTensors, Memo, Problem, Stage, Sums
from whence.errors import CurvatureError
from whence.gradients.fisher import FisherProducts
from whence.gradients.products import Curvature, Products
from whence.gradients.source import GradientSource, LiveGradients
from whence.linalg.damping import Damping
from whence.linalg.matrix_batch import Full, MatrixBatch
from whence.linalg.operators import Blocks, Gradients, Operator
from whence.linalg.packing import Apply, Layout

# --- the scale of each layer ---------------------------------------------------------------------------------------


def terms(_layer: str, grads: MatrixBatch, _factors: LayerTensors, _memo: Memo) -> Mapping[str, Tensor]:
    _, outputs, inputs = grads.shape
    return {"mean": grads.squared_norm().sum()[None] / (outputs * inputs)}


def finish(sums: Sums, factors: LayerTensors) -> LayerTensors:
    return {layer: {**factors.get(layer, {}), "mean": t["mean"] / sums.examples} for layer, t in sums.tensors.items()}


def isotropic(factors: LayerTensors) -> Blocks:
    """A multiple of the identity per layer: enough for the fit to see that the scale has settled."""
    return Blocks({layer: Isotropic(t["mean"]) for layer, t in factors.items()})


@dataclass(frozen=True, eq=False)
class Isotropic:
    """A multiple of the identity."""

    mean: Tensor

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        return x.times(self.mean.expand(len(x)))

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        return x.times(self.mean.sqrt().expand(len(x)))

    def power(self, exponent: float, damping: Damping) -> Isotropic:
        return Isotropic(damping.shift(self.mean[None])[0].pow(exponent))

    def dense(self) -> Tensor:
        """One entry: the size of the layer is not known here."""
        return self.mean[None]


TRACE = Stage("trace", lambda factors: factors, terms, finish, isotropic)


# --- damping per layer ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shift:
    """What is added to the diagonal, per layer and per coordinate.

    A layer without any curvature gets an infinite shift under relative damping (its inverse is 0, as everywhere in
    whence): ``live_D`` is 0 there and keeps its coordinates out of the solve.
    """

    per_layer: Mapping[str, float]
    shift_D: Tensor
    live_D: Tensor

    def damped(self, apply: Apply) -> Apply:
        """The matrix plus the shift, on the live coordinates."""
        return lambda x_KD: self.on_live(apply)(x_KD) + x_KD * self.shift_D

    def on_live(self, apply: Apply) -> Apply:
        """The matrix on the live coordinates, undamped."""
        return lambda x_KD: apply(x_KD * self.live_D) * self.live_D


def layer_shift(damping: Damping, means: Mapping[str, float], layout: Layout, like: Tensor) -> Shift:
    """The shift of each layer from its mean eigenvalue.

    Raises:
        CurvatureError: factored damping, which only a Kronecker pair can have.
    """
    if damping.kind == "factored":
        raise CurvatureError(
            f"damping {damping} for a curvature that is not a Kronecker product",
            wanted="relative or absolute damping",
            try_=f"relative:{damping.value:g}",
        )
    amounts = {n: damping.of(n).size(means[n]) if means[n] > 0 or damping.kind == "absolute" else 0.0 for n in means}
    live = {n: float(amount > 0) for n, amount in amounts.items()}
    finite = {n: amount if amount > 0 else 1.0 for n, amount in amounts.items()}
    reported = {n: amount if amount > 0 else math.inf for n, amount in amounts.items()}
    return Shift(reported, layout.spread(finite, like), layout.spread(live, like))


# --- the operator and its inverse ----------------------------------------------------------------------------------


class MatrixProducts(Protocol):
    """Products with a fixed matrix: ``Products`` (Hessian, Gauss-Newton) or ``FisherProducts``."""

    @property
    def layout(self) -> Layout: ...

    @property
    def numbers(self) -> tuple[int, ...]: ...

    @property
    def rows(self) -> int: ...

    @property
    def note(self) -> str: ...

    def apply(self, x_KD: Tensor) -> Tensor: ...

    def on(self, batches: Any) -> MatrixProducts: ...


Answer = tuple[Tensor, Mapping[str, Any]]
Solver = Callable[[Tensor], Answer]
"""Right-hand sides [K, D] in, answers and what to report about them out."""

Inverter = Callable[[Damping, Shift], Solver]
"""How a method inverts: made anew for each damping, so that re-damping never refits."""


@dataclass(frozen=True, eq=False)
class Implicit:
    """A curvature over all layers, undamped.

    Attributes:
        products: the matrix.
        means: mean eigenvalue per layer, for relative damping.
        inverter: how to invert it.
        together: several dampings and the vectors to be solved for -> the inverses of all of them at the price of one.
    """

    products: MatrixProducts
    means: Mapping[str, float]
    inverter: Inverter
    together: Callable[[Sequence[Damping], Tensor], Operator] | None = None

    def apply(self, x: Gradients) -> dict[str, MatrixBatch]:
        return unpacked(self.products.layout, self.products.apply(packed(self.products.layout, x)))

    def power(self, exponent: float, damping: Damping) -> Solved:
        """The damped inverse; other powers need a method with eigenvalues."""
        if exponent != -1:
            raise CurvatureError(
                f"power {exponent} of a curvature known by its products",
                wanted="the inverse, power -1",
                try_="ekfac, whose eigenvalues have every power",
            )
        return Solved(self, damping)


@dataclass(frozen=True, eq=False)
class Solved:
    """The damped inverse. ``reports`` collects what each solve had to say (iterations, residuals, reason)."""

    curvature: Implicit
    damping: Damping
    reports: list[Mapping[str, Any]] = field(default_factory=list)

    def apply(self, x: Gradients) -> dict[str, MatrixBatch]:
        layout = self.curvature.products.layout
        rhs_KD = packed(layout, x)
        shift = layer_shift(self.damping, self.curvature.means, layout, rhs_KD)
        x_KD, about = self.curvature.inverter(self.damping, shift)(rhs_KD * shift.live_D)
        self.reports.append({**about, "damping_per_layer": dict(shift.per_layer)})
        return unpacked(layout, x_KD * shift.live_D)

    def power(self, exponent: float, damping: Damping) -> Solved:
        return self.curvature.power(exponent, damping)


def packed(layout: Layout, x: Gradients) -> Tensor:
    """Gradients as a flat block [K, D]."""
    return layout.pack({name: grads.full() for name, grads in x.items()})


def unpacked(layout: Layout, x_KD: Tensor) -> dict[str, MatrixBatch]:
    """A flat block as gradients."""
    return {name: Full(part) for name, part in layout.unpack(x_KD).items()}


def on_flat(operator: Operator, layout: Layout) -> Apply:
    """An operator on gradients as a matrix on flat blocks."""
    return lambda x_KD: packed(layout, operator.apply(unpacked(layout, x_KD)))


# --- which matrix, over which rows ---------------------------------------------------------------------------------


def products_of(problem: Problem, curvature: Curvature = "gauss_newton", rows: int | None = None) -> MatrixProducts:
    """The matrix a method works on.

    ``--fisher sampled`` means the Gauss-Newton matrix, which is the sampled Fisher's expectation over labels;
    ``--fisher empirical`` the empirical Fisher. A fixed subset of ``rows`` is a seeded choice of whole batches.
    """
    batches = None if rows is None else some_batches(problem.source, rows, problem.seed)
    if problem.fisher == "empirical" and curvature == "gauss_newton":
        return FisherProducts(problem.source, "true", problem.seed, batches)
    return Products(live(problem), curvature, batches)


def live(problem: Problem) -> LiveGradients:
    """The rows as a live model.

    Raises:
        CurvatureError: stored gradients, which have no second derivatives.
    """
    if not isinstance(problem.source, LiveGradients):
        raise CurvatureError(
            "curvature products of stored gradients",
            wanted="the model and its rows: products differentiate through the model",
            try_="ekfac, or the empirical Fisher",
        )
    return problem.source


def some_batches(source: GradientSource, rows: int, seed: int) -> tuple[int, ...]:
    """Batch numbers, in seeded random order, that hold at least this many rows (or all there are)."""
    order, held = source.shuffled(seed), 0
    for count, number in enumerate(order, start=1):
        held += source.batch_size(number)
        if held >= rows:
            return tuple(order[:count])
    return tuple(order)


def means_of(factors: Factors) -> dict[str, float]:
    """Mean eigenvalue per layer, from ``TRACE`` or from fitted eigenvalues."""
    return {n: float(t["mean"]) if "mean" in t else float(t["eigenvalues"].mean()) for n, t in factors.tensors.items()}


def example_tensor(problem: Problem) -> Tensor:
    """A zero vector [D] in the dtype and on the device that gradients arrive in."""
    layers = problem.source.layers
    weight = next(iter(layers)).modules[0].weight
    assert isinstance(weight, Tensor)
    dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
    return torch.zeros(layers.parameters, dtype=dtype, device=weight.device)
