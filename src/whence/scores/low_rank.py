"""Many questions at once: preconditioned gradients held whole, or as a few outer products where that saves memory.

Grosse et al. 2023 (section 3.2.2) keep hundreds of preconditioned query gradients in memory at rank 32, layer by layer.
It saves memory, not multiplications: a row's product with a question of rank r costs r T (O + I) of them for T tokens,
its product with a whole one O I, once the row's T O I are spent. So questions stay whole as long as they fit.
``MatrixBatch.dot`` then takes the cheaper contraction of every batch, whichever form the questions have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from whence.gradients.source import Closed, GradientSource
from whence.linalg.codes.low_rank import truncated
from whence.linalg.matrix_batch import Full, MatrixBatch, Outer
from whence.linalg.operators import Blocks, Operator
from whence.scores.score import Queries, collect, precondition, prepare_queries

Rank = int | Literal["auto", "none"]
AUTO_RANK = 32
HELD = 1 << 30  # bytes of whole questions that auto holds; a constant, so that results do not depend on the machine
EXACT_SIDE = 256  # matrices with a side up to this are decomposed exactly, others by subspace iteration
Sizes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Load:
    """How many questions there are, and how long a training row is.

    Attributes:
        queries: Q.
        tokens: mean tokens of a training row, T.
        itemsize: bytes of a number.
    """

    queries: int
    tokens: float
    itemsize: int = 4


@dataclass(frozen=True)
class Cut:
    """Questions of these layers are kept at this rank, those of others whole."""

    rank: int
    layers: frozenset[str]


def cut_for(asked: Rank, sizes: Sizes, load: Load, *, held: int = HELD) -> Cut:
    """Which layers to cut: with a number all that get smaller; ``auto`` cuts to 32 what it takes to stay in ``held``.

    The first to be cut are those that cost the fewest further multiplications per byte saved (some cost none).
    """
    rank = AUTO_RANK if asked == "auto" else 0 if asked == "none" else asked
    saved = {name: load.itemsize * load.queries * (o * i - rank * (o + i)) for name, (o, i) in sizes.items()}
    smaller = [name for name in sizes if rank and saved[name] > 0]
    if asked != "auto":
        return Cut(rank, frozenset(smaller))
    left = load.itemsize * load.queries * sum(o * i for o, i in sizes.values())
    chosen = []
    for name in sorted(smaller, key=lambda name: (_dearer(sizes[name], rank, load) / saved[name], name)):
        if left <= held:
            break
        chosen.append(name)
        left -= saved[name]
    return Cut(rank, frozenset(chosen))


def _dearer(size: tuple[int, int], rank: int, load: Load) -> float:
    """Further multiplications per training row when the questions of a layer are cut; below 0 it saves some."""
    outputs, inputs = size
    whole = (load.tokens + load.queries) * outputs * inputs
    return load.queries * rank * load.tokens * (outputs + inputs) - whole


def lowered(grads: MatrixBatch, rank: int, name: str = "") -> tuple[Outer, Tensor]:
    """Each matrix as the sum of its ``rank`` strongest outer products, and the Q squared lengths that are left."""
    x_QOI = grads.full()
    rank = min(rank, *x_QOI.shape[1:])
    if min(x_QOI.shape[1:]) <= EXACT_SIDE:
        left_QOK, singular_QK, right_QKI = torch.linalg.svd(x_QOI.double(), full_matrices=False)
        u_QOr = (left_QOK[:, :, :rank] * singular_QK[:, None, :rank]).to(x_QOI.dtype)
        v_QIr = right_QKI[:, :rank].transpose(1, 2).to(x_QOI.dtype)
    else:
        parts = [truncated(x_OI[None], rank, name) for x_OI in x_QOI]  # one by one: memory of one question
        u_QOr, v_QIr = (torch.cat([part[side] for part in parts]) for side in (0, 1))
    cut = Outer(u_QOr.transpose(1, 2).contiguous(), v_QIr.transpose(1, 2).contiguous())
    return cut, cut.squared_norm().double().cpu()


@dataclass
class _Held:
    """The visitor that preconditions each layer of a batch, cuts it and forgets the rest."""

    inverse: Blocks
    cut: Cut
    parts: dict[str, list[MatrixBatch]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    lengths: list[Tensor] = field(default_factory=list)  # before and after cutting, B x 2
    _norm_B: Tensor | None = None
    _length_B2: Tensor | None = None

    def see(self, layer: str, grads: MatrixBatch) -> None:
        applied = Full(self.inverse.layers[layer].apply(grads).full())
        norm_B = (grads.full() * applied.full()).flatten(1).sum(1).double().cpu()
        self._norm_B = norm_B if self._norm_B is None else self._norm_B + norm_B
        kept, length_B2 = _cut_layer(applied, layer, self.cut)
        self._length_B2 = length_B2 if self._length_B2 is None else self._length_B2 + length_B2
        self.parts.setdefault(layer, []).append(kept)

    def close(self, closed: Closed) -> None:
        assert self._norm_B is not None and self._length_B2 is not None
        self.ids += closed.ids
        self.losses.append(torch.where(closed.finite, closed.losses, torch.nan))
        self.norms.append(self._norm_B)
        self.lengths.append(self._length_B2)
        self._norm_B = self._length_B2 = None


def _cut_layer(applied: MatrixBatch, layer: str, cut: Cut) -> tuple[MatrixBatch, Tensor]:
    """The layer as it is kept, and Q x 2 squared lengths before and after."""
    before_Q = applied.squared_norm().double().cpu()
    if layer not in cut.layers:
        return applied, torch.stack([before_Q, before_Q], 1)
    kept, after_Q = lowered(applied, cut.rank, layer)
    return kept, torch.stack([before_Q, after_Q], 1)


def held_queries(source: GradientSource, inverse: Operator, cut: Cut) -> Queries:
    """Preconditioned gradients of all questions, some layers cut; ``held`` says what was cut and what it kept.

    With a block-diagonal inverse a batch of questions is cut before the next is looked at. ``self_influence`` is that
    of the whole gradients.
    """
    if not cut.layers:
        queries = prepare_queries(source, inverse)
        return replace(queries, held=_record(source, queries, cut, torch.ones(len(queries.ids), 2)))
    if not isinstance(inverse, Blocks):
        whole = precondition(collect(source), inverse)
        found = {name: _cut_layer(grads, name, cut) for name, grads in whole.grads.items()}
        lengths_Q2 = torch.stack([lengths for _, lengths in found.values()]).sum(0)
        grads = {name: kept for name, (kept, _) in found.items()}
        queries = replace(whole, grads=grads)
        return replace(queries, held=_record(source, queries, cut, lengths_Q2))
    visitor = _Held(inverse, cut)
    source.visit(visitor, labels="measurement")
    place = {id_: n for n, id_ in enumerate(visitor.ids)}
    order = torch.tensor([place[id_] for id_ in source.ids])
    grads = {name: _joined(parts, order) for name, parts in visitor.parts.items()}
    measurements, norms = (torch.cat(parts)[order].double().numpy() for parts in (visitor.losses, visitor.norms))
    queries = Queries(tuple(source.ids), grads, measurements, norms)
    return replace(queries, held=_record(source, queries, cut, torch.cat(visitor.lengths)[order]))


def _joined(parts: list[MatrixBatch], order: Tensor) -> MatrixBatch:
    if all(isinstance(part, Outer) for part in parts):
        outers = [part for part in parts if isinstance(part, Outer)]
        at = order.to(outers[0].device)
        return Outer(torch.cat([p.g_BTO for p in outers])[at], torch.cat([p.a_BTI for p in outers])[at])
    whole = torch.cat([part.full() for part in parts])
    # the query axis last in memory: the product with training gradients runs twice as fast
    return Full(whole[order.to(whole.device)].permute(1, 2, 0).contiguous().permute(2, 0, 1))


def _record(source: GradientSource, queries: Queries, cut: Cut, lengths_Q2: Tensor) -> dict[str, Any]:
    """What a result says of its questions."""
    sizes = source.layers.sizes
    energy_Q = lengths_Q2[:, 1] / lengths_Q2[:, 0].clamp(min=1e-300)
    whole = {name: outputs * inputs for name, (outputs, inputs) in sizes.items()}
    kept = {n: cut.rank * sum(sizes[n]) if n in cut.layers else count for n, count in whole.items()}
    itemsize = next(iter(queries.grads.values())).dtype.itemsize
    return {
        "questions": len(queries.ids),
        "rank": cut.rank if cut.layers else None,
        "layers": len(cut.layers),
        "of": len(sizes),
        "bytes": itemsize * len(queries.ids) * sum(kept.values()),
        "whole_bytes": itemsize * len(queries.ids) * sum(whole.values()),
        "energy": float(energy_Q.mean()),
        "lowest_energy": float(energy_Q.min()),
    }


def told(record: Mapping[str, Any]) -> str:
    """One line for people."""
    megabytes = f"{record['bytes'] / 1e6:,.1f} MB"
    if record["rank"] is None:
        return f"{record['questions']} held whole, {megabytes}"
    return (
        f"{record['questions']} held at rank {record['rank']} in {record['layers']} of {record['of']} layers: "
        f"{megabytes} instead of {record['whole_bytes'] / 1e6:,.1f}; they keep {record['energy']:.2%} of their squared "
        f"length, the least {record['lowest_energy']:.2%}"
    )
