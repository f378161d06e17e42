"""Scores: preconditioned query gradients against training gradients. Sign and scale live here.

score[q, n] = ⟨∇measurement_q, (G + damping)⁻¹ ∇loss_n⟩, so **positive = proponent**: seeing example n more lowers the
measurement. G is the curvature of the mean loss over examples, so score / N is the predicted rise of the measurement
when example n is left out (Koh & Liang 2017, eq. 2; Grosse et al. 2023, eq. 5, with the sign of a loss).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import OptionError
from whence.gradients.ranks import Ranks, Share, share_of
from whence.gradients.source import Closed, GradientSource, Labels, Visitor
from whence.linalg.matrix_batch import Full, MatrixBatch, Outer, concat_rows
from whence.linalg.operators import Blocks, Gradients, Operator
from whence.scores.lengths import Lengths
from whence.scores.sinks import AllScores, Sink


@dataclass(frozen=True)
class Queries:
    """Query gradients, preconditioned or not.

    Attributes:
        ids: Q query ids.
        grads: layer -> Q matrices.
        measurements: Q values of what is explained (nats for a loss).
        self_influence: Q values q' (G + damping)⁻¹ q, once preconditioned; None before.
        held: how they are held, if not all are whole (``scores.low_rank``).
    """

    ids: tuple[str, ...]
    grads: Gradients
    measurements: np.ndarray
    self_influence: np.ndarray | None = None
    held: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Collect:
    """Keeps the gradients of every batch (formed, so that the tokens can be freed)."""

    parts: dict[str, list[MatrixBatch]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        self.parts.setdefault(layer, []).append(grads if grads.shape[0] == 0 else _formed(grads))

    def close(self, closed: Closed) -> None:
        self.ids += closed.ids
        self.losses.append(torch.where(closed.finite, closed.losses, torch.nan))


def _formed(grads: MatrixBatch) -> MatrixBatch:
    return concat_rows([grads, grads.rows(0, 0)])


def collect(source: GradientSource, labels: Labels = "measurement") -> Queries:
    """The gradients of every row of a (small) source, in the source's order."""
    visitor = _Collect()
    source.visit(visitor, labels=labels)
    position = {id_: n for n, id_ in enumerate(visitor.ids)}
    order = torch.tensor([position[id_] for id_ in source.ids])
    grads = {layer: _reordered(concat_rows(parts), order) for layer, parts in visitor.parts.items()}
    losses = torch.cat(visitor.losses)[order].double().numpy()
    return Queries(tuple(source.ids), grads, losses)


def _reordered(grads: MatrixBatch, order: Tensor) -> MatrixBatch:
    if torch.equal(order, torch.arange(len(order))):
        return grads
    return type(grads)(grads.full()[order.to(grads.device)])  # type: ignore[call-arg]  # concat_rows formed it


def prepare_queries(source: GradientSource, inverse: Operator) -> Queries:
    """Gradients of the queries' measurements with the damped inverse applied.

    A block-diagonal inverse is applied layer by layer, each layer's raw gradients freed at once: query gradients are
    the largest thing in memory when there are many of them.
    """
    raw = collect(source)
    if not isinstance(inverse, Blocks) or not isinstance(raw.grads, dict):
        return precondition(raw, inverse)
    norms = torch.zeros(len(raw.ids), dtype=torch.float64)
    for name in list(raw.grads):
        before = raw.grads[name]
        raw.grads[name] = _laid_out(inverse.layers[name].apply(before))
        norms += _paired(before, raw.grads[name])
    return Queries(raw.ids, raw.grads, raw.measurements, norms.numpy())


def precondition(raw: Queries, inverse: Operator) -> Queries:
    """The damped inverse applied to query gradients, which stay as they are."""
    grads = {name: _laid_out(matrices) for name, matrices in inverse.apply(raw.grads).items()}
    norms = torch.stack([_paired(raw.grads[name], grads[name]) for name in raw.grads]).sum(0)
    return Queries(raw.ids, grads, raw.measurements, norms.numpy())


def _laid_out(queries: MatrixBatch) -> MatrixBatch:
    """Formed queries with the query axis last in memory: the product with training gradients runs twice as fast."""
    if isinstance(queries, Outer):
        return queries
    return Full(queries.full().permute(1, 2, 0).contiguous().permute(2, 0, 1))


def _paired(left: MatrixBatch, right: MatrixBatch) -> Tensor:
    """Q inner products of equal rows of two batches."""
    return torch.stack([(a * b).sum() for a, b in zip(left.full(), right.full(), strict=True)]).double().cpu()


@dataclass
class Pairwise:
    """The visitor that scores: adds up ⟨query, gradient⟩ over layers and hands finished batches to a sink."""

    queries: Queries
    sink: Sink
    keep_layers: bool = False
    losses: dict[str, float] = field(default_factory=dict)
    _ids: list[str] = field(default_factory=list)  # closed since the last share
    _block_BQ: Tensor | None = None
    _layers: list[tuple[str, np.ndarray]] = field(default_factory=list)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        block_BQ = grads.dot(self.queries.grads[layer])
        if self.keep_layers:
            # a copy: in float32 on the CPU the array would be the very memory that the sum below is added up in
            self._layers.append((layer, block_BQ.T.float().cpu().numpy().copy()))
        self._block_BQ = block_BQ if self._block_BQ is None else self._block_BQ.add_(block_BQ)

    def close(self, closed: Closed) -> None:
        assert self._block_BQ is not None
        block_QB = self._block_BQ.T.double().cpu().numpy().copy()
        block_QB[:, ~closed.finite.numpy()] = np.nan
        self.sink.put(closed.ids, block_QB, self._stacked())
        self.losses.update(zip(closed.ids, closed.losses.tolist(), strict=True))
        self._ids += closed.ids
        self._block_BQ, self._layers = None, []

    def share(self, ranks: Ranks) -> None:
        """Take in the scores of the rows that other ranks saw."""
        self.sink.share(ranks, self._ids)
        self.losses = ranks.merged(self.losses)
        self._ids = []

    def _stacked(self) -> np.ndarray | None:
        if not self._layers:
            return None
        order = {name: n for n, name in enumerate(self.queries.grads)}  # backward shows the layers last to first
        return np.stack([block for _, block in sorted(self._layers, key=lambda item: order[item[0]])])


@dataclass
class SelfInfluence(Lengths):
    """The visitor of g' (G + damping)⁻¹ g, one number per example."""

    inverse: Blocks

    def measured(self, layer: str, grads: MatrixBatch) -> MatrixBatch:
        return self.inverse.layers[layer].whiten(grads)


@dataclass
class Together:
    """Several visitors on one pass."""

    visitors: Sequence[Visitor]

    @property
    def share(self) -> Share | None:
        """Each visitor in turn; all of them must be able to."""
        parts = [share for share in map(share_of, self.visitors) if share is not None]

        def share(ranks: Ranks) -> None:
            for part in parts:
                part(ranks)

        return share if len(parts) == len(self.visitors) else None

    def see(self, layer: str, grads: MatrixBatch) -> None:
        for visitor in self.visitors:
            visitor.see(layer, grads)

    def close(self, closed: Closed) -> None:
        for visitor in self.visitors:
            visitor.close(closed)


def pairwise(source: GradientSource, queries: Queries, sink: Sink | None = None) -> np.ndarray:
    """Q x N scores of every query against every row of the source, in the source's order (when no sink is given)."""
    target = AllScores.empty(len(queries.ids), source.ids) if sink is None else sink
    source.visit(Pairwise(queries, target))
    return target.values if isinstance(target, AllScores) else np.empty((0, 0))


def self_influence(source: GradientSource, inverse: Blocks) -> np.ndarray:
    """N values g' (G + damping)⁻¹ g in the source's order; NaN for rows that could not be scored."""
    visitor = SelfInfluence(inverse)
    source.visit(visitor)
    return np.array([visitor.values[id_] for id_ in source.ids])


def combine(parts: Iterable[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Weighted sum of scores of the same rows and queries from several checkpoints or models.

    TracInCP is this with learning rates over gradient dot products (Pruthi et al. 2020, eq. 1); equal weights 1 / C
    make a mean. A row that one part could not score is NaN.

    Args:
        parts: arrays of one shape; read one at a time, so a generator holds only one of them in memory.
        weights: one per part.

    Raises:
        OptionError: no parts, or another number of parts than weights.
    """
    total: np.ndarray | None = None
    count = 0
    for count, part in enumerate(parts, start=1):
        if count > len(weights):
            break
        total = weights[count - 1] * part if total is None else total + weights[count - 1] * part
    if total is None or count != len(weights):
        raise OptionError(f"{count} sets of scores and {len(weights)} weights", wanted="one weight per set, at least 1")
    return total
