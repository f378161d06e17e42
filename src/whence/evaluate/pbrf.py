"""The proximal Bregman response: what the damped Gauss-Newton influence is the exact derivative of (Bae et al. 2022).

A row is not removed by retraining from scratch. Its weight is changed by ``epsilon`` while the outputs on all rows and
the weights are held near those of the model *as it is*, converged or not::

    theta(epsilon) = argmin (1/N) sum_i D_i(h, h_s) + epsilon L_m(theta) + 1/2 sum_d shift_d (theta_d - theta_s,d)^2
    D(h, h_s) = L(h) - L(h_s) - <dL(h_s), h - h_s>

D is 1/2 |h - h_s|^2 for the squared error and KL(p_s || p) for softmax; written as above it is neither's special case.
The derivative at 0 is -(G + shift)^-1 g_m, so this is the truth for a *solver* at a given damping; whether removing a
row does the same is another question (leave-one-out, LDS). At epsilon = -1/N the response is not linear any more: the
exact Gauss-Newton score's own agreement is the ceiling of every solver, and belongs beside theirs.

Each response is solved by at most a few Gauss-Newton steps over all rows, each by conjugate gradients, preconditioned
with the exact inverse at the start where that can be formed. For models whose rows can be read hundreds of times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.curvature.base import Problem, get_method
from whence.curvature.exact import dense_curvature
from whence.curvature.fit import fit
from whence.curvature.implicit import Shift, example_tensor, layer_shift, means_of
from whence.errors import DataError, OptionError
from whence.evaluate.proximal import Anchor, Proximal, anchors_of
from whence.gradients.layers import Conv1D, Layers
from whence.gradients.products import Products
from whence.gradients.source import Closed, LiveGradients
from whence.linalg.damping import Damping
from whence.linalg.iterative import Apply, conjugate_gradient
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.packing import Layout, matrix_apply
from whence.scores.score import collect

DENSE = 4000  # parameters up to which the inverse at the start is formed: it makes the inner solves 3 to 10 products
SLACK = 1e-3  # relative residual of an inner solve; the outer steps make up for it
INNER = 200  # products of one inner solve at most

Direction = Literal["remove", "add", "both"]
SIGNS: Mapping[str, tuple[int, ...]] = {"remove": (-1,), "add": (1,), "both": (-1, 1)}


@dataclass(frozen=True)
class PbrfSettings:
    """How a response is taken.

    Attributes:
        direction: weight of the row down (``remove``), up (``add``), or the mean of both (``both``), which cancels
            what is even in epsilon.
        share: |epsilon| in units of 1/N; 1 = the whole row.
        steps: Gauss-Newton steps at most.
        tolerance: norm of the objective's gradient, relative to its start, at which a response is solved.
    """

    direction: Direction = "remove"
    share: float = 1.0
    steps: int = 8
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.direction not in SIGNS:
            raise OptionError(f"direction {self.direction!r}", wanted="one of " + ", ".join(SIGNS))
        if not 0 < self.share <= 1:
            raise OptionError(f"share {self.share!r}", wanted="above 0 and at most 1: a row has one weight to lose")


@dataclass(frozen=True)
class Pbrf:
    """Responses as plain data.

    Attributes:
        query_ids, train_ids: Q queries, M sampled rows.
        change_QM: nats (of the queries' measurement) that each row is worth, **positive = proponent**: the rise of the
            measurement when the row's weight goes down by share / N, or its fall when it goes up. A score of whence
            times share / N predicts it.
        residuals: M final gradient norms relative to the first (the larger of both directions); ``steps`` taken.
        damping_per_layer: what was added to the diagonal.
        about: settings, number of rows, damping.
    """

    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    change_QM: np.ndarray
    residuals: tuple[float, ...]
    steps: tuple[int, ...]
    damping_per_layer: Mapping[str, float]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def converged(self) -> bool:
        """Whether every response reached the tolerance."""
        return all(residual <= self.about["tolerance"] for residual in self.residuals)

    def over(self, train_ids: Sequence[str]) -> np.ndarray:
        """Q x N responses in the order of these rows; NaN = not sampled (as ``pbrf_reference`` takes them)."""
        column = {id_: n for n, id_ in enumerate(self.train_ids)}
        empty = np.full(len(self.query_ids), np.nan)
        return np.stack([self.change_QM[:, column[i]] if i in column else empty for i in train_ids], axis=1)


def pbrf(
    train: LiveGradients,
    query: LiveGradients,
    rows: Sequence[str],
    *,
    damping: Damping,
    settings: PbrfSettings | None = None,
    progress: Callable[[int], None] | None = None,
) -> Pbrf:
    """Proximal Bregman responses of the queries to the sampled rows.

    Only the followed layers move. The model given is left as it is; a copy is solved with, in its own precision
    (float64 to reach small tolerances).

    Args:
        train: all N training rows.
        query: Q queries, same model and task.
        rows: M ids of rows in ``train``.
        damping: the solvers' own, so that both answer the same question.
        settings: see ``PbrfSettings``.
        progress: called with 1 after each row.

    Raises:
        DataError: a sampled id that is not among the rows.
        CurvatureError: factored damping, or products that are not finite.
    """
    settings = settings or PbrfSettings()
    unknown = [id_ for id_ in rows if id_ not in set(train.ids)]
    if unknown or not rows:
        raise DataError(f"no training row {unknown[0]!r}" if unknown else "no rows", wanted="ids of training rows")
    solver = responder(train, query, damping=damping, settings=settings)
    found = []
    for id_ in rows:
        found.append(solver.response(id_))
        if progress is not None:
            progress(1)
    return Pbrf(
        query_ids=query.ids,
        train_ids=tuple(rows),
        change_QM=np.stack([each.change_Q for each in found], axis=1),
        residuals=tuple(each.residual for each in found),
        steps=tuple(each.steps for each in found),
        damping_per_layer=dict(solver.shift.per_layer),
        about={"damping": str(damping), "rows": len(train.ids), **vars(settings)},
    )


@dataclass(frozen=True)
class RowResponse:
    """One row's response: Q changes in nats (positive = proponent), final residual, steps; see ``Pbrf``."""

    change_Q: np.ndarray
    residual: float
    steps: int


def responder(train: LiveGradients, query: LiveGradients, *, damping: Damping, settings: PbrfSettings) -> Responder:
    """A copy of the model with everything that stays the same from row to row, for who wants them one by one.

    Raises:
        CurvatureError: factored damping, or products that are not finite.
    """
    model, train_layers, query_layers = deepcopy((train.model, train.layers, query.layers))
    train = replace(train, model=model, layers=train_layers, progress=None)
    return _start(train, replace(query, model=model, layers=query_layers, progress=None), damping, settings)


@dataclass(frozen=True)
class _Response:
    rise_Q: np.ndarray
    residual: float
    steps: int


@dataclass(frozen=True, eq=False)
class Responder:
    """A copy of the model that can be moved, and all that stays the same from row to row (made by ``responder``)."""

    train: LiveGradients
    query: LiveGradients
    anchors: Mapping[tuple[str, ...], Anchor]
    weights: _Weights
    shift: Shift
    inverse: Apply | None
    settings: PbrfSettings
    before_Q: np.ndarray

    def response(self, row: str) -> RowResponse:
        """The row's response in the direction of the settings, or the mean of both."""
        signs = SIGNS[self.settings.direction]
        found = [self._moved(row, sign) for sign in signs]
        change_Q = np.mean([-sign * each.rise_Q for sign, each in zip(signs, found, strict=True)], axis=0)
        return RowResponse(change_Q, max(each.residual for each in found), max(each.steps for each in found))

    def _moved(self, row: str, sign: int) -> _Response:
        """Move to theta(sign * share / N), and say how the queries' measurements rose."""
        proximal = Proximal(self.train.task, self.anchors, row, sign * self.settings.share)
        moving = replace(self.train, task=proximal)
        matrix = self.shift.damped(Products(moving).apply)
        x_1D = torch.zeros_like(self.shift.shift_D)[None]
        self.weights.place(x_1D)
        norms: list[float] = []
        while True:
            slope_1D = (_mean_gradient(moving) + x_1D * self.shift.shift_D) * self.shift.live_D
            norms.append(float(slope_1D.norm()))
            if norms[-1] <= self.settings.tolerance * norms[0] or len(norms) > self.settings.steps:
                break
            step = conjugate_gradient(
                matrix, slope_1D, precondition=self.inverse, tolerance=SLACK, max_steps=INNER
            ).require("max_steps", "stalled")
            x_1D = x_1D - step.x_KD * self.shift.live_D
            self.weights.place(x_1D)
        rise_Q = collect(self.query).measurements - self.before_Q
        return _Response(rise_Q, norms[-1] / norms[0] if norms[0] else 0.0, len(norms) - 1)


def _start(train: LiveGradients, query: LiveGradients, damping: Damping, settings: PbrfSettings) -> Responder:
    problem, layout = Problem(train), Layout.of(train.layers.sizes)
    like_D = example_tensor(problem)
    inverse: Apply | None = None
    if layout.size <= DENSE:
        dense = dense_curvature(problem)
        means, inverse = dense.means(), matrix_apply(dense.power(-1, damping).matrix_DD)
    else:
        means = means_of(fit(train, get_method("cg")))
    shift = layer_shift(damping, means, layout, like_D)
    weights = _Weights(train.layers, layout, [m.detach().clone() for m in _parameters(train.layers)])
    before_Q = collect(query).measurements
    return Responder(train, query, anchors_of(train), weights, shift, inverse, settings, before_Q)


# --- the weights as one vector -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Weights:
    """The followed parameters, and where they started."""

    layers: Layers
    layout: Layout
    start: Sequence[Tensor]

    @torch.no_grad()
    def place(self, x_1D: Tensor) -> None:
        """The start plus ``x``."""
        moves: list[Tensor] = []
        for name, part_1OI in self.layout.unpack(x_1D).items():
            layer = self.layers.layers[name]
            matrix_OI = part_1OI[0, :, : layer.inputs - layer.bias]
            moves.append(matrix_OI.T if isinstance(layer.modules[0], Conv1D) else matrix_OI)  # Conv1D: [in, out]
            moves += [part_1OI[0, :, -1]] if layer.bias else []
        for parameter, start, move_ in zip(_parameters(self.layers), self.start, moves, strict=True):
            parameter.copy_(start + move_.reshape(start.shape).to(start.dtype))


def _parameters(layers: Layers) -> list[Tensor]:
    found: list[Tensor] = []
    for layer in layers:
        module = layer.modules[0]
        pair = (module.weight, module.bias) if layer.bias else (module.weight,)
        found += [p for p in pair if isinstance(p, Tensor)]
    return found


@dataclass
class _Total:
    """Sums gradients over the rows."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        total_1OI = grads.full().sum(0, keepdim=True)
        self.sums[layer] = self.sums[layer] + total_1OI if layer in self.sums else total_1OI

    def close(self, closed: Closed) -> None:
        """Nothing to do per batch."""


def _mean_gradient(source: LiveGradients) -> Tensor:
    """[1, D] gradient of the mean loss."""
    total = _Total()
    source.visit(total)
    return Layout.of(source.layers.sizes).pack(total.sums) / len(source.ids)
