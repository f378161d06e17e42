"""LESS (Xia et al. 2024): rows whose Adam step, at several checkpoints, points where the questions' gradients do.

score[q, n] = Σ_c η_c cos(∇L_q(θ_c), Γ(∇L_n, θ_c)): training rows as Adam would take them (``gradients.adam``),
questions plain, learning rates of the checkpoints normalised to sum 1. Gradients are compared in full; with a ``size``
both sides are projected first, after Γ, as in the paper (which draws one dense projection to 8192 numbers; here every
layer has two thin sides). A sub-task's score is the mean over its questions, a row's value the maximum over sub-tasks
(``balance="max"``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whence.assemble import views_of
from whence.checkpointed import listed
from whence.errors import OptionError
from whence.gradients.adam import adam_step, read_moments
from whence.gradients.checkpoints import Checkpoint, find_checkpoints, mean_weights, tracin_weights
from whence.gradients.transforms import Transform, TransformedGradients
from whence.linalg.projection import random_projection
from whence.options import TraceOptions, trace_options
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.questions import answered, focused
from whence.results import Scores
from whence.scores.lengths import SquaredNorms
from whence.scores.score import Pairwise, Queries, Together, collect
from whence.scores.sinks import AllScores
from whence.scoring import check_losses, counted
from whence.select.choose import Rule
from whence.selecting import Mapped, Selection, select
from whence.watch import Silent, Watcher


@dataclass(frozen=True)
class Features:
    """Where LESS's features come from.

    Attributes:
        checkpoints: output folder of a Hugging Face Trainer with ``optimizer.pt`` in its checkpoints.
        size: every layer's Adam step and question gradient is projected to size x size numbers; sides that are not
            longer stay as they are. None = compared in full.
    """

    checkpoints: str | Path
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise OptionError(f"projection size {self.size}", wanted="at least 1", try_="16, or none at all")


def select_less(
    model: Any,
    checkpoints: Any,
    *,
    train: Any,
    query: Any,
    rule: Rule,
    **how: Any,
) -> Selection:
    """``select`` by LESS.

    Args:
        model: the final model: its tokenizer reads the rows.
        checkpoints: output folder of a Hugging Face Trainer with ``optimizer.pt`` in its checkpoints, or ``Features``.
        train: rows to choose from.
        query: what the model is to be good at; several files = several sub-tasks.
        rule: what to keep; ``balance="max"`` is the paper's.
        how: ``options`` (``allow_pickle_weights`` must be on) and ``watch``.

    Raises:
        ModelError: no checkpoints, or no Adam state that may be read.
        WhenceError: as ``whence.attribute``.
    """
    options = trace_options(how.get("options"), top_k=None, tokens=0, lexical=False)
    scores = less_scores(model, checkpoints, train=train, query=query, options=options, watch=how.get("watch"))
    return select(scores, rule=rule, data=Mapped(train, options.columns))


def less_scores(
    model: Any,
    checkpoints: Any,
    *,
    train: Any,
    query: Any,
    options: TraceOptions | Mapping[str, Any] | None = None,
    watch: Watcher | None = None,
) -> Scores:
    """Scores between -1 and 1; cosines, not nats.

    Args:
        model: as ``select_less``; ``checkpoints``, ``train`` and ``query`` too.
        checkpoints: likewise.
        train: likewise.
        query: likewise.
        options: of reading rows and models; ``seed`` is that of the projection.
        watch: hears about progress.

    Raises:
        ModelError: no checkpoints, or no Adam state that may be read.
        WhenceError: as ``whence.attribute``.
    """
    began, watch, settings = time.perf_counter(), watch or Silent(), trace_options(options)
    features = checkpoints if isinstance(checkpoints, Features) else Features(checkpoints)
    found = find_checkpoints(features.checkpoints)
    rates = [c.learning_rate for c in found]
    weights = tracin_weights(found) if all(r is not None for r in rates) and any(rates) else mean_weights(found)
    weights = [w / sum(weights) for w in weights]
    subject = open_subject(model, settings, watch)
    trained = open_rows(subject, train, what="train")
    asked = focused(subject, open_rows(subject, answered(subject, query), what="query"))
    total = np.zeros((len(asked.examples), len(trained.rows.ids)))
    for checkpoint, weight in zip(found, weights, strict=True):
        watch.note("checkpoint", f"step      {checkpoint.step:,}: {checkpoint.path}", step=checkpoint.step)
        total += weight * _at(checkpoint, subject, trained, asked, size=features.size)
    about = {
        "method": "less",
        "damping": None,
        "normalise": "cosine",
        "checkpoints": listed(found, weights),
        "projection": None if features.size is None else {"size": features.size, "seed": settings.seed},
        "model": {"name": subject.loaded.about["spec"]},
        "train": trained.about(),
        "query": asked.about(),
        "seconds": {"total": round(time.perf_counter() - began, 3)},
    }
    return Scores(
        values=total,
        query_ids=tuple(asked.source.ids),
        train_ids=tuple(trained.rows.ids),
        n_train=len(trained.examples),
        about=about,
        train_rows=views_of(trained, trained.quarantine),
        query_rows=views_of(asked, ()),
    )


def _at(
    checkpoint: Checkpoint, subject: Subject, trained: Material, asked: Material, *, size: int | None
) -> np.ndarray:
    """Q x N cosines at one checkpoint; NaN for rows without a gradient."""
    options = subject.options
    here = open_subject(str(checkpoint.path), options, subject.watch, task=subject.task)
    allowed = options.allow_pickle_weights
    moments = read_moments(checkpoint.path, here.loaded.model, allowed=allowed)
    rows, questions = (
        replace(side, source=replace(side.source, model=here.loaded.model, layers=here.layers))
        for side in (trained, asked)
    )
    check_losses(questions)
    own = adam_step(moments, here.loaded.model, here.layers)
    return less_block(rows, questions, own, watch=subject.watch, size=size, seed=options.seed)


def less_block(
    rows: Material, questions: Material, own: Transform, *, watch: Watcher, size: int | None = None, seed: int = 0
) -> np.ndarray:
    """Q x N cosines of plain question gradients with transformed row gradients.

    Args:
        rows: N rows (all read; unusable ones get NaN).
        questions: Q questions.
        own: Γ of the rows.
        watch: hears about progress.
        size: project both sides of every layer to this many numbers each way; None = not at all.
        seed: of the projection.
    """
    after: Sequence[Transform] = ()
    if size is not None:
        after = (random_projection(dict(rows.source.layers.sizes), size=size, seed=seed, small="keep"),)
    with counted(watch, "less", len(rows.examples)) as count:
        source = TransformedGradients(rows.source.with_progress(count), (own, *after))
        queries: Queries = collect(TransformedGradients(questions.source, tuple(after)) if after else questions.source)
        sink, norms = AllScores.empty(len(queries.ids), rows.rows.ids), SquaredNorms()
        source.visit(Together([norms, Pairwise(queries, sink)]))
    lengths_N = np.sqrt(np.array([norms.values.get(id_, np.nan) for id_ in rows.rows.ids]))
    squared_Q = torch.stack([grads.squared_norm().double().cpu() for grads in queries.grads.values()]).sum(0)
    return sink.values / np.sqrt(squared_Q.numpy())[:, None] / lengths_N[None, :]
