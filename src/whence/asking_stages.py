"""An index of pre-training rows answers a question to a model that was fine-tuned afterwards, beside its own rows.

The question's gradient is taken at the fine-tuned model, passes the curvature of fine-tuning (fitted now, on the
fine-tuning rows, which are few), and meets the pre-training rows in the index: neither they nor their curvature are
computed again. Both stages come back as one result in the same nats (see ``stages``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whence.api import questions_of
from whence.curvature.staged import shared_layers, through_tuning, tuned_inverse
from whence.errors import OptionError
from whence.indexing import Wish
from whence.linalg.damping import absolute
from whence.linalg.operators import Blocks
from whence.options import TraceOptions
from whence.pipeline import open_rows, open_subject
from whence.results import RowView, Scores
from whence.scores.score import collect
from whence.scores.tracks import Way
from whence.scoring import check_losses
from whence.searching import Lookup, require_model, shelf_of
from whence.stages import (
    PROBES,
    TUNING,
    check_stage_options,
    find_alpha,
    fit_stage,
    joined,
    score_stage,
    strongest,
    told,
    tuned_subject,
)
from whence.store import index_folder, tables
from whence.store.index_folder import QUARANTINE, ROWS
from whence.tokenwise import Sides


@dataclass(frozen=True)
class Tuning:
    """The stage of training after the one that was indexed.

    Attributes:
        model: the fine-tuned model, which the question is about.
        data: rows of fine-tuning.
        alpha: as of ``stages.Pretraining``.
    """

    model: Any
    data: Any
    alpha: float | str = "auto"


@dataclass(frozen=True)
class IndexPlace:
    """A finished index, and the model it was made of.

    Attributes:
        folder: of the index.
        body: its manifest.
        model: where the model is now.
    """

    folder: Path
    body: Mapping[str, Any]
    model: Any


def answer_stages(wish: Wish, index: IndexPlace, tuning: Tuning, query: Any) -> Scores:
    """Scores of the fine-tuning rows and of the indexed rows, side by side.

    Args:
        wish: method and damping of the index, with the question's settings.
        index: of the pre-training rows.
        tuning: what came after.
        query: questions to the fine-tuned model.

    Raises:
        StoreError: another model than the indexed one.
        OptionError: a setting that two stages cannot have, or no alpha.
        WhenceError: as ``whence.attribute``.
    """
    started = time.perf_counter()
    _check(wish.options)
    subject = tuned_subject(wish, tuning.model)
    trained = open_rows(subject, tuning.data, what="train")
    asked = open_rows(subject, questions_of(query), what="query")
    check_losses(asked)
    base = open_subject(index.model, wish.options.model_copy(update={"task": "auto"}), wish.watch)
    require_model(index.folder, index.body, base)
    shared = shared_layers(subject.layers, base.layers)
    alpha = find_alpha(tuning.alpha, tuning.model, trained)
    raw = collect(asked.source)
    probe = raw.grads if len(raw.ids) <= PROBES else {name: g.rows(0, PROBES) for name, g in raw.grads.items()}
    second = fit_stage(wish, TUNING, subject, trained, damping=absolute(alpha), probe=probe)
    inverse = tuned_inverse(second.operator, alpha)
    way = Way(inverse.apply, isinstance(inverse, Blocks))
    own = score_stage(wish, second, asked, Sides(subject, trained, asked, way, raw, subject))
    views = tables.read_rows(index_folder.verify(index.folder, index.body, ROWS))
    lookup = Lookup(wish, base, shelf_of(index.folder, index.body, tuple(views)))
    values = lookup.look_up(through_tuning(inverse.apply(raw.grads), alpha, shared), asked)
    scores = joined([own, _indexed(index, views, values, own)])
    seconds = {"total": time.perf_counter() - started}
    return strongest(told(wish, scores, seconds, alpha=alpha, shared=shared), wish.options.top_k)


def _check(options: TraceOptions) -> None:
    check_stage_options(options)
    if options.combine != "each" or options.span is not None or options.generate:
        raise OptionError(
            "span, combine or generate through two stages of an index",
            wanted="whole questions, one by one",
            try_="whence trace --pretrained",
        )


def _indexed(index: IndexPlace, views: Mapping[str, RowView], values: np.ndarray, own: Scores) -> Scores:
    """The pre-training rows' part."""
    body = index.body
    lines = index_folder.verify(index.folder, body, QUARANTINE).read_text("utf-8").splitlines()
    about = {**body["about"], "quarantine": [json.loads(line) for line in lines]}
    return Scores(
        values=values,
        query_ids=own.query_ids,
        train_ids=tuple(views),
        n_train=int(body.get("train_size") or body["n_train"]),
        about=about,
        train_rows=views,
        query_rows=own.query_rows,
        lexical=None if own.lexical is None else np.zeros(values.shape, dtype=np.float32),
    )
