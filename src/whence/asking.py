"""Answers from an index: the model for the question's gradient, the stored curvature, one product with every row."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from whence.api import questions_of, write_report
from whence.api import save as save_run
from whence.asking_stages import IndexPlace, Tuning, answer_stages
from whence.assemble import left_unscored, lexical_of, pictured, views_of
from whence.caching import Cached, CacheWish, parse_cache
from whence.curvature.base import get_method
from whence.errors import OptionError
from whence.gradients.ranks import Ranks, by_first
from whence.indexing import INCIDENTAL, Wish
from whence.linalg.damping import parse_damping
from whence.loading import join_ranks
from whence.options import TraceOptions, trace_options
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.questions import answered, focused, posed_views
from whence.results import RowView, Scores
from whence.scoring import check_losses, measured
from whence.searching import Lookup, require_model, shelf_of
from whence.store import index_folder, index_schema, tables
from whence.store.index_folder import QUARANTINE, ROWS
from whence.watch import Silent, Watcher

# settings that a question may have for itself; the others are those of the curvature and of the rows
FREE = {*INCIDENTAL, "normalise", "span", "combine", "generate", "columns", "batch_tokens"}


def ask(
    index: str | Path,
    query: Any,
    *,
    model: Any = None,
    out: str | Path | None = None,
    report: str | Path | None = None,
    watch: Watcher | None = None,
    **overrides: Any,
) -> Scores:
    """Which rows of an index made the model answer like this? Reads the model and the index, never the training rows.

    Args:
        index: folder of a finished index.
        query: questions, as in ``whence.attribute``.
        model: the indexed model, if it is no longer where it was; it is recognised by content.
        out: folder for scores, provenance and report.
        report: file for the HTML report.
        watch: hears how far the work is.
        overrides: ``top_k``, ``normalise`` (none, relative, cosine), ``span``, ``combine``, ``generate``, ``device``,
            ``lexical``, ``columns``. ``cache="faiss"`` scores only rows that a cache beside the index takes for near
            (``faiss:5%``, ``faiss:2000``: so many on either side), and ``audit`` others to see what that loses.
            With ``fsdp`` the processes of a launcher hold one model together; the first alone reads the index.
            ``tuned={"model": ..., "data": rows}`` (and perhaps ``alpha``) asks a model that was fine-tuned from the
            indexed one: its rows and those of the index, in the same nats.

    Returns:
        Scores as of ``attribute``, without token scores. With ``fsdp`` the first process has them; those of the others
        have no rows.

    Raises:
        StoreError: no finished index, a damaged file, or a model that is not the indexed one (names the fields).
        WhenceError: as ``attribute``.
    """
    started = time.perf_counter()
    place, ranks = Path(index).expanduser(), _ranks(overrides)
    body = _manifest(place, ranks, overrides.get("method"))
    tuned, cache = overrides.pop("tuned", None), overrides.pop("cache", None)
    keep = None if cache is None else parse_cache(cache)
    if cache is not None and tuned is not None:
        raise OptionError("cache with tuned", wanted="one of the two", try_="leave out cache: all rows are scored")
    options = trace_options(body["options"], **{k: v for k, v in overrides.items() if v is not None})
    wish = _resolve_question(body, options, watch if ranks is None or ranks.rank == 0 else None)
    if model is None and str(body["spec"]).startswith("live "):
        raise OptionError(
            "an index of a live model", wanted="that model", try_="whence.ask(index, query, model=(model, tokenizer))"
        )
    there = IndexPlace(place, body, body["spec"] if model is None else model)
    if tuned is not None:
        scores = answer_stages(wish, there, tuned if isinstance(tuned, Tuning) else Tuning(**tuned), query)
    else:
        scores = _answer(wish, there, query, CacheWish(keep) if cache is not None else None)
    seconds = {"total": round(time.perf_counter() - started, 3)}
    scores = scores.with_(about={**scores.about, "seconds": seconds})
    if ranks is None or ranks.rank == 0:
        _kept(scores, out, report, wish.watch)
    return scores


def _kept(scores: Scores, out: str | Path | None, report: str | Path | None, watch: Watcher) -> None:
    if out is not None:
        save_run(scores, out)
        watch.note("out", f"written   {out}", folder=str(out))
    if report is not None:
        write_report(scores, report)


def _ranks(overrides: Mapping[str, Any]) -> Ranks | None:
    """The processes that hold the model together, if they do.

    Raises:
        OptionError: a process that no launcher started; or two models to hold.
    """
    if not overrides.get("fsdp"):
        return None
    if overrides.get("tuned") is not None:
        raise OptionError("tuned with fsdp", wanted="one model in pieces", try_="tuned without fsdp")
    return join_ranks(overrides.get("device") or "auto")


def _manifest(place: Path, ranks: Ranks | None, method: Any) -> dict[str, Any]:
    """What the index is of; of several ranks the first alone reads it."""

    def read() -> dict[str, Any]:
        return dict(index_schema.checked(place, index_folder.read_manifest(place), own_method=method))

    return read() if ranks is None else ranks.agreed(read)


def _resolve_question(body: Mapping[str, Any], options: TraceOptions, watch: Watcher | None) -> Wish:
    """The settings of a question; those of the curvature are the index's."""
    stored = trace_options(body["options"])
    fixed = [n for n in TraceOptions.model_fields if n not in FREE and getattr(stored, n) != getattr(options, n)]
    if fixed:
        raise OptionError(
            f"{', '.join(fixed)} for an index that is built", wanted="its own settings", try_="a new index"
        )
    if options.normalise == "theta":
        raise OptionError("normalise theta from an index", wanted="none, relative or cosine", try_="whence trace")
    return Wish(get_method(options.method), parse_damping(options.damping), options, watch or Silent())


def _answer(wish: Wish, index: IndexPlace, query: Any, cache: CacheWish | None) -> Scores:
    place, body = index.folder, index.body
    subject = open_subject(index.model, wish.options, wish.watch)
    require_model(place, body, subject)
    asked = focused(subject, open_rows(subject, answered(subject, questions_of(query)), what="query"))
    asked = measured(wish, asked)
    check_losses(asked)
    ranks = subject.loaded.ranks
    views = _rows(index, ranks)
    shelf = shelf_of(place, body, tuple(views))
    if ranks is not None and ranks.rank:
        Lookup(wish, subject, shelf, ranks=ranks).work_along(asked)
        return _without_rows(body, subject, asked)
    cached = None if cache is None else Cached(shelf, _cache_wish(wish, cache), wish.watch)
    values, columns = Lookup(wish, subject, shelf, cached, ranks).answer(asked)
    query_views = posed_views(subject, asked) or pictured(views_of(asked, ()), asked)
    about = {**body["about"], "query": asked.about(), "normalise": wish.options.normalise}
    about["index"] = {"rows": body["rows"], "bytes_per_row": body["bytes_per_row"], **body["code"]}
    about["warnings"] = [*about.get("warnings", ()), _caution(body)]
    if cached is not None:
        about["index"]["cache"] = cached.about
        about["warnings"] += [cached.about["told"]]
        views = left_unscored(views, cached.unscored())
    quarantine = _lines(index_folder.verify(place, body, QUARANTINE))
    return Scores(
        values=values,
        query_ids=tuple(query_views),
        train_ids=tuple(views),
        n_train=int(body.get("train_size") or body["n_train"]),
        columns=columns,
        about={**about, "quarantine": quarantine},
        train_rows=views,
        query_rows=query_views,
        lexical=lexical_of(subject, query_views, views, columns),
    )


def _rows(index: IndexPlace, ranks: Ranks | None) -> dict[str, RowView]:
    """The indexed rows; of several ranks the first alone reads them, and the others have none."""
    read = by_first(ranks, lambda: tables.read_rows(index_folder.verify(index.folder, index.body, ROWS)))
    return read or {}


def _without_rows(body: Mapping[str, Any], subject: Subject, asked: Material) -> Scores:
    """What a rank has that holds a part of the model and nothing of the index: the questions."""
    views = posed_views(subject, asked) or views_of(asked, ())
    return Scores(
        values=np.empty((len(views), 0)),
        query_ids=tuple(views),
        train_ids=(),
        n_train=int(body.get("train_size") or body["n_train"]),
        about={"query": asked.about(), "warnings": ["the first process has the scores: this one worked along"]},
        query_rows=views,
    )


def _cache_wish(wish: Wish, cache: CacheWish) -> CacheWish:
    """With the settings of the question."""
    options = wish.options
    settings = {"audit": options.audit, "seed": options.seed, "top": options.top_k or cache.top}
    return replace(cache, unit=options.normalise in ("relative", "cosine"), **settings)


def _caution(body: Mapping[str, Any]) -> str:
    row, numbers = body["bytes_per_row"], sum(o * i for o, i in body["layout"].values())
    return (
        f"scores come from an index that keeps {row:,} bytes of each row's {numbers:,} numbers "
        f"({body['code']['scheme']}); trace scores the rows in full"
    )


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
