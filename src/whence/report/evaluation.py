"""An evaluation on its way to people: one page, the drawings as files, the numbers as JSON. No torch in here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Protocol

from whence.errors import OptionError
from whence.report import charts, plots
from whence.report.sheet import figure, folded, paragraphs, sheet, table
from whence.store import atomic

MOST_DETAILS = 1 << 20  # characters of numbers in a page


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
    parts = [
        paragraphs(data["words"]),
        table("Table", data["columns"], data["rows"]),
        "<h2>Plots</h2>",
        *map(figure, data["charts"]),
        _about(data),
    ]
    return sheet(data["title"], f"evaluate {data['verb']}", "".join(parts))


def _about(data: Mapping[str, Any]) -> str:
    parts = []
    for name, key in (("Settings, versions, seeds, seconds", "about"), ("Every number", "values")):
        told = json.dumps(data[key], indent=1, ensure_ascii=False)
        if len(told) > MOST_DETAILS:
            told = f"{len(told):,} characters: too many for a page. They are in outcome.json."
        parts.append(folded(name, told))
    return "<h2>Details</h2>" + "".join(parts)
