"""A damping study as one page: curves drawn as SVG, the table, the choice in words. No script, no network, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from whence.report.records import Table

STUDY_FORMAT = "whence damping study 1"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 340, 52, 24, 16, 46
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #777; --line: #ddd; --page: #fff;
 --c0: #1769aa; --c1: #7aa7cc; --c2: #9a6700; --c3: #1a7f37; --c4: #8250df; --c5: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #999; --line: #444; --page: #161616; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
 background: var(--page); }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--soft); }
.grid { stroke: var(--line); } .chosen { stroke: var(--ink); stroke-dasharray: 4 3; }
polyline { fill: none; stroke-width: 2; } table { border-collapse: collapse; font-size: 14px; }
td, th { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line); }
td:first-child, th:first-child { text-align: left; } .scroll { overflow-x: auto; } .key { font-size: 14px; }
"""

Curve = tuple[str, Sequence[float], Sequence[float | None], Sequence[float]]
"""Name, x, y (None = unknown), standard errors (or empty)."""


def curves(study: Mapping[str, Any]) -> list[Curve]:
    """What is plotted: neighbours at the geometric middle of their dampings, everything else at its damping."""
    values = [float(v) for v in study["values"]]
    between = [math.sqrt(a * b) for a, b in pairwise(values)]
    found: list[Curve] = [
        ("neighbours, rank correlation", between, [n["spearman"] for n in study["neighbours"]], ()),
        ("neighbours, linear correlation", between, [n["pearson"] for n in study["neighbours"]], ()),
        ("agreement with the gradient dot product", values, list(study["to_plain"]), ()),
    ]
    names: dict[str, str] = {
        "lds": "retrained subsets (LDS)",
        "pbrf": "proximal retraining (PBRF)",
        "reference": "exact reference",
    }
    for entry in study["evidence"]:
        found.append(
            (names.get(entry["kind"], str(entry["kind"])), values, list(entry["values"]), list(entry["errors"]))
        )
    return found


def damping_table(study: Mapping[str, Any]) -> Table:
    """The study as a table for a trace's report, with the damping that was used and why."""
    kinds = [str(entry["kind"]) for entry in study["evidence"]]
    rows = []
    for n, damping in enumerate(study["dampings"]):
        step = study["neighbours"][n]["spearman"] if n < len(study["neighbours"]) else None
        found = [_number(entry["values"][n]) for entry in study["evidence"]]
        mark = "used" if damping == study["recommended"]["damping"] else ""
        rows.append((str(damping), _number(step), _number(study["to_plain"][n]), *found, mark))
    columns = ("damping", "rank correlation to the next", "to gradient dot", *kinds, "")
    return Table("How much the damping matters", columns, tuple(rows), str(study["recommended"]["reason"]))


def render_damping(study: Mapping[str, Any]) -> str:
    """The whole page as text; write it as UTF-8."""
    chosen = study["recommended"]
    table = damping_table(study)
    head = "".join(f"<th>{escape(c)}</th>" for c in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in table.rows)
    about = study.get("about", {})
    said = f"{about.get('method', '')} on {about.get('rows', '?')} rows and {about.get('queries', '?')} questions"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Damping</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>{escape(chosen['damping'])}</h1><p>{escape(chosen['reason'])}</p>"
        f"<p>{escape(said)}; one fit, re-damped.</p>{_plot(study)}"
        f'<h2>Values</h2><div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
        f"<h2>Layers</h2><p>Rank correlation of each layer's scores with those at the next damping.</p>{_layers(study)}"
    )


class _Axes:
    """From values to places in the drawing: x logarithmic, y from the lowest value (0 at most) to 1."""

    def __init__(self, study: Mapping[str, Any]) -> None:
        values = [float(v) for v in study["values"]]
        lowest = min((y for _, _, ys, _ in curves(study) for y in ys if y is not None), default=0.0)
        self.floor = min(0.0, math.floor(10 * lowest) / 10)
        self.low, self.high = math.log10(values[0]), math.log10(values[-1])

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - self.low) / ((self.high - self.low) or 1)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - self.floor) / (1 - self.floor))


def _plot(study: Mapping[str, Any]) -> str:
    axes = _Axes(study)
    at = axes.x(float(str(study["recommended"]["damping"]).split(":")[1]))
    kind = escape(str(study["dampings"][0]).split(":")[0])
    chosen = f'<line class="chosen" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    drawn = [_curve(axes, curve, f"var(--c{min(n, 5)})") for n, curve in enumerate(curves(study))]
    keys = [f'<span style="color:var(--c{min(n, 5)})">●</span> {escape(c[0])}' for n, c in enumerate(curves(study))]
    label = "correlation against damping; the dashed line is the recommended value"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{_grid(axes, kind)}{chosen}'
        f'{"".join(drawn)}</svg><p class="key">{" · ".join(keys)} · dashed: recommended</p>'
    )


def _grid(axes: _Axes, kind: str) -> str:
    parts = []
    for tick in (axes.floor, *(t / 4 for t in range(5) if t / 4 > axes.floor)):
        y = axes.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for power in range(math.ceil(axes.low - 1e-9), math.floor(axes.high + 1e-9) + 1):
        x, shown = axes.x(10.0**power), f"{10.0**power:g}"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{shown}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "".join(parts) + f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{kind} damping</text>'


def _curve(axes: _Axes, curve: Curve, colour: str) -> str:
    """A line through the known points, with bars of one standard error."""
    _, xs, ys, errors = curve
    known = [(axes.x(a), b, e) for a, b, e in zip(xs, ys, errors or [0.0] * len(xs), strict=True) if b is not None]
    points = " ".join(f"{x:.1f},{axes.y(b):.1f}" for x, b, _ in known)
    parts = [f'<polyline style="stroke:{colour}" points="{points}"/>']
    for x, value, error in known:
        parts.append(f'<circle cx="{x:.1f}" cy="{axes.y(value):.1f}" r="3" style="fill:{colour}"/>')
        if error:
            ends = f'y1="{axes.y(value + error):.1f}" y2="{axes.y(value - error):.1f}"'
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} style="stroke:{colour}"/>')
    return "".join(parts)


def _layers(study: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{float(v):.3g}</th>" for v in study["values"][:-1])
    rows = []
    for n, name in enumerate(study["layers"]):
        cells = []
        for pair in study["neighbours"]:
            value = pair["layers_spearman"][n]
            share = 0 if value is None else round(60 * max(0.0, min(1.0, (1 - value) * 2)))
            shade = f"background: color-mix(in srgb, var(--c5) {share}%, transparent)"
            cells.append(f'<td style="{shade}">{_number(value)}</td>')
        rows.append(f"<tr><td>{escape(str(name))}</td>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><tr><th>layer</th>{head}</tr>{"".join(rows)}</table></div>'


def _number(value: Any) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"
