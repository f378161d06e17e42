"""Scores -> ReportData: one function per section. Everything the page shows is decided and computed here.

Nothing here knows HTML or terminals, and nothing there computes: a number on the page is a number of these records
(or score / N and score / mass of two of them).
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whence.report import statistics, words
from whence.report.modules import head_grid, module_shares
from whence.report.records import (
    Distribution,
    Extras,
    LayerGrid,
    LayerSums,
    LeftOut,
    LexicalVerdict,
    Line,
    QueryReport,
    Ranking,
    ReportData,
    RowText,
    TokenScores,
)
from whence.results import RowView, Scores

RESPONSE_KINDS = frozenset({"completion", "assistant", "response", "output", "answer", "chosen"})
ENDS = 5  # strongest rows on each side that every page of a long list repeats
DETAILED = 25  # strongest rows on each side that carry their layer scores
QUARANTINE_SHOWN = 200
_PART_SHORT, _TEXT_BUDGET = 600, 6_000_000
_SIGNATURE, _PICTURE_MOST = b"\x89PNG\r\n\x1a\n", 60_000


def report_data(scores: Scores, *, extras: Extras | None = None) -> ReportData:
    """Collect everything a report shows.

    Args:
        scores: the answer, with texts where they were kept.
        extras: what the scores do not carry (tokens, quarantine, other rankings, title).

    Returns:
        Plain records, ready for ``render_html`` and ``render_text``.
    """
    extras = extras or Extras()
    views = {words.method_name(scores.about): scores, **extras.rankings}
    cells = max(2 * DETAILED, extras.max_cells // max(1, len(views) * len(scores.query_ids)))
    shelf = _Shelf(scores, extras)
    totals = {name: _source_totals(view) for name, view in views.items()}
    queries = [
        _query(view, q, shelf, view_name=name if len(views) > 1 else "", cells=cells, totals=totals[name][q])
        for name, view in views.items()
        for q in range(len(view.query_ids))
    ]
    unscored = _unscored(scores)
    left_out = _quarantine(scores, extras)
    complete = scores.columns is None
    return ReportData(
        title=extras.title or "Where did this come from?",
        summary=words.summarise(scores.about, scores.n_train, len(scores.query_ids)),
        n_train=scores.n_train,
        unscored=unscored,
        queries=tuple(queries),
        rows=shelf.finish(queries),
        layers=scores.layer_names if scores.per_layer is not None else (),
        grid=arrange_layers(scores.layer_names) if scores.per_layer is not None else None,
        similarity=_similarity(scores),
        trust=words.trust(scores.about),
        limits=words.limits(scores.about, complete, max(unscored, len(left_out))),
        facts=words.facts(scores.about),
        command=extras.command or words.first(scores.about.get("command"), ()),
        quarantine=left_out[:QUARANTINE_SHOWN],
        quarantined=len(left_out),
        tables=tuple(extras.tables),
        pages=tuple(extras.pages),
        unit=words.unit(scores.about),
        untold=words.missing_tokens(
            scores.about,
            len(scores.token_tracks) + len(extras.tokens),
            len(scores.query_tracks) + len(extras.query_tokens),
        ),
    )


class _Shelf:
    """The training rows that are shown, each stored once; rankings refer to them by position."""

    def __init__(self, scores: Scores, extras: Extras) -> None:
        self.scores, self.extras = scores, extras
        self.position: dict[str, int] = {}
        self.order: list[str] = []
        self.column = {train_id: n for n, train_id in enumerate(scores.train_ids)}

    def place(self, train_id: str) -> int:
        """Position of a row, putting it on the shelf when it is new."""
        if train_id not in self.position:
            self.position[train_id] = len(self.order)
            self.order.append(train_id)
        return self.position[train_id]

    def view(self, train_id: str) -> RowView:
        return self.scores.train_rows.get(train_id) or RowView(id=train_id, text="")

    def finish(self, queries: Sequence[QueryReport]) -> tuple[RowText, ...]:
        """All rows on the shelf; long texts are cut, and weak rows shortened when together they are too long."""
        views = [self.view(train_id) for train_id in self.order]
        groups = self._groups(views)
        heavy = sum(min(len(v.text), self.extras.max_text) for v in views) > _TEXT_BUDGET
        strong = {line.row for q in queries for line in (*q.ranking.lines[:50], *q.ranking.lines[-50:])}
        own = self.scores.self_influence
        return tuple(
            _row_text(
                view,
                most=self.extras.max_text if not heavy or n in strong else _PART_SHORT,
                group=groups[n],
                self_influence=_finite(own[self.column[view.id]]) if own is not None else None,
            )
            for n, view in enumerate(views)
        )

    def _groups(self, views: Sequence[RowView]) -> list[str]:
        """Given near-duplicate groups, else rows whose text is the same up to case and spaces."""
        keys = [" ".join(v.text.casefold().split()) for v in views]
        times = Counter(k for k in keys if k)
        names = {k: f"same-text-{i}" for i, (k, n) in enumerate(times.items(), start=1) if n > 1}
        return [self.extras.groups.get(v.id) or names.get(k, "") for v, k in zip(views, keys, strict=True)]


def _row_text(view: RowView, *, most: int, group: str, self_influence: float | None) -> RowText:
    return RowText(
        id=view.id,
        text=view.text[:most],
        source=view.source,
        location=view.location,
        status=view.status,
        label=view.label,
        parts=locate_parts(view.text[:most], view.spans),
        clipped=max(0, len(view.text) - most),
        group=group,
        self_influence=self_influence,
        image=_png(view.image),
    )


def _png(image: bytes) -> str:
    """A small PNG in base64; a run folder may hold anything, so nothing else passes."""
    small = image.startswith(_SIGNATURE) and len(image) <= _PICTURE_MOST
    return base64.b64encode(image).decode("ascii") if small else ""


def locate_parts(text: str, spans: Sequence[tuple[str, str]]) -> tuple[tuple[str, int, int], ...]:
    """(kind, text) pieces as (kind, start, end) ranges, searched in order; a piece that is not found is left out."""
    found, at = [], 0
    for kind, piece in spans:
        start = text.find(piece, at) if piece else -1
        if start < 0 and piece and at < len(text) and piece.startswith(text[at:]):
            start, piece = at, text[at:]  # the text was cut inside this piece
        if start >= 0:
            at = start + len(piece)
            found.append((kind, start, at))
    return tuple(found)


def _query(scores: Scores, q: int, shelf: _Shelf, *, view_name: str, cells: int, totals: Sequence[Any]) -> QueryReport:
    query_id = scores.query_ids[q]
    view = scores.query_rows.get(query_id) or RowView(id=query_id, text="")
    values, lexical = scores.row(q), _lexical_row(scores, q)
    ranking = rank_rows(scores, values, lexical=lexical, shelf=shelf, cells=cells)
    tokens = _row_tokens(scores, query_id, ranking, shelf=shelf)
    ranking = replace(ranking, lines=tuple(_flag(line, tokens.get(line.row, ())) for line in ranking.lines))
    known = np.isfinite(values)
    spread = statistics.describe(values[known] / scores.n_train)
    verdict = statistics.judge_lexical(values[known], lexical[known]) if lexical is not None else None
    parts, unit = locate_parts(view.text, view.spans), words.unit(scores.about)
    asked, sums = _asked(view, parts), _layer_sums(scores, q, ranking, shelf)
    return QueryReport(
        id=query_id,
        view=view_name,
        text=view.text[: shelf.extras.max_text],
        parts=parts,
        label=view.label,
        source=view.source,
        location=view.location,
        answer=words.answer(ranking, shelf.order, asked, of=unit),
        concentration=words.concentration(ranking, spread, of=unit),
        ranking=ranking,
        distribution=spread,
        lexical=verdict,
        layers=sums,
        modules=module_shares(scores.layer_names, sums),
        heads=head_grid(scores.heads.get(query_id, {})),
        sources=tuple(totals),
        query_tokens=shelf.extras.query_tokens.get(query_id) or scores.query_tracks.get(query_id),
        tokens=tokens,
        pairs={
            row: scores.token_pairs[key]
            for row in tokens
            if (key := (query_id, shelf.order[row])) in scores.token_pairs
        },
        warnings=_warnings(ranking, shelf, verdict, spread=spread, unit=unit),
        image=_png(view.image),
    )


def _asked(view: RowView, parts: Sequence[tuple[str, int, int]]) -> str:
    if view.label:
        return "label"
    return "response" if any(kind in RESPONSE_KINDS for kind, _, _ in parts) else "text"


def rank_rows(scores: Scores, values: np.ndarray, *, lexical: np.ndarray | None, shelf: _Shelf, cells: int) -> Ranking:
    """All known scores of one query as lines, best first; the weakest in the middle are left out beyond ``cells``.

    Args:
        scores: for ids and N.
        values: N scores, NaN where unknown.
        lexical: N BM25 values or None.
        shelf: where rows are put.
        cells: most lines.
    """
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(-values[known], kind="stable")]
    complete = scores.columns is None
    scored = len(order) if complete else max(len(order), len(scores.train_ids) - _unscored(scores))
    positive, negative = values[known][values[known] > 0], values[known][values[known] < 0]
    masses = float(positive.sum()), float(-negative.sum())
    ranks = np.arange(1, len(order) + 1)
    ranks[values[order] <= 0] += scored - len(order)  # a streamed top-k: opponents are counted from the end
    by_words = _lexical_ranks(lexical, known)
    keep = _listed(len(order), cells, shelf.extras.window)
    lines = tuple(
        Line(
            row=shelf.place(scores.train_ids[n]),
            rank=rank,
            score=float(values[n]),
            removal_effect=float(values[n]) / scores.n_train,
            share=_share(float(values[n]), *masses),
            percentile=100.0 * (scored - rank) / max(1, scored - 1),
            lexical=_finite(lexical[n]) if lexical is not None else None,
            lexical_rank=by_words.get(n),
        )
        for n, rank in zip(order[keep].tolist(), ranks[keep].tolist(), strict=True)
    )
    return Ranking(lines, scored, complete, *masses, proponents=len(positive), opponents=len(negative))


def _listed(count: int, cells: int, window: tuple[int, int] | None) -> np.ndarray:
    """Which of the ranked rows are listed: a window of them, or the strongest on both sides."""
    if window is not None:
        ends = np.r_[: min(ENDS, count), max(0, count - ENDS) : count]  # the answer stays what it is on every page
        return np.unique(np.r_[ends, np.arange(count)[slice(*window)]])
    return np.arange(count) if count <= cells else np.r_[: cells // 2, count - cells // 2 : count]


def _share(score: float, positive: float, negative: float) -> float:
    mass = positive if score > 0 else negative
    return abs(score) / mass if mass > 0 else 0.0


def _lexical_ranks(lexical: np.ndarray | None, known: np.ndarray) -> dict[int, int]:
    """Rank by BM25 among the known rows that share a word with the query, 1 = most; ties in training order."""
    if lexical is None:
        return {}
    sharing = known[np.nan_to_num(lexical[known]) > 0]
    order = sharing[np.argsort(-lexical[sharing], kind="stable")]
    return {int(n): rank for rank, n in enumerate(order.tolist(), start=1)}


def _lexical_row(scores: Scores, q: int) -> np.ndarray | None:
    """N BM25 values of a query, in training-row order."""
    if scores.lexical is None:
        return None
    return scores.with_(values=scores.lexical).row(q).astype(np.float64)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _unscored(scores: Scores) -> int:
    """Training rows without a score: NaN for every query, or quarantined where only the top was kept."""
    if scores.columns is None:
        return int((~np.isfinite(scores.values)).all(0).sum()) if len(scores.values) else 0
    return sum(row.status.startswith("quarantined") for row in scores.train_rows.values())


def _row_tokens(
    scores: Scores, query_id: str, ranking: Ranking, *, shelf: _Shelf
) -> dict[int, tuple[TokenScores, ...]]:
    known = {**scores.token_tracks, **shelf.extras.tokens}
    asked = {t: kinds for (q, t), kinds in known.items() if q == query_id}
    listed = {line.row for line in ranking.lines}
    at = {shelf.position[t]: tuple(kinds) for t, kinds in asked.items() if t in shelf.position}
    return {row: kinds for row, kinds in at.items() if row in listed}


def _flag(line: Line, tokens: Sequence[TokenScores]) -> Line:
    shares = [kind for kind in tokens if kind.kind != "input"]
    spurious = any(statistics.one_token_dominates(np.asarray(kind.scores)) for kind in shares)
    return replace(line, spurious=True) if spurious else line


def _layer_sums(scores: Scores, q: int, ranking: Ranking, shelf: _Shelf) -> LayerSums | None:
    """Each layer's share of the proponents' and of the opponents' total; layers of the strongest rows."""
    if scores.per_layer is None:
        return None
    cells, values = scores.per_layer[q].astype(np.float64), scores.values[q]
    known = np.isfinite(values) & (scores.columns[q] >= 0 if scores.columns is not None else True)
    column_of = range(len(values)) if scores.columns is None else scores.columns[q].tolist()
    where = {scores.train_ids[n]: i for i, n in enumerate(column_of) if known[i]}
    each = DETAILED if len(scores.query_ids) <= 20 else DETAILED // 3
    strong = (*ranking.lines[:each], *ranking.lines[-each:])
    rows = {line.row: tuple(cells[where[shelf.order[line.row]]].tolist()) for line in strong}
    up, down = cells[known & (values > 0)].sum(0), cells[known & (values < 0)].sum(0)
    return LayerSums(
        proponents=tuple((up / up.sum()).tolist()) if up.sum() > 0 else (),
        opponents=tuple((down / down.sum()).tolist()) if down.sum() < 0 else (),
        rows=rows,
    )


def arrange_layers(names: Sequence[str]) -> LayerGrid | None:
    """Layer names as depth x kind, from the first number in each; None unless both have at least two."""
    found = [re.match(r"^(.*?)(?:^|\.)(\d+)\.(.+)$", name) for name in names]
    if not all(found) or len({m[1] for m in found if m}) != 1:
        return None
    places = [(int(m[2]), m[3]) for m in found if m]
    depths, kinds = sorted({d for d, _ in places}), list(dict.fromkeys(k for _, k in places))
    if len(depths) < 2 or len(kinds) < 2:
        return None
    at = {place: n for n, place in enumerate(places)}
    cells = tuple(tuple(at.get((d, k), -1) for k in kinds) for d in depths)
    return LayerGrid(tuple(map(str, depths)), tuple(kinds), cells)


def _source_totals(scores: Scores) -> list[Any]:
    names = [scores.train_rows[t].source if t in scores.train_rows else "" for t in scores.train_ids]
    if len(set(names)) < 2:
        return [()] * len(scores.query_ids)
    effects = np.stack([scores.removal_effect(q) for q in range(len(scores.query_ids))])
    return statistics.total_by_source(effects, names)


def _similarity(scores: Scores) -> tuple[tuple[float, ...], ...] | None:
    """Spearman correlation between the queries' scores; a top-k has too few common rows for it."""
    return statistics.rank_correlation(scores.values) if scores.columns is None else None


def _warnings(
    ranking: Ranking, shelf: _Shelf, verdict: LexicalVerdict | None, *, spread: Distribution | None, unit: str
) -> tuple[str, ...]:
    """Plain warnings about one question's ranking."""
    said = [verdict.sentence] if verdict and verdict.level == "explains" else []
    said += filter(None, [words.normalised(unit)])
    top = ranking.top(5)
    texts = [" ".join(shelf.view(shelf.order[line.row]).text.casefold().split()) for line in top]
    same = len(texts) - len(set(texts)) if all(texts) else 0
    if same:
        said.append(f"{same + 1} of the {len(top)} strongest proponents have the same text.")
    said += filter(None, [words.shared_push(ranking, spread)])
    if any(line.spurious for line in top):
        said.append("One token dominates at least one of the five strongest proponents: it may be a spurious hit.")
    cut = sum(shelf.view(shelf.order[line.row]).status == "truncated" for line in top)
    if cut:
        were = "was scored on its" if cut == 1 else "were scored on their"
        said.append(f"{cut} of the {len(top)} strongest proponents {were} first tokens only (truncated).")
    return tuple(said)


def _quarantine(scores: Scores, extras: Extras) -> tuple[LeftOut, ...]:
    """Rows left out: from ``extras``, else from ``about['quarantine']`` or the rows' own status."""
    given = list(extras.quarantine) or scores.about.get("quarantine")
    if isinstance(given, list | tuple) and given:
        return tuple(_left_out(entry) for entry in given)
    return tuple(
        LeftOut(row.location, row.status.partition(":")[2], "", row.id)
        for row in scores.train_rows.values()
        if row.status.startswith("quarantined")
    )


def _left_out(entry: Any) -> LeftOut:
    read = entry.get if isinstance(entry, Mapping) else lambda name, default: getattr(entry, name, default)
    return LeftOut(*(str(read(name, "") or "") for name in ("location", "code", "message", "id")))
