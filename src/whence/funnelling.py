"""The funnel of ``attribute``: cheap filters choose rows, the method scores those, a sample says what was lost."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from whence.assemble import views_of
from whence.candidates.features import cosines, forward_features
from whence.candidates.funnel import Recall, Stage, fused, let_through, parse_funnel, recall, sampled
from whence.candidates.lexical import bm25_scores, tfidf_scores
from whence.curvature.base import Method, get_method
from whence.errors import OptionError, StoreError
from whence.indexing import Wish
from whence.linalg.damping import Damping, parse_damping
from whence.linalg.operators import Operator
from whence.options import TraceOptions, trace_options
from whence.pipeline import Material, Subject
from whence.questions import posed_views
from whence.scores.keeping import Blocks
from whence.scores.score import Queries
from whence.scoring import normalised, scored, top
from whence.searching import Lookup, require_model, shelf_of
from whence.stages import Ask
from whence.store import index_folder, tables
from whence.store.index_folder import ROWS
from whence.tasks.base import Task
from whence.watch import Silent, Watcher

UNKNOWN = Recall(float("nan"), 0.0, 1.0)
TOP = 10  # of the exact ranking: what recall is measured of
LEAST_AUDIT, AUDIT_SHARE = 200, 0.05


@dataclass(frozen=True)
class Passed:
    """What one stage let through: Q x N booleans over all rows read, and how long it took."""

    stage: Stage
    kept_QN: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Narrowed:
    """The rows that are scored exactly.

    Attributes:
        rows: the candidates of all questions and the sample beside them, to be scored.
        passed: the stages, first to last.
        weights_N: how many rows each scored one stands for; 0 for the others.
        usable: rows that could have been scored.
    """

    rows: Material
    passed: tuple[Passed, ...]
    weights_N: np.ndarray
    usable: int


def check_funnel(ask: Ask) -> None:
    """Refuse what cannot be, before anything is loaded.

    Raises:
        OptionError: a filter that does not exist; stages of training or checkpoints, which have rows or models of their
            own.
    """
    parse_funnel(str(ask.options.candidates))
    if ask.options.checkpoints is not None or getattr(ask, "pretraining", None) is not None:
        raise OptionError(
            "candidates over checkpoints or stages of training", wanted="one model and its rows", try_="top_k instead"
        )


def narrowed(ask: Ask, subject: Subject, trained: Material, asked: Material) -> Narrowed:
    """Run the filters and draw the sample.

    Raises:
        StoreError: an index of another model or of other rows, or a damaged one.
    """
    usable, ids = len(trained.examples), trained.rows.ids
    place = {id_: n for n, id_ in enumerate(ids)}
    at = np.array([place[id_] for id_ in trained.source.ids])
    alive: np.ndarray | None = None
    passed: list[Passed] = []
    for stage in parse_funnel(str(ask.options.candidates)):
        started = time.perf_counter()
        filters = _Filters(ask, subject, trained, asked)
        scores_QN = fused([filters.scores(source) for source in stage.sources])
        alive = np.ones(scores_QN.shape, dtype=bool) if alive is None else alive
        alive = let_through(scores_QN, alive, stage.count(usable))
        kept_QN = np.zeros((len(alive), len(ids)), dtype=bool)
        kept_QN[:, at] = alive
        passed.append(Passed(stage, kept_QN, time.perf_counter() - started))
        ask.watch.note(
            "candidates", f"filter    {_let(passed[-1], usable)}", stage=stage.name, kept=stage.count(usable)
        )
    chosen = np.any(passed[-1].kept_QN, axis=0, keepdims=True)[0]
    others = at[~chosen[at]]
    drawn = sampled(others, _audited(ask.options.audit, usable), ask.options.seed)
    weights_N = chosen.astype(np.float64)
    weights_N[drawn] = len(others) / max(1, len(drawn))
    wanted = {ids[n] for n in np.flatnonzero(weights_N).tolist()}
    examples = tuple(example for example in trained.examples if example.id in wanted)
    rows = replace(trained, examples=examples, source=trained.source.only(wanted))
    return Narrowed(rows, tuple(passed), weights_N, usable)


def _audited(asked: int | str, rows: int) -> int:
    return rows if asked == "all" else max(LEAST_AUDIT, int(AUDIT_SHARE * rows)) if asked == "auto" else int(asked)


def _let(passed: Passed, rows: int) -> str:
    count, pooled = passed.stage.count(rows), int(passed.kept_QN.any(0).sum())
    together = f", {pooled:,} for all {len(passed.kept_QN):,} questions" if len(passed.kept_QN) > 1 else ""
    return f"{passed.stage.name}: {count:,} of {rows:,} rows a question{together} · {passed.seconds:.1f} s"


@dataclass(frozen=True)
class _Filters:
    """Cheap scores of every usable row for every question as posed."""

    ask: Ask
    subject: Subject
    trained: Material
    asked: Material

    def scores(self, source: str) -> np.ndarray:
        """Q x N over ``trained.source.ids``."""
        kind, _, folder = source.partition("@")
        if kind == "index":
            return self._looked_up(Path(folder).expanduser())
        if kind in ("bm25", "tfidf"):
            rows = views_of(self.trained, ())
            said = [view.text for view in (posed_views(self.subject, self.asked) or views_of(self.asked, ())).values()]
            texts = [rows[id_].text for id_ in self.trained.source.ids]
            return (bm25_scores if kind == "bm25" else tfidf_scores)(said, texts)
        return self._similar(kind)

    def _similar(self, kind: str) -> np.ndarray:
        """Cosines of mean vectors; a mixture of questions is as similar as they are on average.

        Raises:
            OptionError: a model without such vectors.
        """
        asked, rows = (forward_features(side.source).vectors.get(kind) for side in (self.asked, self.trained))
        if asked is None or rows is None:
            raise OptionError(
                f"candidates by {kind}: this model has none", wanted="bm25, tfidf, activation or an index"
            )
        values = cosines(asked, rows)
        return values if self.subject.options.combine == "each" else values.mean(0, keepdims=True)

    def _looked_up(self, place: Path) -> np.ndarray:
        body = index_folder.read_manifest(place)
        require_model(place, body, self.subject)
        data = {"data": self.trained.rows.fingerprint}
        index_folder.require_same(place, {"data": body["identity"].get("data")}, data)
        ids = tuple(tables.read_rows(index_folder.verify(place, body, ROWS)))
        known = {id_: n for n, id_ in enumerate(ids)}
        missing = [id_ for id_ in self.trained.source.ids if id_ not in known]
        if missing:
            raise StoreError(f"{place} has no row {missing[0]}", wanted="an index of these rows", try_="whence index")
        options = trace_options(body["options"], top_k=None, normalise="none")
        wish = Wish(get_method(options.method), parse_damping(options.damping), options, Silent())
        values, _ = Lookup(wish, self.subject, shelf_of(place, body, ids)).answer(self.asked)
        return values[:, [known[id_] for id_ in self.trained.source.ids]]


def exact_answers(
    ask: Ask,
    narrow: Narrowed | None,
    trained: Material,
    queries: Queries,
    *,
    inverse: Operator,
    blocks: Blocks | None = None,
) -> dict[str, Any]:
    """The scores, of all rows or of the candidates; with what the filters lost. ``blocks``: see ``scored``."""
    if narrow is None:
        return top(ask, normalised(ask, scored(ask, trained, queries, inverse, blocks=blocks), queries))
    whole = _Everything.of(ask)
    found = normalised(whole, scored(whole, narrow.rows, queries, inverse, blocks=blocks), queries)
    record = _judged(narrow, found["values"])
    ask.watch.note("funnel", f"funnel    {record['told']}", **record)
    lost = [stage["told"] for stage in record["stages"]]
    ids = frozenset(trained.source.ids) - frozenset(narrow.rows.source.ids)
    cut = sum(example.truncated > 0 for example in narrow.rows.examples)
    rows = {"read": len(trained.rows.ids), "scored": len(narrow.rows.examples), "truncated": cut}
    rows["quarantined"] = len(trained.quarantine)
    about = {"funnel": record, "warnings": [record["told"], *lost, SIDES], "rows": rows}
    return {**top(ask, found), "unscored": ids, "about": about}


SIDES = "filters look for rows that speak for an answer: opponents shown are the strongest among the candidates"


@dataclass(frozen=True)
class _Everything:
    """As asked, but all scores are kept until the filters have been judged."""

    method: Method
    damping: Damping
    options: TraceOptions
    task: Task | None
    watch: Watcher

    @staticmethod
    def of(ask: Ask) -> _Everything:
        """Without ``top_k``."""
        return _Everything(ask.method, ask.damping, ask.options.model_copy(update={"top_k": None}), ask.task, ask.watch)


def _judged(narrow: Narrowed, values_QN: np.ndarray) -> dict[str, Any]:
    """Recall of every stage, for the result's ``about``."""
    chosen, scored_rows = int(narrow.passed[-1].kept_QN.any(0).sum()), int((narrow.weights_N > 0).sum())
    stages = []
    for passed in narrow.passed:
        measured = UNKNOWN
        if scored_rows > chosen or scored_rows >= narrow.usable:
            measured = recall(values_QN, passed.kept_QN, narrow.weights_N, top=TOP)
        count = passed.stage.count(narrow.usable)
        stages.append(
            {
                "name": passed.stage.name,
                "rows": count,
                "share": count / narrow.usable,
                "seconds": round(passed.seconds, 3),
                "recall": measured.value,
                "recall_low": measured.low,
                "recall_high": measured.high,
                "told": _told(passed.stage, measured, scored_rows >= narrow.usable),
            }
        )
    said = f"{chosen:,} of {narrow.usable:,} rows were candidates and scored exactly"
    if scored_rows > chosen:
        said += f", and {scored_rows - chosen:,} others to see what the filters lost"
    rows = {"candidates": chosen, "audited": scored_rows - chosen, "rows": narrow.usable}
    return {"stages": stages, "top": TOP, **rows, "told": said}


def _told(stage: Stage, measured: Recall, whole: bool) -> str:
    if np.isnan(measured.value):
        return f"what {stage.name} lost is not known: no row beside the candidates was scored"
    within = "" if whole else f" (95 % interval {measured.low:.2f} to {measured.high:.2f})"
    return f"{stage.name} let through {measured.value:.2f}{within} of the exact top {TOP}"
