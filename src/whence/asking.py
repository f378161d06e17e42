"""Answers from an index: the model for the question's gradient, the stored curvature, one product with every row."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from whence.api import questions_of, write_report
from whence.api import save as save_run
from whence.asking_stages import IndexPlace, Tuning, answer_stages
from whence.assemble import left_unscored, lexical_of, pictured, views_of
from whence.caching import Cached, CacheWish, parse_cache
from whence.curvature.base import get_method
from whence.errors import OptionError
from whence.indexing import INCIDENTAL, Wish
from whence.linalg.damping import parse_damping
from whence.options import TraceOptions, trace_options
from whence.pipeline import open_rows, open_subject
from whence.questions import answered, focused, posed_views
from whence.results import Scores
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
            ``tuned={"model": ..., "data": rows}`` (and perhaps ``alpha``) asks a model that was fine-tuned from the
            indexed one: its rows and those of the index, in the same nats.

    Returns:
        Scores as of ``attribute``, without token scores.

    Raises:
        StoreError: no finished index, a damaged file, or a model that is not the indexed one (names the fields).
        WhenceError: as ``attribute``.
    """
    started = time.perf_counter()
    place = Path(index).expanduser()
    body = index_schema.checked(place, index_folder.read_manifest(place), own_method=overrides.get("method"))
    tuned, cache = overrides.pop("tuned", None), overrides.pop("cache", None)
    keep = None if cache is None else parse_cache(cache)
    if cache is not None and tuned is not None:
        raise OptionError("cache with tuned", wanted="one of the two", try_="leave out cache: all rows are scored")
    options = trace_options(body["options"], **{k: v for k, v in overrides.items() if v is not None})
    wish = _resolve_question(body, options, watch)
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
    if out is not None:
        save_run(scores, out)
        wish.watch.note("out", f"written   {out}", folder=str(out))
    if report is not None:
        write_report(scores, report)
    return scores


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
    views = tables.read_rows(index_folder.verify(place, body, ROWS))
    asked = focused(subject, open_rows(subject, answered(subject, questions_of(query)), what="query"))
    asked = measured(wish, asked)
    check_losses(asked)
    shelf = shelf_of(place, body, tuple(views))
    cached = None if cache is None else Cached(shelf, _cache_wish(wish, cache), wish.watch)
    values, columns = Lookup(wish, subject, shelf, cached).answer(asked)
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
