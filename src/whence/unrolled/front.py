"""Unrolled attribution of a small training: base model, rows, questions and a recipe in, ``Scores`` out.

::

    from whence.errors import OptionError
from whence.evaluate.trainers import Recipe
    from whence.unrolled.front import unroll

    scores = unroll("base", train="train.jsonl", query="questions.jsonl", recipe=Recipe(rate=3e-4, epochs=3))

The model that is explained is the one at the end of the run, which is made here: the run is repeated, not looked up.
``score / N`` is minus the derivative of a question's measurement by the row's weight, so it is, as everywhere, the
predicted rise in nats if the row is left out; here N cancels, and no damping, curvature or choice of layers enters.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from whence.api import REPORT, questions_of, write_report
from whence.assemble import assemble
from whence.curvature.base import Factors
from whence.errors import OptionError
from whence.evaluate.trainers import Recipe
from whence.loading import load_model
from whence.options import TraceOptions, trace_options
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.questions import answered, combination, focused, posed_views
from whence.recorded import compare, positions, read_record, weights_digest
from whence.results import Scores
from whence.scoring import check_losses, top
from whence.store.provenance import environment, peak_memory_bytes, redacted_argv
from whence.store.run import add_file, claimed, save_scores
from whence.unrolled.course import course_of, course_of_record
from whence.unrolled.options import UnrollOptions, unroll_options
from whence.unrolled.reverse import Metagradients, Tree, metagradients, tree_of
from whence.unrolled.smoothness import Smoothness, metasmoothness
from whence.unrolled.training import Training, training_of
from whence.watch import Silent, Watcher

METHOD = "unrolled"


@dataclass(frozen=True)
class Run:
    """The training that is taken back.

    Attributes:
        recipe: of the built-in training.
        record: a training that happened, to be repeated instead: its ``whence_training.json`` or output folder.
        settings: how it is repeated.
        out: folder for scores, provenance and report.
        watch: hears what is derived and how far the work is.
    """

    recipe: Recipe
    settings: UnrollOptions
    record: str | Path | None = None
    out: str | Path | None = None
    watch: Watcher = field(default_factory=Silent)


def unroll(
    base: Any,
    *,
    train: Any,
    query: Any,
    run: Run | None = None,
    options: TraceOptions | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Scores:
    """Exact effect of every training row's weight on every question, through the whole training.

    Args:
        base: the checkpoint that training starts from, as any model of ``whence.attribute``.
        train: training rows.
        query: questions.
        run: everything about the run in one record, instead of ``settings``.
        options: settings that concern rows and questions: ``max_length``, ``columns``, ``span``, ``combine`` ...
        settings: ``recipe`` (a ``Recipe``) or ``record``, ``out``, ``watch``, and the fields of ``UnrollOptions``.

    Returns:
        Scores; ``about["unrolled"]`` says what was run, what it took and how smooth it is.

    Raises:
        CurvatureError: the training diverges or does not repeat itself.
        WhenceError: as ``whence.attribute``.
    """
    run = run or run_of(**settings)
    asked = trace_options(options)
    if run.out is None:
        return _unrolled(base, train, query, run=run, options=asked)[0]
    with claimed(run.out) as folder:
        scores, manifest = _unrolled(base, train, query, run=run, options=asked)
        save_scores(folder, scores, manifest={"argv": redacted_argv(sys.argv), **manifest})
        write_report(scores, folder / REPORT)
        add_file(folder, REPORT)
        run.watch.note("out", f"written   {folder}", folder=str(folder))
    return scores


def run_of(
    *,
    recipe: Recipe | None = None,
    record: str | Path | None = None,
    out: str | Path | None = None,
    watch: Watcher | None = None,
    **settings: Any,
) -> Run:
    """What to take back, checked.

    Raises:
        OptionError: a setting that does not exist; a recipe and a record.
    """
    if recipe is not None and record is not None:
        raise OptionError("a recipe and a record", wanted="the training to repeat, by one of them")
    return Run(recipe or Recipe(), unroll_options(settings), record, out, watch or Silent())


def _unrolled(base: Any, train: Any, query: Any, *, run: Run, options: TraceOptions) -> tuple[Scores, dict[str, Any]]:
    started = time.perf_counter()
    record = None if run.record is None else read_record(run.record)
    subject = open_subject(base, options, run.watch, record=record)
    trained = open_rows(subject, train, what="train")
    asked = focused(subject, open_rows(subject, answered(subject, questions_of(query)), what="query"))
    check_losses(asked)
    training = _training(run, subject, trained)
    mixture = combination(asked, options.combine)
    tree = tree_of(len(training.course), run.settings.states)
    _note_cost(run, training, tree, len(asked.examples) if mixture is None else len(mixture))
    with torch.random.fork_rng(devices=[]):
        found = metagradients(
            training,
            asked.source.examples,
            mixture=mixture,
            states=run.settings.states,
            progress=lambda done, of: run.watch.step("back", done, of),
        )
        smooth = _smoothness(run, training, asked, found, mixture=mixture)
    scores = _assembled(subject, trained, asked, found, seconds={"total": time.perf_counter() - started})
    about = {**about_run(training, found, smooth), **_origin(run, training, found)}
    return _said(scores, training, about), _manifest(subject, trained, asked, about)


def _training(run: Run, subject: Subject, trained: Material) -> Training:
    """The run as a recipe or a record has it.

    Raises:
        OptionError: a record of a training that started elsewhere, or that cannot be repeated.
    """
    rows, settings = trained.examples, run.settings
    model = movable(trained)
    if run.record is None:
        course = course_of(run.recipe, rows, seed=settings.seed, root=settings.root)
        return training_of(model, subject.task, rows, course, tokens=settings.tokens)
    record = read_record(run.record)
    root = settings.root if "root" in settings.model_fields_set else 0.0
    compare(record, trained.rows.ids, rows)
    course = course_of_record(record, positions(record, trained.rows.ids, rows), rows, root=root)
    training = training_of(model, subject.task, rows, course, tokens=settings.tokens)
    if record.start and weights_digest(training.model) != record.start:
        raise OptionError(
            f"{str(subject.loaded.about['spec'])[:80]} has other weights than the recorded training started from",
            wanted="the checkpoint before that training",
            try_="--base with the model that was given to the Trainer",
        )
    return training


def _origin(run: Run, training: Training, found: Metagradients) -> dict[str, Any]:
    """Where the course is from; of a recorded one how near its end is to the weights that were saved."""
    if run.record is None:
        return {"seed": run.settings.seed}
    record, place = read_record(run.record), Path(run.record).expanduser()
    place = place if place.is_dir() else place.parent
    said = {"seed": record.seeds.get("seed"), "record": str(run.record)}
    end = next(
        (f for f in (place / f"checkpoint-{len(training.course)}", place) if (f / "config.json").is_file()), None
    )
    if end is None or len(training.course) != record.done:
        return said
    saved = dict(load_model(str(end), dtype="auto", device="cpu").model.named_parameters())
    theirs = [saved[name].detach().reshape(-1) for name in training.names if name in saved]
    if sum(len(part) for part in theirs) != len(training.origin_P):
        return said
    off = float((torch.cat(theirs).to(found.final.theta) - found.final.theta).abs().max())
    moved = float((found.final.theta - training.origin_P).abs().max())
    run.watch.note(
        "reproduced", f"repeated  ends within {off:.1e} of the weights that were saved; it moved {moved:.1e}"
    )
    return {**said, "reproduced": {"step": record.done, "off": off, "moved": moved}}


def movable(trained: Material) -> nn.Module:
    """The model with something to train: what it says itself; if that is nothing (an adapter), the layers followed."""
    model = trained.source.model
    if not any(p.requires_grad for p in model.parameters()):
        for layer in trained.source.layers:
            for module in layer.modules:
                module.requires_grad_(True)
    return model


def _note_cost(run: Run, training: Training, tree: Tree, questions: int) -> None:
    """What it will take, before it is spent."""
    course, size = training.course, training.origin_P.numel() * training.origin_P.element_size()
    parts = 2 if training.course.rule.begin(training.origin_P[:1]).second.numel() == 0 else 3
    megabytes = (tree.states + questions) * parts * size / 1e6
    extra = 3 * tree.steps if run.settings.smoothness else 0
    said = (
        f"unrolled  {tree.steps:,} steps of {len(course.batches[0])} rows: {tree.forward + extra:,} steps forward and "
        f"{tree.steps:,} back for {questions:,} questions at once · {tree.states} states and {questions} cotangents in "
        f"memory, {megabytes:,.0f} MB"
    )
    run.watch.note("unrolled", said, **tree.about(), questions=questions, megabytes=megabytes)


def _smoothness(
    run: Run, training: Training, asked: Material, found: Metagradients, *, mixture: np.ndarray | None
) -> Smoothness | None:
    if not run.settings.smoothness:
        return None
    questions = asked.source.examples
    smooth = metasmoothness(training, questions, found, width=run.settings.smoothness, mixture=mixture)
    said = f"smooth    {smooth.parameters:+.3f} of 1 · measured {smooth.slope:.2f} of the change foretold"
    said += f", {smooth.left_slope:.2f} without the strongest row"
    run.watch.note("smoothness", said, **smooth.about())
    return smooth


def _assembled(
    subject: Subject, trained: Material, asked: Material, found: Metagradients, *, seconds: Mapping[str, float]
) -> Scores:
    """Scores over all rows that were read; those that could not be used are NaN."""
    place = {id_: n for n, id_ in enumerate(trained.rows.ids)}
    values = np.full((len(found.effects_QN), len(place)), np.nan)
    used = [place[example.id] for example in trained.examples]
    values[:, used] = -len(used) * found.effects_QN
    parts = {
        "values": values,
        "ids": trained.rows.ids,
        "per_layer": None,
        "losses": {},
        "query_rows": posed_views(subject, asked),
    }
    kept = top(_Options(subject.options), parts)  # type: ignore[arg-type]  # only the options are looked at
    return assemble(subject, trained, asked, found=kept, factors=Factors({}, {}), seconds=seconds)


@dataclass(frozen=True)
class _Options:
    options: TraceOptions


def about_run(training: Training, found: Metagradients, smooth: Smoothness | None) -> dict[str, Any]:
    """What was run and what it took."""
    return {
        **training.course.about(),
        **found.tree.about(),
        "parameters": int(training.origin_P.numel()),
        "repeated_within": found.again,
        "seconds_forward": round(found.seconds[0], 3),
        "seconds_back": round(found.seconds[1], 3),
        "trainings": round((found.seconds[0] + found.seconds[1]) / max(found.seconds[0], 1e-9), 1),
        "loss_after": [round(float(v), 6) for v in found.measurements_Q],
        "attention": found.note,
        "smoothness": None if smooth is None else smooth.about(),
    }


def _said(scores: Scores, training: Training, about: Mapping[str, Any]) -> Scores:
    """A result that speaks of a run, not of a fit."""
    moving, total = about["parameters"], sum(p.numel() for p in training.model.parameters())
    warnings = [w for w in scores.about.get("warnings", ()) if "of the parameters are followed" not in w]
    warnings.append(
        f"exact for small changes of this one run (seed {about['seed']}, {about['steps']} steps): with other seeds or "
        "another order the same rows may do something else"
    )
    smooth = about["smoothness"]
    if smooth is not None and not smooth["usable"]:
        warnings.append(
            f"metasmoothness {smooth['parameters']:+.2f}, and without the strongest row {smooth['left_slope']:.2f} of "
            "the change foretold: this training is too rough for its derivative to foretell real changes; try a larger "
            "root (--root 1e-8), a smaller rate or a longer warm-up"
        )
    changes = {
        "method": METHOD,
        "damping": "",
        "fisher": None,
        "layers": list(training.names),
        "coverage": {"share": moving / total, "layers": len(training.names)},
        "unrolled": dict(about),
        "warnings": warnings,
    }
    return scores.with_(about={k: v for k, v in {**scores.about, **changes}.items() if v is not None})


def _manifest(subject: Subject, trained: Material, asked: Material, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "options": subject.options.model_dump(),
        "environment": environment(threads=torch.get_num_threads(), devices=[]),
        "model": dict(subject.loaded.about),
        "task": subject.task.fingerprint(),
        "train": {**trained.about(), "read": dict(trained.rows.about)},
        "query": {**asked.about(), "read": dict(asked.rows.about)},
        "unrolled": dict(about),
        "peak_memory_bytes": peak_memory_bytes(),
    }
