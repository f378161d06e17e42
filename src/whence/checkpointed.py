"""Attribution averaged over the checkpoints of a training run.

Every checkpoint is a model of its own, with its own curvature and its own scores; these are added up. With gradient
dot products and learning rates as weights that is TracInCP (Pruthi et al. 2020, eq. 1); any other method is averaged.
Rows and questions are read and encoded once, one checkpoint is in memory at a time, and no pickle is opened.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from whence.assemble import assemble, manifest
from whence.curvature.base import Factors, Method, Problem
from whence.errors import ModelError
from whence.gradients.checkpoints import Checkpoint, find_checkpoints, given_checkpoints, mean_weights, tracin_weights
from whence.linalg.damping import Damping
from whence.linalg.operators import Operator
from whence.options import TraceOptions
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.questions import answered, focused, pose, posed_views
from whence.recorded import record_of
from whence.results import Scores
from whence.resuming import resuming_of
from whence.scores.score import collect, combine
from whence.scoring import check_losses, fitted, measured, normalised, scored, top
from whence.stages import PROBES, Ask
from whence.tasks.base import Task
from whence.watch import Watcher

TRACIN = "identity"  # the method whose natural weights are learning rates
ADDED = ("values", "per_layer", "self_influence")


@dataclass(frozen=True)
class _Whole:
    """As asked, but all scores are kept until they are added up."""

    method: Method
    damping: Damping
    options: TraceOptions
    task: Task | None
    watch: Watcher


@dataclass(frozen=True)
class _Part:
    """One checkpoint's scores, and what is recorded of the fit behind them."""

    found: dict[str, Any]
    factors: Factors
    operator: Operator


def attribute_checkpoints(ask: Ask, model: Any, *, train: Any, query: Any) -> tuple[Scores, dict[str, Any]]:
    """Scores over the checkpoints that ``options.checkpoints`` names, and what ``run.json`` holds beside them.

    Args:
        ask: method, damping, options.
        model: whose tokenizer and task read the rows, and which the result names: the final model.
        train: training rows.
        query: questions.

    Raises:
        ModelError: no checkpoints, or one with other layers than ``model``.
        OptionError: learning rates are asked for and not known.
        WhenceError: as ``whence.attribute``.
    """
    started = time.perf_counter()
    checkpoints = checkpoints_of(ask.options)
    weights = weights_of(ask, checkpoints)
    subject = open_subject(model, ask.options, ask.watch, task=ask.task)
    trained = open_rows(subject, train, what="train")
    asked = focused(subject, open_rows(subject, answered(subject, query), what="query"))
    said = f"{len(checkpoints)} from step {checkpoints[0].step:,} to {checkpoints[-1].step:,}, {_weighting(ask)}"
    ask.watch.note("checkpoints", f"average   {said}", checkpoints=listed(checkpoints, weights))
    part = _added(ask, subject, trained, measured(ask, asked), weighted=list(zip(checkpoints, weights, strict=True)))
    found = {**top(ask, part.found), "query_rows": posed_views(subject, asked)}
    seconds = {"total": time.perf_counter() - started}
    scores = assemble(subject, trained, asked, found=found, factors=part.factors, seconds=seconds)
    record = manifest(subject, trained, asked, factors=part.factors, operator=part.operator, damping=ask.damping)
    about = {
        **scores.about,
        "checkpoints": listed(checkpoints, weights),
        "warnings": [*scores.about.get("warnings", ()), *_warnings(ask, said)],
    }
    return scores.with_(about=about), {**record, "checkpoints": listed(checkpoints, weights)}


def checkpoints_of(options: TraceOptions) -> list[Checkpoint]:
    """Those of a Trainer's output folder, or the folders named one by one.

    Raises:
        ModelError: see ``find_checkpoints`` and ``given_checkpoints``.
    """
    places = [place.strip() for place in str(options.checkpoints).split(",") if place.strip()]
    if len(places) != 1:
        return given_checkpoints(places)
    record = record_of(places[0], options)
    rates = None if record is None else dict(enumerate(record.rates, start=1))
    return find_checkpoints(places[0], rates=rates)


def weights_of(ask: Ask, checkpoints: Sequence[Checkpoint]) -> list[float]:
    """Learning rates for gradient dot products (TracInCP), equal weights otherwise, or as asked."""
    return tracin_weights(checkpoints) if _weighting(ask) == "learning rates" else mean_weights(checkpoints)


def _weighting(ask: Ask) -> str:
    asked = ask.options.checkpoint_weights
    tracin = asked == "learning_rate" or (asked == "auto" and ask.method.name == TRACIN)
    return "learning rates" if tracin else "mean"


def listed(checkpoints: Sequence[Checkpoint], weights: Sequence[float]) -> list[dict[str, Any]]:
    """What is recorded of the checkpoints."""
    return [
        {"folder": c.path.name, "step": c.step, "learning_rate": c.learning_rate, "weight": w}
        for c, w in zip(checkpoints, weights, strict=True)
    ]


def _warnings(ask: Ask, said: str) -> list[str]:
    tracin = "sums of products of gradients times learning rates, not removal effects in nats"
    return [f"over checkpoints: {said}", *([tracin] if _weighting(ask) == "learning rates" else [])]


def _added(
    ask: Ask, subject: Subject, trained: Material, asked: Material, *, weighted: Sequence[tuple[Checkpoint, float]]
) -> _Part:
    """The weighted sum over checkpoints, with the fit of the last one; one checkpoint in memory at a time."""
    total: dict[str, Any] = {}
    part: _Part | None = None
    for checkpoint, weight in weighted:
        part = _one(ask, subject, trained, asked, checkpoint=checkpoint)
        for name in ADDED:
            value = part.found.get(name)
            if value is not None:
                known = [] if name not in total else [total[name]]
                total[name] = combine([*known, value], [*(1.0 for _ in known), weight])
    assert part is not None
    return replace(part, found={**part.found, **total})


def _one(ask: Ask, subject: Subject, trained: Material, asked: Material, *, checkpoint: Checkpoint) -> _Part:
    """Fit and score at one checkpoint."""
    ask.watch.note("checkpoint", f"step      {checkpoint.step:,}: {checkpoint.path}", step=checkpoint.step)
    options = ask.options.model_copy(update={"top_k": None})
    whole = _Whole(ask.method, ask.damping, options, ask.task, ask.watch)
    here = open_subject(str(checkpoint.path), options, ask.watch, task=subject.task)
    _check_layers(subject, here, checkpoint)
    rows, questions = (_moved(side, here) for side in (trained, asked))
    check_losses(questions)
    probe = collect(questions.source.sample(PROBES))
    kept, step = resuming_of(ask), f"{checkpoint.step}"
    keeper = None if kept is None else kept.fit(whole, here, rows, probe=probe.grads, name=f"fit-{step}")
    factors, _ = fitted(whole, rows, probe, keeper)
    problem = Problem(rows.source, options.fisher, options.seed, questions.source)
    operator = ask.method.operator(factors, problem)
    inverse = operator.power(-1, ask.damping)
    queries = pose(here, questions, inverse)
    blocks = None if kept is None else kept.scores(whole, here, rows, queries=queries, name=f"score-{step}")
    found = scored(whole, rows, queries, inverse, blocks=blocks)
    return _Part(normalised(whole, found, queries), factors, operator)


def _moved(side: Material, here: Subject) -> Material:
    return replace(side, source=replace(side.source, model=here.loaded.model, layers=here.layers))


def _check_layers(subject: Subject, here: Subject, checkpoint: Checkpoint) -> None:
    if dict(here.layers.sizes) != dict(subject.layers.sizes):
        odd = sorted(set(here.layers.sizes.items()) ^ set(subject.layers.sizes.items()))[0][0]
        raise ModelError(
            f"{checkpoint.path.name} has other layers than the model: {odd}",
            wanted="checkpoints of this model's own training",
            try_="the model that the Trainer saved into the same output folder",
        )
