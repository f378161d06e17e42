"""ReportData -> the JSON of the page. Columns instead of records for what there is much of; offsets in UTF-16 units.

Left out because the page derives them from two other numbers: removal effect (score / N), share (score / mass) and
percentile (rank and count). ``tests/report`` compares what the page shows with the records.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from whence.report import words
from whence.report.characters import FORMULA, RANGES
from whence.report.records import LayerSums, QueryReport, Ranking, ReportData, RowText, TokenScores

INLINE_MOST = 200_000  # bytes of JSON kept readable in the page; longer data are compressed
FORMAT = 1
_SURROGATE = re.compile("[\ud800-\udfff]")


def island(data: ReportData) -> tuple[str, str]:
    """The data as text that is inert inside a ``<script>`` element, and its encoding (``json`` or ``gzip``)."""
    text = json.dumps(page_data(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = _SURROGATE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)
    if len(text) > INLINE_MOST:
        packed = gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0)
        return base64.b64encode(packed).decode("ascii"), "gzip"
    for character in "<>&\u2028\u2029":  # nothing may close the element, open a comment or end a line
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text, "json"


def page_data(data: ReportData) -> dict[str, Any]:
    """Everything the page needs, as JSON values."""
    plain = {
        f.name: getattr(data, f.name) for f in fields(data) if f.name not in {"queries", "rows", "tables", "facts"}
    }
    return {
        "format": FORMAT,
        **_jsonable(plain),
        "unseen": RANGES,
        "formula": FORMULA,
        "facts": [[f.section, f.name, f.value] for f in data.facts],
        "tables": [
            {**_jsonable(asdict(table)), "rows": [[words.cell(c) for c in row] for row in table.rows]}
            for table in data.tables
        ],
        "rows": _pack_rows(data.rows),
        "queries": [_pack_query(query, data) for query in data.queries],
    }


def _jsonable(value: Any) -> Any:
    """Records, tuples and NumPy-free numbers to JSON values; numbers to 6 significant digits; NaN to null."""
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, float):
        return short(value)
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def short(value: float | None, digits: int = 6) -> float | int | None:
    """A number with few digits, or None if it is not finite."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _pack_rows(rows: Sequence[RowText]) -> dict[str, Any]:
    sources = sorted({row.source for row in rows})
    return {
        "sources": sources,
        "source": [sources.index(row.source) for row in rows],
        "id": [row.id for row in rows],
        "text": [row.text for row in rows],
        "location": [row.location for row in rows],
        "status": [row.status for row in rows],
        "label": [row.label for row in rows],
        "group": [row.group for row in rows],
        "clipped": [row.clipped for row in rows],
        "self": [short(row.self_influence, 4) for row in rows],
        "parts": [_utf16(row.text, row.parts) for row in rows],
        "image": {n: row.image for n, row in enumerate(rows) if row.image},
    }


def _pack_query(query: QueryReport, data: ReportData) -> dict[str, Any]:
    return {
        **_jsonable({f: getattr(query, f) for f in ("id", "view", "text", "label", "source", "location")}),
        **_jsonable({f: getattr(query, f) for f in ("answer", "concentration", "warnings", "lexical", "sources")}),
        "distribution": _jsonable(query.distribution),
        "layers": _pack_layers(query.layers),
        "parts": _utf16(query.text, query.parts),
        "image": query.image,
        "ranking": _pack_ranking(query.ranking),
        "modules": _jsonable(query.modules),
        "heads": _jsonable(query.heads),
        "pairs": {str(row): _pack_pairs(cells) for row, cells in query.pairs.items()},
        "query_tokens": _pack_tokens(query.text, query.query_tokens) if query.query_tokens else None,
        "tokens": {
            str(row): [_pack_tokens(data.rows[row].text, kind) for kind in kinds] for row, kinds in query.tokens.items()
        },
    }


def _pack_layers(sums: LayerSums | None) -> dict[str, Any] | None:
    if sums is None:
        return None
    rows = {str(row): [short(x, 3) for x in scores] for row, scores in sums.rows.items()}
    return {"proponents": _jsonable(sums.proponents), "opponents": _jsonable(sums.opponents), "rows": rows}


def _pack_ranking(ranking: Ranking) -> dict[str, Any]:
    lines = ranking.lines
    return {
        "row": [line.row for line in lines],
        "rank": [line.rank for line in lines],
        "score": [short(line.score) for line in lines],
        "lexical": [short(line.lexical, 3) for line in lines],
        "lexical_rank": [line.lexical_rank for line in lines],
        "spurious": [line.row for line in lines if line.spurious],
        **{f: getattr(ranking, f) for f in ("scored", "complete", "proponents", "opponents")},
        **{f: short(getattr(ranking, f)) for f in ("positive_mass", "negative_mass")},
    }


def _pack_tokens(text: str, tokens: TokenScores) -> dict[str, Any]:
    inside = [i for i, (_, end) in enumerate(tokens.spans) if end <= len(text)]
    spans = _utf16(text, [("", *tokens.spans[i]) for i in inside])
    return {
        "kind": tokens.kind,
        "spans": [span[1:] for span in spans],
        "scores": [short(tokens.scores[i], 3) for i in inside],
        "rest": short(tokens.rest, 3),
        "masked": [n for n, i in enumerate(inside) if tokens.masked and tokens.masked[i]],
    }


def _pack_pairs(cells: np.ndarray) -> dict[str, Any]:
    """The lines that are not all zero; numbers to three digits."""
    inner = np.nan_to_num(cells[:, :-1].astype(np.float64))
    lines = np.flatnonzero(np.abs(inner).max(1, initial=0.0) > 0).tolist()
    return {"lines": lines, "cells": [[short(x, 3) for x in inner[line].tolist()] for line in lines]}


def _utf16(text: str, ranges: Sequence[tuple[str, int, int]]) -> list[list[Any]]:
    """Ranges in code points -> ranges in UTF-16 units, which is what a page counts in."""
    if not ranges:
        return []
    if text.isascii() or max(text) <= "\uffff":
        return [list(r) for r in ranges]
    units, total = [0], 0
    for character in text:
        total += 2 if character > "\uffff" else 1
        units.append(total)
    return [[kind, units[start], units[end]] for kind, start, end in ranges]
