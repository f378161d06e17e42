"""Tail-patch (Chang et al. 2024): does one training step on the rows put first make the answer likelier?

From the trained weights one optimiser step is taken on a single row, and the change of each question's log-probability
is noted; then the weights go back. Averaged over the k rows that a contender puts first, against random rows and those
of word search. No retraining, and no proof of it: by construction this favours whoever aligns with gradients, so it
belongs beside retrieval and retraining, not in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.errors import OptionError
from whence.evaluate.comparing import bars, by_mean, lead
from whence.evaluate.journal import Journal
from whence.evaluate.outcome import Chart, Curve, Outcome
from whence.evaluate.statistics import Interval, mean_interval
from whence.gradients.layers import parameters_of
from whence.gradients.source import LiveGradients
from whence.tasks.base import move
from whence.watch import Silent, Watcher

Optimiser = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken.

    Attributes:
        optimiser: ``adamw`` with a fresh state (its first step moves every weight by about ``rate``), or ``sgd``.
        rate: learning rate; best the one that training ended with.
        k: rows per question and contender.
    """

    optimiser: Optimiser = "adamw"
    rate: float = 1e-4
    k: int = 10

    def __post_init__(self) -> None:
        if self.optimiser not in ("adamw", "sgd"):
            raise OptionError(f"optimiser {self.optimiser!r}", wanted="adamw or sgd")
        if not self.rate > 0 or self.k < 1:
            raise OptionError(f"rate {self.rate} and k {self.k}", wanted="a rate above 0 and at least one row")


def tailpatch(
    train: LiveGradients,
    queries: LiveGradients,
    scores: Mapping[str, np.ndarray],
    *,
    settings: StepSettings | None = None,
    journal: Journal | None = None,
    watch: Watcher | None = None,
) -> Outcome:
    """Steps on everybody's first rows.

    Args:
        train: N training rows.
        queries: Q questions, same model and task; all of their loss counts.
        scores: contender -> Q x N.
        settings: see ``StepSettings``.
        journal: finished rows are kept there and not stepped on again.
        watch: hears about progress.

    Returns:
        Outcome; ``values`` holds Q x k changes in nats per contender, positive = the answer became likelier.
    """
    settings = settings or StepSettings()
    first = {name: first_rows(values, settings.k) for name, values in scores.items()}
    wanted = _wanted(first, train.ids, queries.ids)
    before, changes = step_changes(
        train, queries, wanted, settings=settings, journal=journal or Journal(), watch=watch or Silent()
    )
    nats = {
        name: np.array([
            [changes[train.ids[n], id_] if n >= 0 else np.nan for n in row]
            for id_, row in zip(queries.ids, chosen, strict=True)
        ])
        for name, chosen in first.items()
    }  # fmt: skip
    return _outcome(
        nats, first, np.array([before[id_] for id_ in queries.ids]), train=train, queries=queries, settings=settings
    )


def first_rows(scores_QN: np.ndarray, k: int, *, seed: int = 0) -> np.ndarray:
    """Q x k columns with the highest scores, best first; ties in random order, -1 where fewer have a score."""
    dice = np.random.default_rng(seed).random(scores_QN.shape)
    key = np.where(np.isnan(scores_QN), np.inf, -np.asarray(scores_QN, dtype=np.float64))
    order = np.lexsort((dice, key), axis=1)[:, :k]
    return np.where(np.isinf(np.take_along_axis(key, order, axis=1)), -1, order)


def _wanted(
    first: Mapping[str, np.ndarray], train_ids: Sequence[str], query_ids: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Row id -> the questions that anybody put it first for, in the order of the rows."""
    found: dict[int, set[int]] = {}
    for chosen in first.values():
        for q, row in enumerate(chosen.tolist()):
            for n in row:
                if n >= 0:
                    found.setdefault(n, set()).add(q)
    return {train_ids[n]: tuple(query_ids[q] for q in sorted(found[n])) for n in sorted(found)}


def step_changes(
    train: LiveGradients,
    queries: LiveGradients,
    wanted: Mapping[str, Sequence[str]],
    *,
    settings: StepSettings,
    journal: Journal,
    watch: Watcher,
) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Losses before any step, and (row, question) -> how many nats likelier the answer is after a step on the row.

    The model given is left as it is; a copy is stepped with.
    """
    model, layers = deepcopy((train.model, train.layers))
    train = replace(train, model=model.eval(), layers=layers, progress=None)
    queries = replace(queries, model=model, progress=None)
    moving = _moving(train)
    start = [p.detach().clone() for p in moving]
    before = queries.losses()
    changes: dict[tuple[str, str], float] = {}
    example = {e.id: e for e in train.examples}
    for done, (row, asked) in enumerate(wanted.items()):
        watch.step("step", done, len(wanted))
        kept = journal[row]["change"] if row in journal else {}
        missing = [id_ for id_ in asked if id_ not in kept]
        if missing:
            with _stepped(train, example[row], moving=moving, start=start, settings=settings):
                after = queries.only(missing).losses()
            journal.put(row, {"change": {**kept, **{id_: before[id_] - after[id_] for id_ in missing}}})
        kept = journal[row]["change"]
        changes |= {(row, id_): float("nan") if kept[id_] is None else kept[id_] for id_ in asked}
    watch.step("step", len(wanted), len(wanted))
    return before, changes


def _moving(train: LiveGradients) -> list[torch.nn.Parameter]:
    """What training moves: whatever asks for gradients; of a model loaded frozen (an adapter's), the followed layers.

    Evaluation mode: a step has no dropout.
    """
    found = [p for p in train.model.parameters() if p.requires_grad and p.is_floating_point()]
    if not found:
        followed = {id(p): p for layer in train.layers for p in parameters_of(layer)}
        found = [p for p in followed.values() if p.is_floating_point()]
        for p in found:
            p.requires_grad_(True)
    return found


@contextmanager
def _stepped(
    train: LiveGradients,
    example: Any,
    *,
    moving: Sequence[torch.nn.Parameter],
    start: Sequence[Tensor],
    settings: StepSettings,
) -> Iterator[None]:
    """One step on the row's mean loss per token, as trainers take it; undone on leaving."""
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.SGD
    optimiser = kind(moving, lr=settings.rate, weight_decay=0.0)
    batch = move(train.task.collate([example]), moving[0].device)
    loss = train.task.losses(train.task.outputs(train.model, batch), batch).sum() / max(1, example.loss_tokens)
    loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moving, start, strict=True):
                parameter.copy_(value)


def _outcome(
    nats: Mapping[str, np.ndarray],
    first: Mapping[str, np.ndarray],
    before_Q: np.ndarray,
    *,
    train: LiveGradients,
    queries: LiveGradients,
    settings: StepSettings,
) -> Outcome:
    means = {name: _row_means(each) for name, each in nats.items()}
    likelier = {name: _row_means(np.exp(-before_Q)[:, None] * np.expm1(each)) for name, each in nats.items()}
    ranked = by_mean(means)
    rows = [
        (
            name,
            1000 * found.mean,
            Interval(found.mean, 1000 * found.low, 1000 * found.high).span,
            100 * mean_interval(likelier[name]).mean,
            100 * float(np.nanmean(nats[name] > 0)),
        )
        for name, found in ranked
    ]
    order = [name for name, _ in ranked]
    places = tuple(float(n + 1) for n in range(settings.k))
    by_place = [
        Curve(name, places[: nats[name].shape[1]], tuple(mean_interval(c).mean for c in nats[name].T)) for name in order
    ]
    return Outcome(
        verb="tailpatch",
        title="Does one training step on the rows put first make the answer likelier?",
        columns=("contender", "millinats a step", "95 % interval", "probability, points", "steps that help, %"),
        rows=tuple(rows),
        charts=(
            bars("Change of the answer's log-probability by one step", "nats", {"mean": dict(ranked)}, order),
            Chart("By place in the ranking", "place", "nats", tuple(by_place)),
        ),
        values={
            "query_ids": list(queries.ids),
            "loss_before": before_Q,
            "contenders": {
                name: {"nats": each, "rows": [[train.ids[n] if n >= 0 else None for n in row] for row in first[name]]}
                for name, each in nats.items()
            },
        },
        words=tuple(filter(None, (lead(means, "nats per step"), *_limits(settings)))),
        about={**vars(settings), "queries": len(queries.ids), "rows": len(train.ids)},
    )


def _limits(settings: StepSettings) -> tuple[str, str]:
    how = "a fresh AdamW" if settings.optimiser == "adamw" else "plain gradient descent"
    return (
        f"Each step is one row's, by {how} at rate {settings.rate:g}, from the same weights; all of them are undone.",
        "A step along a gradient is what gradient methods score: beside retrieval and retraining, not instead of them.",
    )


def _row_means(values_QK: np.ndarray) -> np.ndarray:
    known = np.isfinite(values_QK)
    count = known.sum(1)
    total = np.where(known, values_QK, 0.0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
