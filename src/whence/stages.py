"""Attribution through two stages of training: questions to a fine-tuned model, answered with pre-training rows as well.

The two stages have their own model, rows, curvature and number of rows N. They become one ``Scores``, in which a score
divided by ``n_train`` is the removal effect in nats for a row of either stage, so that the stages can be compared.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from whence import resuming
from whence.assemble import assemble, manifest
from whence.candidates.lexical import bm25_scores
from whence.curvature.base import Factors, Method, Problem
from whence.curvature.fit import FitOptions, fit
from whence.curvature.staged import Staged, checked_alpha, implied_alpha, shared_layers, through_tuning, tuned_inverse
from whence.errors import ModelError, OptionError
from whence.gradients.layers import find_layers
from whence.linalg.damping import Damping, absolute
from whence.linalg.operators import Blocks, Gradients, Operator
from whence.loading.places import read_object
from whence.options import TraceOptions
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.results import RowView, Scores
from whence.scores.keeping import Pass
from whence.scores.score import Pairwise, collect
from whence.scores.sinks import AllScores, TopK
from whence.scores.tracks import Way
from whence.tasks.base import Task
from whence.tokenwise import Sides, look_closer, side_by_side
from whence.watch import Watcher

PRETRAINING, TUNING = "pre-training", "fine-tuning"
PROBES = 8  # query gradients for the split-half check of a fit
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Pretraining:
    """The stage before.

    Attributes:
        model: what fine-tuning started from: anything ``load_model`` takes.
        data: rows it was trained on: anything ``read_rows`` takes.
        alpha: pull of fine-tuning towards these weights, in units of the mean summed loss; ``auto`` derives it from the
            learning rates in the fine-tuned model's ``trainer_state.json``.
        size: number of rows of that training, where ``data`` are only some of them; None = these, or as recorded.
    """

    model: Any
    data: Any
    alpha: float | str = "auto"
    size: int | None = None


class Ask(resuming.Ask, Protocol):
    """How to go about it."""

    @property
    def task(self) -> Task | None: ...
    @property
    def watch(self) -> Watcher: ...


@dataclass(frozen=True)
class _With:
    """As asked, with the damping of a stage."""

    ask: Ask
    damping: Damping

    @property
    def method(self) -> Method:
        return self.ask.method

    @property
    def options(self) -> TraceOptions:
        return self.ask.options


@dataclass(frozen=True)
class Stage:
    """One stage of training: model, rows and curvature."""

    name: str
    subject: Subject
    rows: Material
    factors: Factors
    operator: Operator


def attribute_stages(
    ask: Ask, before: Pretraining, model: Any, *, train: Any, query: Any
) -> tuple[Scores, dict[str, Any]]:
    """Scores of fine-tuning and pre-training rows, and what ``run.json`` holds beside them.

    Raises:
        OptionError: an option that two stages cannot have, or no alpha.
        WhenceError: as ``whence.attribute``.
    """
    started = time.perf_counter()
    check_stage_options(ask.options)
    subject = tuned_subject(ask, model)
    trained = open_rows(subject, train, what="train")
    asked = open_rows(subject, query, what="query")
    base, rows = _open_base(ask, before)
    shared = shared_layers(subject.layers, base.layers)
    base = replace(base, layers=find_layers(base.loaded.model, tuple(shared.values())))
    rows = replace(rows, source=replace(rows.source, layers=base.layers))
    alpha = find_alpha(before.alpha, model, trained)
    _note(ask, shared, alpha)
    raw = collect(asked.source)
    probe = raw.grads if len(raw.ids) <= PROBES else {name: g.rows(0, PROBES) for name, g in raw.grads.items()}
    second = fit_stage(ask, TUNING, subject, trained, damping=absolute(alpha), probe=probe)
    inverse = tuned_inverse(second.operator, alpha)
    first = fit_stage(
        ask, PRETRAINING, base, rows, damping=ask.damping, probe=through_tuning(inverse.apply(probe), alpha, shared)
    )
    staged = Staged(inverse, first.operator.power(-1, ask.damping), alpha, shared)
    direct = isinstance(staged.tuned, Blocks) and isinstance(staged.pretrained, Blocks)
    ways = Way(staged.to_tuning_rows, direct), Way(staged.to_pretraining_rows, direct)
    parts = [
        score_stage(ask, stage, asked, Sides(stage.subject, stage.rows, asked, way, raw, subject))
        for stage, way in zip((second, first), ways, strict=True)
    ]
    seconds = {"total": time.perf_counter() - started}
    scores = told(ask, joined(parts), seconds, alpha=alpha, shared=shared)
    return strongest(scores, ask.options.top_k), _record(ask, second, first, asked, alpha=alpha)


def tuned_subject(ask: Ask, model: Any) -> Subject:
    """The fine-tuned model; an adapter is merged, so that its layers are those of its base."""
    subject = open_subject(model, ask.options.model_copy(update={"layers": ()}), ask.watch, task=ask.task)
    merge: Callable[[], Any] | None = getattr(subject.loaded.model, "merge_and_unload", None)
    tuned = subject.loaded.model
    if merge is not None:
        live = not isinstance(model, (str, Path))
        tuned = (copy.deepcopy(tuned) if live else tuned).merge_and_unload()  # type: ignore[operator]
        ask.watch.note("adapter", "adapter   merged: fine-tuning is taken as a change of the base's own weights")
    layers = find_layers(tuned, ask.options.layers)
    return replace(subject, loaded=replace(subject.loaded, model=tuned), layers=layers, options=ask.options)


def find_alpha(asked: float | str, model: Any, trained: Material) -> float:
    """The pull towards the pre-trained weights: as given, or what the trainer's learning rates imply.

    Raises:
        OptionError: ``auto`` without a readable trainer state, or not a number above 0.
    """
    if asked != "auto":
        try:
            return checked_alpha(float(asked))
        except ValueError as error:
            raise OptionError(f"alpha = {asked!r}", wanted="a number above 0, or auto") from error
    about = trained.about()
    try:
        known = trained.recorded
        rates = known.record.rates if known else learning_rates(read_object(Path(str(model)) / TRAINER_STATE))
        return implied_alpha(rates, loss_tokens=about["loss_tokens"] / max(1, about["used"]))
    except (ModelError, OptionError) as error:
        raise OptionError(
            f"alpha = auto, but {str(model)[:80]} has no {TRAINER_STATE} with learning rates",
            wanted="how firmly fine-tuning held on to the pre-trained weights, a number above 0",
            try_="alpha = mean loss tokens per row / (learning rate x steps), such as --alpha 0.5",
        ) from error


def learning_rates(state: Mapping[str, Any]) -> list[float]:
    """One learning rate per step from a Hugging Face ``trainer_state.json``, which logs every few steps."""
    logged = [
        (int(entry["step"]), float(entry["learning_rate"]))
        for entry in state.get("log_history", ())
        if isinstance(entry, Mapping) and "learning_rate" in entry and "step" in entry
    ]
    rates: list[float] = []
    for step, rate in sorted(logged):
        rates += [rate] * (step - len(rates))
    last = int(state.get("global_step") or 0)
    return rates + [rates[-1] if rates else 0.0] * max(0, last - len(rates))


def joined(parts: list[Scores]) -> Scores:
    """The stages side by side; values are rescaled to one N, so that removal effects stay what they are.

    Sources are named after the stage, and a row id that both stages have gets the stage's name in front.
    """
    second, first = parts
    total = second.n_train + first.n_train
    taken = set(second.train_ids)
    rename = {id_: f"{PRETRAINING}/{id_}" if id_ in taken else id_ for id_ in first.train_ids}
    views = {id_: _sourced(view, TUNING) for id_, view in second.train_rows.items()}
    views |= {
        rename[id_]: replace(_sourced(view, PRETRAINING), id=rename[id_]) for id_, view in first.train_rows.items()
    }
    ids = (*second.train_ids, *rename.values())
    lexical = None
    if second.lexical is not None and first.lexical is not None:
        texts = [view.text for view in second.query_rows.values()]
        lexical = bm25_scores(texts, [views[id_].text for id_ in ids])
    return second.with_(
        values=np.concatenate([part.values * (total / part.n_train) for part in parts], axis=1),
        train_ids=ids,
        n_train=total,
        train_rows=views,
        lexical=lexical,
        **side_by_side(parts, ({id_: id_ for id_ in second.train_ids}, rename), total),
        about={
            **second.about,
            "pretraining": first.about.get("train"),
            "stages": {TUNING: second.n_train, PRETRAINING: first.n_train},
            "quarantine": [entry for part in parts for entry in part.about.get("quarantine", ())],
        },
    )


def _sourced(view: RowView, stage: str) -> RowView:
    return replace(view, source=f"{stage}: {view.source}" if view.source else stage)


def check_stage_options(options: TraceOptions) -> None:
    """Refuse what rows of two stages cannot have together.

    Raises:
        OptionError: names the setting.
    """
    for name, plain in (("normalise", "none"), ("per_layer", False), ("self_influence", False)):
        if getattr(options, name) != plain:
            raise OptionError(
                f"{name} = {getattr(options, name)} through two stages",
                wanted=f"{name} = {plain}: rows of the two stages have no common metric",
                try_="a trace of one stage at a time",
            )


def _open_base(ask: Ask, before: Pretraining) -> tuple[Subject, Material]:
    options = ask.options.model_copy(update={"task": "auto", "train_size": before.size})
    base = open_subject(before.model, options, ask.watch)
    return base, open_rows(base, before.data, what="train")


def _note(ask: Ask, shared: Mapping[str, str], alpha: float) -> None:
    said = f"stages    {len(shared)} layers are in both models · alpha {alpha:.3g}: the pull towards the base weights"
    ask.watch.note("stages", said, shared=dict(shared), alpha=alpha)


def fit_stage(ask: Ask, name: str, subject: Subject, rows: Material, *, damping: Damping, probe: Gradients) -> Stage:
    """The curvature of one stage, on as many rows as the options say."""
    options = ask.options
    settings = FitOptions(options.fisher, options.fit_rows, options.seed, damping=damping, keep=options.keep_factors)
    total = max(1, len(rows.examples) * len(ask.method.stages))
    kept = resuming.resuming_of(ask)
    keeper = None if kept is None else kept.fit(_With(ask, damping), subject, rows, probe=probe, name=f"fit-{name}")
    source = _counted(ask.watch, rows, f"fit {name}", total)
    factors = fit(source, ask.method, settings, probe=probe, keeper=keeper)
    ask.watch.step(f"fit {name}", total, total)
    problem = Problem(rows.source, options.fisher, options.seed)
    return Stage(name, subject, rows, factors, ask.method.operator(factors, problem))


def score_stage(ask: Ask, stage: Stage, asked: Material, sides: Sides) -> Scores:
    """One pass over the rows of a stage, and a closer look at the strongest; ``sides.queries`` are raw gradients."""
    queries = replace(sides.queries, grads=sides.inverse.apply(sides.queries.grads))
    sink = AllScores.empty(len(queries.ids), stage.rows.rows.ids)
    scoring = Pairwise(queries, sink)
    kept, name = resuming.resuming_of(ask), f"score-{stage.name}"
    blocks = None if kept is None else kept.scores(ask, stage.subject, stage.rows, queries=queries, name=name)
    source = _counted(ask.watch, stage.rows, f"score {stage.name}", len(stage.rows.examples))
    Pass(scoring, {}, [scoring]).over(source, blocks)
    found = {"losses": scoring.losses, "values": sink.values, "columns": None, "layers": tuple(queries.grads)}
    found |= look_closer(replace(sides, queries=queries), found)
    return assemble(stage.subject, stage.rows, asked, found=found, factors=stage.factors, seconds={})


def _counted(watch: Watcher, rows: Material, name: str, total: int):
    done = 0

    def count(examples: int) -> None:
        nonlocal done
        done += examples
        watch.step(name, min(done, total), total)

    return rows.source.with_progress(count)


def told(ask: Ask, scores: Scores, seconds: Mapping[str, float], *, alpha: float, shared: Mapping[str, str]) -> Scores:
    """What a reader must know of a result of two stages."""
    warnings = [
        *scores.about.get("warnings", ()),
        f"two stages of training: {len(shared)} layers are shared; scores of pre-training rows passed both curvatures",
        f"alpha {alpha:.3g} stands for the length of fine-tuning; the size of all pre-training scores depends on it",
    ]
    changes = {"damping": f"{ask.damping} (pre-training), alpha {alpha:.4g} (fine-tuning)", "warnings": warnings}
    return scores.with_(about={**scores.about, **changes, "alpha": alpha, "seconds": dict(seconds)})


def strongest(scores: Scores, top_k: int | None) -> Scores:
    """The ``top_k`` strongest rows on both sides, of both stages together; None = all."""
    if top_k is None:
        return scores
    best = TopK({id_: n for n, id_ in enumerate(scores.train_ids)}, top_k, len(scores.query_ids))
    best.put(scores.train_ids, scores.values, None)
    values, columns = best.finish()
    lexical = scores.lexical
    if lexical is not None:
        kept = np.take_along_axis(lexical, np.maximum(columns, 0), axis=1)
        lexical = np.where(columns >= 0, kept, np.float32(np.nan))
    return scores.with_(values=values, columns=columns, lexical=lexical)


def _record(ask: Ask, second: Stage, first: Stage, asked: Material, *, alpha: float) -> dict[str, Any]:
    """The manifest of the fine-tuning stage, with the other stage's inside."""
    records = [
        manifest(stage.subject, stage.rows, asked, factors=stage.factors, operator=stage.operator, damping=damping)
        for stage, damping in ((second, absolute(alpha)), (first, ask.damping))
    ]
    return {**records[0], "alpha": alpha, "pretraining": records[1]}
