"""Token by token and head by head, for a few rows after ranking: the numbers behind the tinted texts.

One pass over the chosen rows with one query per *token* of the question gives the whole query-token x row-token table;
its sums are the position shares and the question's own shares, so that everything adds up to the row's score exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from whence.errors import TaskError
from whence.gradients.source import Closed, LiveGradients
from whence.linalg.matrix_batch import Full, MatrixBatch
from whence.linalg.operators import Blocks, Gradients, Operator
from whence.scores.score import Queries, collect, prepare_queries
from whence.scores.tokens import TokenScores, by_input, by_output, by_position, split_targets
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches

CHUNK_NUMBERS = 100_000_000  # gradient numbers of query tokens held at once (float32: 400 MB)
BATCH_TOKENS = 4096
WORK_NUMBERS = 10_000_000_000  # beyond this many, a question has no table of token pairs
WORK_POSITIONS = 1 << 16  # nor beyond so many positions of its copies, each explaining one token: as of many rows


@dataclass(frozen=True)
class Cut:
    """How one side of a layer's matrix falls into attention heads.

    Attributes:
        side: ``rows`` (what a head reads: queries, keys, values) or ``columns`` (what it hands on).
        parts: (name, heads) one after the other; a fused projection has three, others one without a name.
        size: rows or columns of one head.
    """

    side: str
    parts: tuple[tuple[str, int], ...]
    size: int


Heads = Mapping[str, Cut]  # layer -> its cut


@dataclass(frozen=True)
class Way:
    """What a question's gradient goes through on its way to the rows of one stage: not a matrix over one set of layers.

    Attributes:
        apply: gradients of the question's layers -> of the rows' layers.
        direct: no iterative solve on the way.
    """

    apply: Callable[[Gradients], dict[str, MatrixBatch]]
    direct: bool


@dataclass(frozen=True)
class Look:
    """Where to look.

    Attributes:
        train: the training rows.
        asked: the questions; None when a query is not the loss of one question (a mixture, a measurement).
        inverse: what preconditions them.
        queries: Q preconditioned gradients.
        heads: layers with attention heads.
    """

    train: LiveGradients
    asked: LiveGradients | None
    inverse: Operator | Way
    queries: Queries
    heads: Heads = field(default_factory=dict)


@dataclass(frozen=True)
class QueryTokens:
    """What was found for one query.

    Attributes:
        positions: row id -> T shares by position.
        outputs: row id -> T shares by target token; empty for a label, or a model that has no second derivatives.
        inputs: row id -> T answers of the score to each token as input, which do not add up to it.
        pairs: row id -> T_query x T table, whose sum over query tokens is ``positions``; empty when left out.
        rest: row id -> the part of the score that belongs to no position.
        heads: row id -> {layer: shares of the heads}.
    """

    positions: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    pairs: dict[str, np.ndarray]
    rest: dict[str, float]
    heads: dict[str, dict[str, np.ndarray]]


def look_into(look: Look, query_id: str, ids: Sequence[str]) -> QueryTokens:
    """Token shares of some rows for one query."""
    one = only(look.queries, look.queries.ids.index(query_id))
    outputs, inputs = (_first(measure, look.train, one, ids=ids) for measure in (by_output, by_input))
    heads = by_head(look, one, ids)
    if look.asked is not None and affordable(look, query_id):
        pairs, rests = _pairs(look, query_id, ids)
        positions = {id_: table.sum(0) for id_, table in pairs.items()}
        return QueryTokens(positions, outputs, inputs, pairs=pairs, rest=rests, heads=heads)
    found = by_position(look.train, one, ids)
    rest = {id_: float(values[0]) for id_, values in found.unplaced.items()}
    positions = {id_: v[0] for id_, v in found.values.items()}
    return QueryTokens(positions, outputs, inputs, pairs={}, rest=rest, heads=heads)


def _first(
    measure: Callable[..., TokenScores], train: LiveGradients, one: Queries, *, ids: Sequence[str]
) -> dict[str, np.ndarray]:
    """Row id -> T numbers for the one query; empty for a loss of one piece, or a kernel without second derivatives."""
    try:
        return {id_: values[0] for id_, values in measure(train, one, ids).values.items()}
    except (TaskError, RuntimeError):
        return {}


def only(queries: Queries, q: int) -> Queries:
    """One of the queries."""
    grads = {name: matrices.rows(q, q + 1) for name, matrices in queries.grads.items()}
    return Queries((queries.ids[q],), grads, queries.measurements[q : q + 1])


def affordable(look: Look, query_id: str) -> bool:
    """May every token of the question become a query of its own?

    Never where each needs an iterative solve, nor where that would be the longest part of the run.
    """
    direct = look.inverse.direct if isinstance(look.inverse, Way) else isinstance(look.inverse, Blocks)
    if look.asked is None or not direct:
        return False
    question = _question(look.asked, query_id)
    numbers, positions = _followed(look) * question.loss_tokens, question.length * question.loss_tokens
    return numbers <= WORK_NUMBERS and positions <= WORK_POSITIONS


def _followed(look: Look) -> int:
    return sum(g.shape[1] * g.shape[2] for g in look.queries.grads.values())


def _question(asked: LiveGradients, query_id: str) -> Example:
    return next(e for e in asked.examples if e.id == query_id)


def _pairs(look: Look, query_id: str, ids: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Row id -> T_query x T table and the part without a position; the question's tokens in chunks that fit."""
    assert look.asked is not None
    question = _question(look.asked, query_id)
    copies = split_targets(question)
    step = max(1, CHUNK_NUMBERS // max(1, _followed(look)))
    tables: dict[str, np.ndarray] = {}
    rests = dict.fromkeys(ids, 0.0)
    for start in range(0, len(copies), step):
        part = copies[start : start + step]
        plan = plan_batches([e.length for e in part], token_budget=max(question.length, BATCH_TOKENS))
        queries = _prepared(replace(look.asked, examples=part, plan=plan, progress=None), look.inverse)
        found = by_position(look.train, queries, ids)
        at = [int(id_.rpartition("#")[2]) for id_ in queries.ids]
        for id_, values in found.values.items():
            tables.setdefault(id_, np.zeros((question.length, values.shape[1])))[at] = values
            rests[id_] += float(found.unplaced[id_].sum())
    return tables, rests


def carried(look: Look, query_id: str, weights: Mapping[str, float]) -> np.ndarray | None:
    """T shares of the question's tokens in what some rows together give to it, without a query for every token.

    The share of token t is ⟨∇loss_t, (G + damping)⁻¹ Σ w_n g_n⟩: a derivative of the token losses along the rows'
    direction, two backward passes for all tokens. None where the rows belong to another stage of training, or the model
    has no second derivatives.

    Args:
        look: where.
        query_id: the question.
        weights: row id -> its weight w in the sum.
    """
    if look.asked is None or isinstance(look.inverse, Way):
        return None
    rows = collect(look.train.only(list(weights)), "true")
    w_N = [weights[id_] for id_ in rows.ids]
    total = {layer: _summed(grads.full(), w_N) for layer, grads in rows.grads.items()}
    along = Queries((query_id,), look.inverse.apply(total), np.zeros(1))
    return _first(by_output, look.asked, along, ids=[query_id]).get(query_id)


def _summed(grads_NOI: Tensor, w_N: Sequence[float]) -> MatrixBatch:
    weights = torch.tensor(w_N, dtype=grads_NOI.dtype, device=grads_NOI.device)
    return Full(torch.einsum("n,noi->oi", weights, grads_NOI)[None])


def _prepared(source: LiveGradients, inverse: Operator | Way) -> Queries:
    if not isinstance(inverse, Way):
        return prepare_queries(source, inverse)
    raw = collect(source)
    return replace(raw, grads=inverse.apply(raw.grads))


@dataclass
class _ByHead:
    """The visitor of head shares: the inner product with a query, cut along the side that belongs to heads."""

    query: Queries
    heads: Heads
    values: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    _block: dict[str, np.ndarray] = field(default_factory=dict)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        cut = self.heads.get(layer)
        if cut is None:
            return
        product_BOI = grads.full() * self.query.grads[layer].full()
        shares = product_BOI.sum(2) if cut.side == "rows" else product_BOI.sum(1)
        at = 0
        for name, heads in cut.parts:  # what is left at the end, a column for the bias, belongs to no head
            part = shares[:, at : at + heads * cut.size].reshape(len(shares), heads, cut.size).sum(2)
            self._block[f"{layer}.{name}" if name else layer] = part.double().cpu().numpy()
            at += heads * cut.size

    def close(self, closed: Closed) -> None:
        for b, id_ in enumerate(closed.ids):
            self.values[id_] = {layer: block[b] for layer, block in self._block.items()}
        self._block = {}


def by_head(look: Look, one: Queries, ids: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Row id -> {layer: score of each attention head} for the layers that have heads."""
    if not look.heads:
        return {}
    visitor = _ByHead(one, look.heads)
    look.train.only(ids).visit(visitor)
    return visitor.values


def head_layers(names: Mapping[str, tuple[int, int]], *, heads: int, shared: int, size: int) -> dict[str, Cut]:
    """Layers whose rows (queries, keys, values) or columns (attention output) fall into heads.

    Known are the projections of Llama and its relatives, GPT-2's and Phi-3's fused ones (all queries, all keys, all
    values) and GPT-NeoX's (query, key and value of one head after the other). A layer of another width has no heads.

    Args:
        names: layer -> (O, I), the bias counted as a column.
        heads: attention heads.
        shared: key and value heads; fewer than ``heads`` where several queries share one.
        size: width of one.
    """
    fused = (("q", heads), ("k", shared), ("v", shared))
    rows = {
        "q_proj": Cut("rows", (("", heads),), size),
        **dict.fromkeys(("k_proj", "v_proj"), Cut("rows", (("", shared),), size)),
        **dict.fromkeys(("c_attn", "qkv_proj"), Cut("rows", fused, size)),
        "query_key_value": Cut("rows", (("", heads),), 3 * size),
    }
    out = Cut("columns", (("", heads),), size)
    found: dict[str, Cut] = {}
    for name, (outputs, inputs) in names.items():
        above, _, last = name.rpartition(".")
        cut = rows.get(last)
        if cut is not None and outputs == _width(cut):
            found[name] = cut
        inside = last in ("o_proj", "out_proj") or (last in ("c_proj", "dense") and "att" in above.rpartition(".")[2])
        if inside and inputs in (_width(out), _width(out) + 1):
            found[name] = out
    return found


def _width(cut: Cut) -> int:
    return sum(heads for _, heads in cut.parts) * cut.size
