"""A ranking as CSV (safe to open in a spreadsheet) or JSONL (untouched), with the columns of the page's own export."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from whence.report.characters import csv_cell
from whence.report.records import ReportData

COLUMNS = (
    "query_id", "train_id", "rank", "score", "removal_effect", "share", "percentile", "lexical", "status", "source",
    "location", "text",
)  # fmt: skip


def export_csv(data: ReportData, query: int = 0) -> str:
    """All listed rows of one question as CSV; text that a spreadsheet would run as a formula gets a leading ``'``.

    Args:
        data: the report.
        query: position of the question.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for record in records(data, query):
        writer.writerow([csv_cell(v) if isinstance(v, str) else "" if v is None else v for v in record.values()])
    return out.getvalue()


def export_jsonl(data: ReportData, query: int = 0) -> str:
    """All listed rows of one question, one JSON object a line."""
    return "".join(json.dumps(record) + "\n" for record in records(data, query))


def records(data: ReportData, query: int = 0) -> Iterator[dict[str, Any]]:
    """One mapping per listed row, best first, keys as in ``COLUMNS``."""
    asked = data.queries[query]
    for line in asked.ranking.lines:
        row = data.rows[line.row]
        yield dict(
            zip(
                COLUMNS,
                (
                    asked.id, row.id, line.rank, line.score, line.removal_effect, line.share, line.percentile,
                    line.lexical, row.status, row.source, row.location, row.text,
                ),
                strict=True,
            )
        )  # fmt: skip
