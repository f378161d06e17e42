"""A chart of an evaluation as SVG: lines, clouds and bars with their intervals. No script, no torch, no matplotlib.

Colours and type come from the class names, so that the page's own style (or the one that a file brings along) decides
them. All text is data of somebody: escaped, without control characters, shortened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from whence.report.characters import calm, visible

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 360, 64, 24, 14, 50
COLOURS = 10  # classes c0 to c9
BAR, GAP = 11, 10  # height of one bar; space between groups
MANY = 13  # points from which on an interval is a band instead of whiskers
LETTER = 6.4  # mean width of a letter at 12 px
LONGEST = 44  # letters of a name

CHART_STYLE = """
.chart { font: 12px system-ui, sans-serif; } .chart text { fill: var(--soft); }
.chart .grid { stroke: var(--line); } .chart .axis { stroke: var(--soft); }
.chart .line { fill: none; stroke-width: 2; } .chart .line.dashed { stroke-dasharray: 5 4; }
 .chart .band { opacity: 0.14; stroke: none; }
.chart .whisker { stroke: var(--ink); opacity: 0.75; } .chart .dot { stroke: none; } .chart .cloud { opacity: 0.6; }
"""
LIGHT = ("#1769aa", "#dd7a33", "#1a7f37", "#8250df", "#b3820a", "#cf222e", "#3aa6a6", "#7a7a7a", "#a33f7d", "#5b7fb5")
DARK = ("#62abe6", "#ee9a58", "#57b870", "#b08cf5", "#d9ab3a", "#f2727b", "#63cccc", "#a8a8a8", "#d57db3", "#9db9e6")


def palette(colours: Sequence[str]) -> str:
    """Rules that give the classes c0 ... their colours; a line is stroked, everything else filled."""
    rules = [
        f".chart .c{n} {{ fill: {colour}; }} .chart .line.c{n} {{ fill: none; stroke: {colour}; }}"
        for n, colour in enumerate(colours)
    ]
    return "\n".join(rules)


def chart_svg(chart: Mapping[str, Any], *, alone: bool = True) -> str:
    """One chart.

    Args:
        chart: ``Chart`` of an outcome as a mapping, NaN as None or NaN.
        alone: a file of its own, with its style and a white ground; otherwise to be put into a page.
    """
    drawn = _bars(chart) if chart["kind"] == "bars" else _plane(chart)
    keys = [] if chart["kind"] == "bars" and len(chart["curves"]) < 2 else [c["name"] for c in chart["curves"]]
    legend, lines = _legend(keys, drawn.height)
    height = drawn.height + 18 * lines + (6 if lines else 0)
    style = (
        f"<style>:root {{ --ink: #1c1c1c; --soft: #555; --line: #ddd; }}{CHART_STYLE}{palette(LIGHT)}</style>"
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{label(chart["title"], 200)}">{style if alone else ""}{drawn.body}{legend}</svg>'
    )


def label(text: Any, most: int = LONGEST) -> str:
    """Data as text of a drawing: one line, nothing invisible, not too long, escaped."""
    shown = visible(calm(str(text)), one_line=True)
    return escape(shown if len(shown) <= most else shown[: most - 1] + "…")


def known(value: Any) -> float | None:
    """The value if it is a finite number."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers between low and high: steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.9)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Drawn:
    body: str
    height: float


@dataclass(frozen=True)
class _Scale:
    """From values to places: ``low`` at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (
            self.low,
            self.high,
            value,
        )  # fmt: skip
        return self.start + (self.end - self.start) * (value - low) / ((high - low) or 1.0)

    def ticks(self) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [10.0**p for p in powers if self.low * 0.999 <= 10.0**p <= self.high * 1.001]
        return found if len(found) > 1 else [self.low, self.high]


# --- lines and clouds ----------------------------------------------------------------------------------------------


def _points(curve: Mapping[str, Any], log_x: bool) -> list[tuple[float, float, float | None, float | None]]:
    """(x, y, low, high) of the points that can be drawn."""
    ends = zip(curve["low"], curve["high"], strict=True) if curve["low"] else [(None, None)] * len(curve["x"])
    found = []
    for x, y, (low, high) in zip(curve["x"], curve["y"], ends, strict=True):
        at, value = known(x), known(y)
        if at is not None and value is not None and not (log_x and at <= 0):
            found.append((at, value, known(low), known(high)))
    return found


def _plane(chart: Mapping[str, Any]) -> _Drawn:
    curves = [_points(curve, chart["log_x"]) for curve in chart["curves"]]
    xs = [p[0] for points in curves for p in points] or [1.0, 10.0]
    ys = [v for points in curves for p in points for v in p[1:] if v is not None] or [0.0, 1.0]
    low, high = _padded(min(ys), max(ys))
    left, right = (min(xs), max(xs)) if chart["log_x"] or chart["kind"] == "line" else _padded(min(xs), max(xs))
    right = right if right > left else left * 10 if chart["log_x"] else left + 1
    across = _Scale(left, right, LEFT, WIDTH - RIGHT, chart["log_x"])
    up = _Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, up, chart)]
    for n, (curve, points) in enumerate(zip(chart["curves"], curves, strict=True)):
        kind = curve.get("drawn") or chart["kind"]
        parts.append(
            (_cloud if kind == "scatter" else _line)(
                points, across, up, f"c{n % COLOURS}{' dashed' if n >= COLOURS else ''}"
            )
        )
    return _Drawn("".join(parts), HEIGHT)


def _padded(low: float, high: float) -> tuple[float, float]:
    """A little room; a range that starts near 0 starts at 0."""
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    room = 0.04 * (high - low)
    return (0.0 if 0 <= low < 0.25 * high else low - room), high + room


def _grid(across: _Scale, up: _Scale, chart: Mapping[str, Any]) -> str:
    parts = []
    for value in up.ticks():
        y = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in across.ticks():
        parts.append(
            f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:.4g}</text>'
        )
    middle, down = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - BOTTOM + 38}" text-anchor="middle">{label(chart["x_axis"], 90)}</text>'
    )
    turned = f'transform="rotate(-90 14 {down})"'
    parts.append(f'<text x="14" y="{down}" text-anchor="middle" {turned}>{label(chart["y_axis"], 50)}</text>')
    return "".join(parts)


Points = Sequence[tuple[float, float, float | None, float | None]]


def _line(points: Points, across: _Scale, up: _Scale, colour: str) -> str:
    if not points:
        return ""
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y, _, _ in points)
    parts = [f'<polyline class="line {colour}" points="{path}"/>']
    ends = [(across(x), up(low), up(high)) for x, _, low, high in points if low is not None and high is not None]
    if len(ends) >= MANY:
        there, back = [f"{x:.1f},{low:.1f}" for x, low, _ in ends], [f"{x:.1f},{high:.1f}" for x, _, high in ends]
        parts.insert(0, f'<polygon class="band {colour}" points="{" ".join([*there, *reversed(back)])}"/>')
    else:
        parts += [_whisker(x, x, low, high) for x, low, high in ends]
    if len(points) < MANY:
        parts += [f'<circle class="dot {colour}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"/>' for x, y, *_ in points]
    return "".join(parts)


def _cloud(points: Points, across: _Scale, up: _Scale, colour: str) -> str:
    parts = []
    for x, y, low, high in points:
        if low is not None and high is not None:
            parts.append(_whisker(across(x), across(x), up(low), up(high)))
        parts.append(f'<circle class="dot cloud {colour}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6"/>')
    return "".join(parts)


def _whisker(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="whisker" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


# --- bars ----------------------------------------------------------------------------------------------------------


def _bars(chart: Mapping[str, Any]) -> _Drawn:
    """Bars on their side: long names stand beside their group, values run to the right."""
    curves = [{int(p[0]): p[1:] for p in _points(curve, False)} for curve in chart["curves"]]
    count = max((g + 1 for curve in curves for g in curve), default=0)
    names = [str(name) for name in chart["groups"]] + [str(g) for g in range(len(chart["groups"]), count)]
    values = [v for curve in curves for point in curve.values() for v in point if v is not None] or [1.0]
    left = min(300.0, 16 + LETTER * max((min(len(name), LONGEST) for name in names), default=4))
    low, high = min(0.0, *values), max(0.0, *values)
    across = _Scale(low, high if high > low else low + 1, left, WIDTH - RIGHT)
    each = len(curves) * BAR + GAP
    foot = TOP + count * each
    parts = []
    for value in across.ticks():
        x = across(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{foot}"/>')
        parts.append(f'<text x="{x:.1f}" y="{foot + 16}" text-anchor="middle">{value:g}</text>')
    for g, name in enumerate(names[:count]):
        top = TOP + g * each
        parts.append(f'<text x="{left - 8:.0f}" y="{top + each / 2:.1f}" text-anchor="end">{label(name)}</text>')
        for n, curve in enumerate(curves):
            if g in curve:
                parts.append(_bar(curve[g], across, top + GAP / 2 + n * BAR, f"c{n % COLOURS}"))
    zero = across(0.0)
    parts.append(f'<line class="axis" x1="{zero:.1f}" x2="{zero:.1f}" y1="{TOP}" y2="{foot}"/>')
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{foot + 36}" text-anchor="middle">{label(chart["y_axis"], 90)}</text>')
    return _Drawn("".join(parts), foot + 48)


def _bar(point: tuple[float, float | None, float | None], across: _Scale, top: float, colour: str) -> str:
    value, low, high = point
    start, end = sorted((across(0.0), across(value)))
    drawn = f'<rect class="{colour}" x="{start:.1f}" y="{top:.1f}" width="{end - start:.1f}" height="{BAR - 2}"/>'
    if low is None or high is None:
        return drawn
    middle = top + (BAR - 2) / 2
    return drawn + _whisker(across(low), across(high), middle, middle)


def _legend(names: Sequence[Any], top: float) -> tuple[str, int]:
    """Keys below the drawing, and how many lines they take."""
    parts, x, line = [], float(LEFT), 0
    for n, name in enumerate(names):
        wide = 26 + LETTER * min(len(str(name)), LONGEST)
        if x > LEFT and x + wide > WIDTH - RIGHT:
            x, line = float(LEFT), line + 1
        y = top + 18 * line + 10
        parts.append(f'<rect class="c{n % COLOURS}" x="{x:.0f}" y="{y - 8:.0f}" width="10" height="10"/>')
        parts.append(f'<text x="{x + 15:.0f}" y="{y + 1:.0f}">{label(name)}</text>')
        x += wide
    return "".join(parts), (line + 1) if names else 0
