"""``select``: which rows to keep for a question set, from a finished run or from model, rows and questions at once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whence.api import attribute, load
from whence.candidates.duplicates import near_duplicates
from whence.errors import OptionError, StoreError
from whence.options import TraceOptions, trace_options
from whence.report.account import account_page
from whence.results import Scores
from whence.scores.relative import relative_scores
from whence.select.account import Account
from whence.select.choose import Choice, Rule, choose
from whence.select.lines import write_counted
from whence.select.origins import Opened, check_same, open_places
from whence.select.tell import Told, tell_choice
from whence.store import atomic
from whence.store.provenance import environment
from whence.store.run import file_record, read_manifest
from whence.watch import Watcher

RECORD, PAGE, SCORES = "selection.json", "report.html", "scores.jsonl"
FORMAT = "whence selection 1"


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
        check_out(folder)
        return write_selection(Path(folder), self.opened, self.choice, self.account)


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
    spec, columns = _data_of(run, data)
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


def _data_of(run: Scores | str | Path, data: Any) -> tuple[Any, Mapping[str, str]]:
    """The rows' place, and their columns as the run mapped them."""
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


# --- files ---------------------------------------------------------------------------------------------------------


def check_out(out: str | Path | None) -> None:
    """A new folder, an empty one, or an earlier choice of ours.

    Raises:
        StoreError: anything else.
    """
    place = None if out is None else Path(out).expanduser()
    if place is None or not place.exists():
        return
    if not place.is_dir() or (any(place.iterdir()) and not (place / RECORD).is_file()):
        raise StoreError(
            f"{place} is {'not empty' if place.is_dir() else 'a file'}",
            wanted="a new folder, an empty one, or one with an earlier choice",
            try_="another name with -o",
        )


def write_selection(folder: Path, opened: Opened, choice: Choice, account: Account) -> tuple[Path, ...]:
    """Rows kept, rows dropped, scores of all, the page; ``selection.json`` last."""
    folder = folder.expanduser()
    kept = choice.kept.astype(int).tolist()
    files = write_counted(opened.origins, kept, folder, "kept")
    files += write_counted(opened.origins, [1 - k for k in kept], folder, "dropped")
    lines = zip(opened.rows.ids, opened.sources, choice.values.tolist(), kept, choice.reasons, strict=True)
    atomic.write_jsonl(
        folder / SCORES,
        ({"id": i, "source": s, "value": v, "kept": bool(k), "reason": r} for i, s, v, k, r in lines),
    )
    return write_account(folder, account, [*files, folder / SCORES], rows=len(kept), kept=sum(kept))


def write_account(folder: Path, account: Account, files: Sequence[Path], **facts: Any) -> tuple[Path, ...]:
    """The page, and the record with the checksums of all files, last."""
    told = atomic.plain(account.to_dict())
    atomic.write_text(folder / PAGE, account_page(told))
    files = [*files, folder / PAGE]
    record = {"format": FORMAT, **facts, "account": told, "files": {file.name: file_record(file) for file in files}}
    atomic.write_json(folder / RECORD, record)
    return (*files, folder / RECORD)
