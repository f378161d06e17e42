"""A page of words, tables and drawings, without any script: what an evaluation and a choice of rows are shown on.

Its one style is allowed by its hash in a policy that forbids everything else. Every text is data of somebody and stays
text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from whence.report import charts
from whence.report.characters import visible
from whence.report.words import cell

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c1c1c, #e8e8e8); --soft: light-dark(#555, #aaa);
 --line: light-dark(#ddd, #444); --page: light-dark(#fff, #161616); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
 background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.3; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; margin-bottom: 0.4rem; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 14px; } th, td { padding: 0.25rem 0.8rem 0.25rem 0; text-align: left;
 border-bottom: 1px solid var(--line); vertical-align: top; }
th, td { overflow-wrap: break-word; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
td.num { white-space: nowrap; }
.scroll { overflow-x: auto; } pre { font-size: 12px; white-space: pre-wrap; } .quiet { color: var(--soft); }
"""


def sheet(title: str, verb: str, body: str) -> str:
    """The whole page as text; write it as UTF-8.

    Args:
        title: any text.
        verb: what was run, any text.
        body: HTML of the functions below, after title and verb.
    """
    both = [f"light-dark({light}, {dark})" for light, dark in zip(charts.LIGHT, charts.DARK, strict=True)]
    style = STYLE + charts.CHART_STYLE + charts.palette(both)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{text(title)}</title><style>{style}</style></head><body>"
        f'<main><p class="quiet">whence {text(verb)}</p><h1>{text(title)}</h1>{body}</main></body></html>'
    )


def text(value: Any) -> str:
    """Any text as text of a page, hidden characters shown."""
    return escape(visible(str(value)))


def paragraphs(sentences: Sequence[str]) -> str:
    """Each sentence on its own."""
    return "".join(f"<p>{text(sentence)}</p>" for sentence in sentences)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table under its heading; a column of numbers stands right."""
    numeric = [
        any(isinstance(row[n], (int, float)) for row in rows) and not any(isinstance(row[n], str) for row in rows)
        for n in range(len(columns))
    ]
    kinds = [' class="num"' if is_number else "" for is_number in numeric]
    head = "".join(f"<th{kind}>{text(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{text(cell(c))}</td>" for kind, c in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    drawn = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>{text(title)}</h2><div class="scroll">{drawn}</div>'


def figure(chart: Mapping[str, Any]) -> str:
    """A chart under its title."""
    drawn = charts.chart_svg(chart, alone=False)
    return f"<figure><figcaption>{text(chart['title'])}</figcaption>{drawn}</figure>"


def folded(title: str, told: str) -> str:
    """Something long, shown when it is asked for."""
    return f"<details><summary>{text(title)}</summary><pre>{text(told)}</pre></details>"
