"""The page of a choice (``select``, ``mixture``, ``bandit``, ``clean``): what was done and why. No script, no torch."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from typing import Any

from whence.report import charts
from whence.report.characters import visible
from whence.report.evaluation import STYLE
from whence.report.words import cell


def account_page(account: Mapping[str, Any]) -> str:
    """The whole page as text; write it as UTF-8.

    Args:
        account: an ``Account`` as plain data.
    """
    both = [f"light-dark({light}, {dark})" for light, dark in zip(charts.LIGHT, charts.DARK, strict=True)]
    style = STYLE + charts.CHART_STYLE + charts.palette(both)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = _text(account["title"])
    parts = [
        *(f"<p>{_text(sentence)}</p>" for sentence in account["words"]),
        *(_table(table) for table in account["tables"]),
        *(_figure(drawing) for drawing in account["charts"]),
        "<h2>Details</h2><details><summary>Settings, versions, fingerprints, seconds</summary><pre>"
        f"{_text(json.dumps(account['about'], indent=1, ensure_ascii=False))}</pre></details>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{style}</style></head><body>'
        f'<main><p class="quiet">whence {_text(account["verb"])}</p><h1>{title}</h1>{"".join(parts)}</main></body>'
        "</html>"
    )


def _table(table: Mapping[str, Any]) -> str:
    numeric = [
        any(isinstance(row[n], (int, float)) for row in table["rows"])
        and not any(isinstance(row[n], str) for row in table["rows"])
        for n in range(len(table["columns"]))
    ]
    kinds = [' class="num"' if is_number else "" for is_number in numeric]
    head = "".join(f"<th{kind}>{_text(name)}</th>" for kind, name in zip(kinds, table["columns"], strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_text(cell(c))}</td>" for kind, c in zip(kinds, row, strict=True)) + "</tr>"
        for row in table["rows"]
    )
    return (
        f'<h2>{_text(table["title"])}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _figure(drawing: Mapping[str, Any]) -> str:
    drawn = charts.chart_svg(drawing, alone=False)
    return f"<figure><figcaption>{_text(drawing['title'])}</figcaption>{drawn}</figure>"


def _text(value: Any) -> str:
    return escape(visible(str(value)))
