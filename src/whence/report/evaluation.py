"""An evaluation on its way to people: one page, the drawings as files, the numbers as JSON. No torch in here.

The page has no script at all; its one style is allowed by its hash in a policy that forbids everything else. Every
text is data of somebody and stays text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol

from whence.errors import OptionError
from whence.report import charts, plots
from whence.report.characters import visible
from whence.report.words import cell
from whence.store import atomic

MOST_DETAILS = 1 << 20  # characters of numbers in a page
STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c1c1c, #e8e8e8); --soft: light-dark(#555, #aaa);
 --line: light-dark(#ddd, #444); --page: light-dark(#fff, #161616); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
 background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.3; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; margin-bottom: 0.4rem; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 14px; } th, td { padding: 0.25rem 0.8rem 0.25rem 0; text-align: left;
 border-bottom: 1px solid var(--line); vertical-align: top; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } pre { font-size: 12px; white-space: pre-wrap; } .quiet { color: var(--soft); }
"""


class Told(Protocol):
    """An outcome: something that tells itself as a mapping."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Written:
    """What a folder got.

    Attributes:
        files: all files written.
        missing: what could not be written and why; "" = everything was.
    """

    files: tuple[Path, ...]
    missing: str = ""


def write_outcome(outcome: Told | Mapping[str, Any], folder: str | Path) -> Written:
    """``outcome.json``, ``report.html`` and every chart as ``plots/*.svg`` and ``*.png`` (with the ``plots`` extra).

    Raises:
        StoreError: the folder cannot be written to.
    """
    data, place = plain_outcome(outcome), Path(folder).expanduser()
    files = [place / "outcome.json", place / "report.html"]
    atomic.write_text(files[0], json.dumps(data, indent=1, allow_nan=False))
    atomic.write_text(files[1], evaluation_page(data))
    missing = ""
    for number, chart in enumerate(data["charts"], start=1):
        name = f"{number}-{re.sub(r'[^a-z0-9]+', '-', str(chart['title']).lower()).strip('-')[:48] or 'chart'}"
        files.append(place / "plots" / f"{name}.svg")
        atomic.write_text(files[-1], chart_svg(chart))
        try:
            drawn = plots.chart_png(chart)
        except OptionError as error:
            missing = f"no PNG plots, only SVG: {error.got}; {error.try_}"
            continue
        files.append(place / "plots" / f"{name}.png")
        atomic.write_bytes(files[-1], drawn)
    return Written(tuple(files), missing)


def plain_outcome(outcome: Told | Mapping[str, Any]) -> dict[str, Any]:
    """The outcome as JSON holds it."""
    return atomic.plain(outcome if isinstance(outcome, Mapping) else outcome.to_dict())


def chart_svg(chart: Any) -> str:
    """One chart (a ``Chart``, or it as a mapping) as a file of its own."""
    return charts.chart_svg(atomic.plain(asdict(chart) if is_dataclass(chart) else chart))  # type: ignore[arg-type]


def evaluation_page(outcome: Told | Mapping[str, Any]) -> str:
    """The whole page as text; write it as UTF-8."""
    data = plain_outcome(outcome)
    style = STYLE + charts.CHART_STYLE + charts.palette(_both())
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = _text(data["title"])
    drawn = [
        f"<figure><figcaption>{_text(chart['title'])}</figcaption>{charts.chart_svg(chart, alone=False)}</figure>"
        for chart in data["charts"]
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{style}</style></head><body>'
        f'<main><p class="quiet">whence evaluate {_text(data["verb"])}</p><h1>{title}</h1>{_words(data)}'
        f"{_table(data)}{''.join(drawn)}{_about(data)}</main></body></html>"
    )


def _both() -> list[str]:
    """Each colour for a light and a dark ground."""
    return [f"light-dark({light}, {dark})" for light, dark in zip(charts.LIGHT, charts.DARK, strict=True)]


def _text(value: Any) -> str:
    return escape(visible(str(value)))


def _words(data: Mapping[str, Any]) -> str:
    return "".join(f"<p>{_text(sentence)}</p>" for sentence in data["words"])


def _table(data: Mapping[str, Any]) -> str:
    numeric = [
        any(isinstance(row[n], (int, float)) for row in data["rows"])
        and not any(isinstance(row[n], str) for row in data["rows"])
        for n in range(len(data["columns"]))
    ]
    kinds = [' class="num"' if is_number else "" for is_number in numeric]
    head = "".join(f"<th{kind}>{_text(name)}</th>" for kind, name in zip(kinds, data["columns"], strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_text(cell(c))}</td>" for kind, c in zip(kinds, row, strict=True)) + "</tr>"
        for row in data["rows"]
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>Table</h2><div class="scroll">{table}</div><h2>Plots</h2>'


def _about(data: Mapping[str, Any]) -> str:
    parts = []
    for name, key in (("Settings, versions, seeds, seconds", "about"), ("Every number", "values")):
        told = json.dumps(data[key], indent=1, ensure_ascii=False)
        if len(told) > MOST_DETAILS:
            told = f"{len(told):,} characters: too many for a page. They are in outcome.json."
        parts.append(f"<details><summary>{name}</summary><pre>{_text(told)}</pre></details>")
    return "<h2>Details</h2>" + "".join(parts)
