"""Charts of an evaluation drawn with matplotlib (the ``plots`` extra), for papers and slides."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from whence.errors import OptionError
from whence.report.characters import calm, visible
from whence.report.charts import COLOURS, LIGHT, known

INCH = 7.5
DPI = 150


def chart_png(chart: Mapping[str, Any]) -> bytes:
    """One chart (as a mapping) as a PNG file.

    Raises:
        OptionError: matplotlib is not installed.
    """
    figure = chart_figure(chart)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def chart_figure(chart: Mapping[str, Any]) -> Any:
    """One chart (as a mapping) as a matplotlib figure.

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise OptionError(
            "matplotlib is not installed", wanted="the plots extra", try_='pip install "whence[plots]"'
        ) from error
    bars = chart["kind"] == "bars"
    count = max((len(curve["x"]) for curve in chart["curves"]), default=1)
    height = 1.2 + count * (0.14 * len(chart["curves"]) + 0.14) if bars else 4.2
    figure = module.Figure(figsize=(INCH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    (_bars if bars else _plane)(axes, chart)
    axes.set_title(_plain(chart["title"], 110), fontsize=11)
    if len(chart["curves"]) > 1:
        axes.legend(fontsize=8, frameon=False)
    return figure


def _plane(axes: Any, chart: Mapping[str, Any]) -> None:
    for n, curve in enumerate(chart["curves"]):
        colour, name = LIGHT[n % COLOURS], _plain(curve["name"])
        x, y = _floats(curve["x"]), _floats(curve["y"])
        if (curve.get("drawn") or chart["kind"]) == "scatter":
            axes.plot(x, y, ".", color=colour, label=name, alpha=0.7)
        else:
            axes.plot(x, y, "--" if n >= COLOURS else "-", color=colour, label=name)
        if curve["low"]:
            axes.fill_between(x, _floats(curve["low"]), _floats(curve["high"]), color=colour, alpha=0.15, linewidth=0)
    if chart["log_x"]:
        axes.set_xscale("log")
    axes.set_xlabel(_plain(chart["x_axis"], 110))
    axes.set_ylabel(_plain(chart["y_axis"], 70))
    axes.grid(axis="y", alpha=0.3)


def _bars(axes: Any, chart: Mapping[str, Any]) -> None:
    curves = chart["curves"]
    wide = 0.8 / max(1, len(curves))
    for n, curve in enumerate(curves):
        y, places = _floats(curve["y"]), [x - 0.4 + (n + 0.5) * wide for x in _floats(curve["x"])]
        axes.barh(places, y, height=wide, color=LIGHT[n % COLOURS], label=_plain(curve["name"]))
        for place, low, high in zip(places, _floats(curve["low"]), _floats(curve["high"]), strict=False):
            axes.plot([low, high], [place, place], color="#1c1c1c", linewidth=0.9)
    if chart["groups"]:
        axes.set_yticks(range(len(chart["groups"])), [_plain(name) for name in chart["groups"]], parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color="#555", linewidth=0.8)
    axes.set_xlabel(_plain(chart["y_axis"], 110))


def _floats(values: Sequence[Any]) -> list[float]:
    return [float("nan") if known(value) is None else float(value) for value in values]


def _plain(text: Any, most: int = 44) -> str:
    """Data as a label: one line, nothing invisible, not too long; matplotlib's own markup is switched off."""
    shown = visible(calm(str(text)), one_line=True)
    return (shown if len(shown) <= most else shown[: most - 1] + "…").replace("$", r"\$")
