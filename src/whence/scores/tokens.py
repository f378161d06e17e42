"""Which tokens carry a score. Two definitions, named apart, each adding up to the row's score exactly.

``by_position``: the gradient of a linear map is a sum over positions of outer products; the share of position t mixes
the loss read out at t with what later losses route through t (Grosse et al. 2023, section 3.3).

``by_output``: the row's loss is a sum over its target tokens; the share of target token t+1 is the derivative of *its*
loss along the preconditioned query: what learning that one token does. One forward and a double backward per query.

Both cost extra passes over the rows asked for only: rank first, then look into the top rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from whence.errors import TaskError
from whence.gradients.attention import twice_differentiable
from whence.gradients.capture import frozen
from whence.gradients.layers import Layer, Layers
from whence.gradients.source import Closed, LiveGradients
from whence.linalg.matrix_batch import Full, MatrixBatch, Outer
from whence.linalg.operators import Gradients
from whence.scores.score import Queries
from whence.tasks.base import Batch, Example, device_of, move


@dataclass(frozen=True)
class TokenScores:
    """Token shares of rows' scores.

    Attributes:
        query_ids: Q ids.
        values: row id -> Q x T_row shares; row sums are the scores (but for ``unplaced``).
        unplaced: row id -> Q parts of the score that belong to no token (layers without a token axis).
    """

    query_ids: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    unplaced: Mapping[str, np.ndarray]


@dataclass
class _ByPosition:
    """The visitor of position shares."""

    queries: Gradients
    lengths: Mapping[str, int]
    values: dict[str, np.ndarray] = field(default_factory=dict)
    unplaced: dict[str, np.ndarray] = field(default_factory=dict)
    _blocks: list[Tensor] = field(default_factory=list)

    def see(self, layer: str, grads: MatrixBatch) -> None:
        assert isinstance(grads, Outer), "token shares need the token sums, which an index no longer has"
        self._blocks.append(grads.dot_by_token(self.queries[layer]))

    def close(self, closed: Closed) -> None:
        tokens = max(self.lengths[id_] for id_ in closed.ids)
        placed, rest = _folded(self._blocks, tokens)
        for b, id_ in enumerate(closed.ids):
            bad = np.nan if not bool(closed.finite[b]) else 0.0
            self.values[id_] = placed[b, : self.lengths[id_]].T.double().cpu().numpy() + bad
            self.unplaced[id_] = rest[b].double().cpu().numpy() + bad
        self._blocks = []


def _folded(blocks: Sequence[Tensor], tokens: int) -> tuple[Tensor, Tensor]:
    """(B x T x Q, B x Q): uses of one module follow each other along T and are folded onto the same positions."""
    batch, _, queries = blocks[0].shape
    placed, rest = blocks[0].new_zeros(batch, tokens, queries), blocks[0].new_zeros(batch, queries)
    for block in blocks:
        if block.shape[1] % tokens == 0:
            placed += block.view(batch, -1, tokens, queries).sum(1)
        else:
            rest += block.sum(1)
    return placed, rest


def by_position(source: LiveGradients, queries: Queries, ids: Sequence[str]) -> TokenScores:
    """Shares of the positions of some training rows in their scores.

    Args:
        source: the training rows.
        queries: *preconditioned* query gradients.
        ids: the rows to look into.
    """
    part = source.only(ids)
    visitor = _ByPosition(queries.grads, {e.id: e.length for e in part.examples})
    part.visit(visitor)
    return TokenScores(queries.ids, visitor.values, visitor.unplaced)


def by_output(source: LiveGradients, queries: Queries, ids: Sequence[str]) -> TokenScores:
    """Shares of the target tokens of some training rows in their scores; entry t belongs to token t of the row.

    The first token is nobody's target and has share 0.

    Args:
        source: the training rows.
        queries: *preconditioned* query gradients.
        ids: the rows to look into.

    Raises:
        TaskError: the task's loss is not a sum over tokens.
    """
    part = source.only(ids)
    if not hasattr(part.task, "token_losses"):
        raise TaskError(
            f"task {part.task.name} has one loss per row, not one per token",
            wanted="a task with token losses (causal_lm)",
            try_="by_position",
        )
    parts = [_directional(part, queries, q) for q in range(len(queries.ids))]
    values = {e.id: np.stack([p[e.id] for p in parts]) for e in part.examples}
    return TokenScores(queries.ids, values, {e.id: np.zeros(len(parts)) for e in part.examples})


def by_input(source: LiveGradients, queries: Queries, ids: Sequence[str]) -> TokenScores:
    """How the score of some training rows answers to each token *as input*: d score / d δ, its embedding times 1 + δ.

    Not a share: these do not add up to the score.

    Raises:
        TaskError: the model has no input embedding.
    """
    part = source.only(ids)
    find = getattr(part.model, "get_input_embeddings", None)
    embedding = find() if find is not None else None
    if not isinstance(embedding, nn.Module):
        raise TaskError("this model has no input embedding", wanted="a model over tokens", try_="by_position")
    parts = [_directional(part, queries, q, embedding) for q in range(len(queries.ids))]
    values = {e.id: np.stack([p[e.id] for p in parts]) for e in part.examples}
    return TokenScores(queries.ids, values, {e.id: np.zeros(len(parts)) for e in part.examples})


def _directional(
    source: LiveGradients, queries: Queries, q: int, embedding: nn.Module | None = None
) -> dict[str, np.ndarray]:
    """By row id, along one preconditioned query: derivatives of target tokens' losses, or by embedded input tokens."""
    direction = {name: grads.rows(q, q + 1).full()[0] for name, grads in queries.grads.items()}
    found: dict[str, np.ndarray] = {}
    with frozen(source.model), twice_differentiable(source.model), torch.enable_grad():
        device = device_of(source.model)
        for group in source.plan.batches:
            chosen = [source.examples[i] for i in group]
            batch = move(source.task.collate(chosen), device)
            if embedding is None:
                shares_BT = _token_derivatives(source, batch, direction)
            else:
                shares_BT = _input_derivatives(source, batch, direction, embedding)
            for b, example in enumerate(chosen):
                found[example.id] = shares_BT[b, : example.length]
    return found


def _token_derivatives(source: LiveGradients, batch: Batch, direction: Mapping[str, Tensor]) -> np.ndarray:
    """B x T derivatives of token losses in ε, the weights being W + ε·direction, shifted to the token they price.

    Forward mode by two backward passes: the gradient in ε of Σ w_t·loss_t is linear in the weights w, and its
    derivative in w is what is wanted. Works wherever second derivatives exist.
    """
    epsilon = torch.zeros(
        (), dtype=next(iter(direction.values())).dtype, device=batch.labels.device, requires_grad=True
    )
    with _moved(source.layers, direction, epsilon):
        losses = source.task.token_losses(source.task.outputs(source.model, batch), batch)  # type: ignore[attr-defined]
        weights = torch.ones_like(losses, requires_grad=True)
        (slope,) = torch.autograd.grad((losses * weights).sum(), epsilon, create_graph=True)
        (shares,) = torch.autograd.grad(slope, weights)
    return nn.functional.pad(shares[:, :-1], (1, 0)).double().cpu().numpy()


def _input_derivatives(
    source: LiveGradients, batch: Batch, direction: Mapping[str, Tensor], embedding: nn.Module
) -> np.ndarray:
    """B x T derivatives, in δ at 0, of the loss's slope along the direction, embeddings being multiplied by 1 + δ."""
    first = next(iter(direction.values()))
    epsilon = torch.zeros((), dtype=first.dtype, device=batch.labels.device, requires_grad=True)
    shape = batch.labels.shape if batch.mask is None else batch.mask.shape
    delta_BT = torch.zeros(shape, dtype=first.dtype, device=batch.labels.device, requires_grad=True)

    def scale(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * (1 + delta_BT).to(output.dtype)[..., None]

    handle = embedding.register_forward_hook(scale)
    try:
        with _moved(source.layers, direction, epsilon):
            losses = source.task.losses(source.task.outputs(source.model, batch), batch)
            (slope,) = torch.autograd.grad(losses.sum(), epsilon, create_graph=True)
            (shares,) = torch.autograd.grad(slope, delta_BT)
    finally:
        handle.remove()
    return shares.double().cpu().numpy()


@contextmanager
def _moved(layers: Layers, direction: Mapping[str, Tensor], epsilon: Tensor) -> Iterator[None]:
    """Every followed map computes with W + ε·direction inside."""
    handles = []
    for layer in layers:
        matrix_OI = direction[layer.name]
        for module in layer.modules:
            handles.append(module.register_forward_hook(_linear_move(layer, matrix_OI, epsilon)))
        for embedding in layer.embeddings:
            handles.append(embedding.register_forward_hook(_embedding_move(matrix_OI, epsilon)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _linear_move(layer: Layer, matrix_OI: Tensor, epsilon: Tensor) -> Callable[..., Tensor]:
    weight, bias = (matrix_OI[:, :-1], matrix_OI[:, -1]) if layer.bias else (matrix_OI, None)

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = layer.kind.inputs(module, args[0])
        step = nn.functional.linear(rows.to(weight.dtype), weight, bias)
        if not layer.kind.shares_inputs:  # convolutions: positions x channels back to the image
            step = step.transpose(1, 2).reshape(output.shape)
        return output + (epsilon * step).to(output.dtype)

    return hook


def _embedding_move(matrix_VI: Tensor, epsilon: Tensor) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + (epsilon * matrix_VI[args[0]]).to(output.dtype)

    return hook


def split_targets(example: Example) -> list[Example]:
    """One copy of a row per target token, each with that label only: per-query-token gradients by the ordinary loop.

    Ids are ``id#t`` with t the token's position. Their gradients add up to the row's.
    """
    copies = []
    for t in np.flatnonzero(example.labels[1:] != -100) + 1:
        labels = np.full_like(example.labels, -100)
        labels[t] = example.labels[t]
        copies.append(replace(example, id=f"{example.id}#{t}", labels=labels, loss_tokens=1))
    return copies


def restrict_targets(example: Example, start: int, stop: int) -> Example:
    """A query about a span: only target tokens start..stop-1 are explained.

    Raises:
        TaskError: no target token lies in the span.
    """
    positions = np.arange(len(example.labels))
    labels = np.where((positions >= start) & (positions < stop), example.labels, -100)
    kept = int((labels[1:] != -100).sum())
    if kept == 0:
        raise TaskError(
            f"tokens {start}:{stop} of {example.id} carry no loss",
            wanted=f"a span inside the response ({example.length} tokens in all)",
            try_="a wider span",
        )
    return replace(example, labels=labels, loss_tokens=kept)


def mixed(raw: Queries, weights_PQ: np.ndarray, ids: Sequence[str]) -> Queries:
    """New queries as weighted sums of query gradients: a set as one direction (1/Q each), A minus B (+1, -1).

    Args:
        raw: Q gradients, not yet preconditioned.
        weights_PQ: weights of the new queries.
        ids: P names.
    """
    grads: dict[str, MatrixBatch] = {}
    for layer, matrices in raw.grads.items():
        full = matrices.full()
        weights = torch.as_tensor(weights_PQ, dtype=full.dtype, device=full.device)
        grads[layer] = Full(torch.einsum("pq,qoi->poi", weights, full))
    return Queries(tuple(ids), grads, np.asarray(weights_PQ) @ raw.measurements)
