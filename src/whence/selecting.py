"""``select``: which rows to keep for a question set, from a finished run or from model, rows and questions at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whence.api import attribute, load
from whence.candidates.duplicates import near_duplicates
from whence.errors import OptionError
from whence.options import TraceOptions, trace_options
from whence.results import Scores
from whence.scores.relative import relative_scores
from whence.select.account import Account
from whence.select.choose import Choice, Rule, choose
from whence.select.origins import Opened, check_same, open_places
from whence.select.tell import Told, tell_choice
from whence.store.provenance import environment
from whence.store.run import read_manifest
from whence.watch import Watcher
from whence.written import check_out, write_account, write_chosen


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        ids: N row ids in input order.
        choice: value, kept or not, and why, of each.
        account: what was done and why.
        opened: the rows and their places.
    """

    ids: tuple[str, ...]
    choice: Choice
    account: Account
    opened: Opened

    @property
    def kept_ids(self) -> tuple[str, ...]:
        """Ids of the rows kept, in input order."""
        return tuple(id_ for id_, kept in zip(self.ids, self.choice.kept.tolist(), strict=True) if kept)

    def write(self, folder: str | Path) -> tuple[Path, ...]:
        """``kept`` and ``dropped`` rows as they stand in the input, ``scores.jsonl``, the page, ``selection.json``.

        Raises:
            StoreError: the folder is not ours.
            DataError: the files no longer hold these rows.
        """
        place = check_out(folder)
        kept = self.choice.kept
        files = write_chosen(place, self.opened, self.choice)
        return write_account(place, self.account, files, rows=len(kept), kept=int(kept.sum()))


def select(
    run: Scores | str | Path,
    *,
    rule: Rule,
    data: Any = None,
    normalise: str = "none",
) -> Selection:
    """Keep or drop rows by the scores of a finished run.

    Args:
        run: folder of ``whence trace``, or scores; all scores must have been kept (no ``top_k``).
        rule: what to keep. Several question files are several sub-tasks; with a single one every question is.
        data: the rows that were scored, in any form that ``train`` takes; by default those the run names.
        normalise: ``relative`` divides the run's scores by the root of the row's self-influence (RelatIF).

    Raises:
        OptionError: a run that cannot be selected from.
        DataError: rows that are not those scored.
    """
    began = time.perf_counter()
    scores = run if isinstance(run, Scores) else load(run)
    spec, columns = rows_of(run, data)
    opened = open_places(spec, columns=columns)
    check_same(opened, scores.train_ids, (scores.about.get("train") or {}).get("fingerprint"))
    values_QN = _normalised(scores, normalise)
    tasks = sub_tasks(scores)
    groups = alike(opened, scores) if rule.diverse else {}
    choice = choose(values_QN, tasks, rule, sources=opened.sources, groups=groups)
    about = {
        "scores": {k: scores.about.get(k) for k in ("method", "damping", "normalise", "model", "train", "query")},
        "normalise": normalise,
        "environment": environment(),
        "seconds": round(time.perf_counter() - began, 2),
    }
    account = tell_choice(Told(opened, scores, values_QN, tasks), choice, rule, about=about)
    return Selection(scores.train_ids, choice, account, opened)


def select_for(
    model: Any,
    *,
    train: Any,
    query: Any,
    rule: Rule,
    watch: Watcher | None = None,
    options: TraceOptions | Mapping[str, Any] | None = None,
) -> Selection:
    """``select`` with the scores computed first.

    Args:
        model: as ``whence.attribute``.
        train: rows to choose from.
        query: what the model is to be good at. A mapping (or list) of several files = several sub-tasks.
        rule: what to keep.
        watch: hears what is done.
        options: of the scores (method, damping, ``normalise="relative"`` ...).

    Raises:
        WhenceError: as ``whence.attribute`` and ``select``.
    """
    wanted = trace_options(options, top_k=None, tokens=0, lexical=False)
    scores = attribute(model, train=train, query=query, options=wanted, watch=watch)
    return select(scores, rule=rule, data=Mapped(train, wanted.columns))


@dataclass(frozen=True)
class Mapped:
    """Rows, and the columns they were read by."""

    spec: Any
    columns: Mapping[str, str]


def rows_of(run: Scores | str | Path, data: Any) -> tuple[Any, Mapping[str, str]]:
    """The place of a run's rows, and their columns as the run mapped them.

    Raises:
        OptionError: neither the run nor the caller says where they are.
    """
    if isinstance(data, Mapped):
        return data.spec, data.columns
    if isinstance(run, Scores):
        if data is None:
            raise OptionError("scores without data", wanted="the rows that were scored", try_="data=...")
        return data, {}
    body = read_manifest(run)
    columns = (body.get("options") or {}).get("columns") or {}
    spec = data if data is not None else list((body.get("request") or {}).get("data") or ())
    if not spec:
        raise OptionError(
            f"{run} does not say where its rows are", wanted="its training rows", try_="--data rows.jsonl"
        )
    return spec, columns


def _normalised(scores: Scores, how: str) -> np.ndarray:
    """Q x N values of all rows.

    Raises:
        OptionError: a top-k result, or one without what the normaliser needs.
    """
    if scores.columns is not None:
        raise OptionError(
            f"scores of the strongest {scores.columns.shape[1]} rows a question only",
            wanted="the scores of all rows",
            try_="the same whence trace without --top-k",
        )
    if how == "none":
        return np.asarray(scores.values, dtype=np.float64)
    if how != "relative":
        raise OptionError(f"normalise {how!r} of a finished run", wanted="none or relative")
    if scores.about.get("normalise", "none") != "none":
        raise OptionError("the run's scores are normalised already", wanted="none", try_="leave --normalise out")
    if scores.self_influence is None:
        raise OptionError(
            "relative scores of a run without self-influence",
            wanted="a run that kept it",
            try_="whence trace ... --self-influence, or --normalise relative there",
        )
    return relative_scores(np.asarray(scores.values, dtype=np.float64), scores.self_influence)


def sub_tasks(scores: Scores) -> tuple[str, ...]:
    """Q names: the source of each question where there are several, else its id."""
    sources = [view.source if (view := scores.query_rows.get(id_)) else "" for id_ in scores.query_ids]
    return tuple(sources) if len(set(sources)) > 1 else scores.query_ids


def alike(opened: Opened, scores: Scores) -> dict[int, str]:
    """Position -> group of near-duplicates."""
    texts = {id_: view.text for id_, view in scores.train_rows.items()}
    place = {id_: n for n, id_ in enumerate(opened.rows.ids)}
    return {place[id_]: group for id_, group in near_duplicates(texts).items()}
