"""What every study here writes: one JSON with its settings and circumstances, one page with a table and a plot."""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import whence

COLOURS = ("#1f6feb", "#d1480b", "#1a7f37", "#8250df", "#6e7781", "#bf3989")
DOCS = Path(__file__).resolve().parent.parent / "docs" / "studies"


@dataclass(frozen=True)
class Line:
    """One line of a plot: points (x, y) and half-widths of error bars (0 = none)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()


def arguments(description: str, **defaults: Any) -> argparse.Namespace:
    """--data, --out, --docs, and one flag per default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page, the plot and the JSON go")
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser.parse_args()


def circumstances(config: Any, seconds: float) -> dict[str, Any]:
    """Settings with their hash, machine, versions and time: what a figure depends on."""
    settings = asdict(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return {
        "config": settings,
        "config_hash": digest,
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "whence": whence.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "transformers": transformers.__version__,
        },
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


@dataclass(frozen=True)
class Axes:
    """What the axes of a plot are called; ``places`` names the x values where they are not numbers."""

    x: str
    y: str
    places: Mapping[float, str] = field(default_factory=dict)


def write(
    folder: Path, name: str, *, text: str, lines: Sequence[Line], axes: tuple[str, str] | Axes, record: Mapping
) -> None:
    """NAME.md, NAME.svg and NAME.json; the page ends with where its figures come from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2, default=float) + "\n", encoding="utf-8")
    (folder / f"{name}.svg").write_text(plot(lines, axes), encoding="utf-8")
    about = record["about"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    machine = f"{about['machine']['cpus']} CPUs ({about['machine']['threads']} thread), {about['machine']['platform']}"
    said = (
        f"\n\n![plot]({name}.svg)\n\nMade by `python studies/{name}.py --data DATA` on {about['date']} in "
        f"{about['seconds']:.0f} s on {machine}; config hash `{about['config_hash']}`; {versions}. "
        f"All figures and settings: [{name}.json]({name}.json).\n"
    )
    (folder / f"{name}.md").write_text(text.rstrip() + said, encoding="utf-8")


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 60, 170, 20, 50


@dataclass(frozen=True)
class Frame:
    """Where values go on the page; x positions are the ranks of the values that occur (sizes and counts multiply)."""

    ticks: Sequence[float]
    low: float
    high: float

    def x(self, value: float) -> float:
        return LEFT + self.ticks.index(value) / max(1, len(self.ticks) - 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def plot(lines: Sequence[Line], axes: tuple[str, str] | Axes) -> str:
    """A small line plot as SVG."""
    axes = axes if isinstance(axes, Axes) else Axes(*axes)
    values = [v for line in lines for y, e in zip(line.y, _errors(line), strict=True) for v in (y - e, y + e)]
    frame = Frame(sorted({x for line in lines for x in line.x}), min(0.0, *values), max(values) * 1.05 or 1.0)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *(_grid(frame, frame.low + (frame.high - frame.low) * n / 4) for n in range(5)),
        *(_text(frame.x(x), HEIGHT - BOTTOM + 18, axes.places.get(x, f"{x:g}")) for x in frame.ticks),
        _text(middle, HEIGHT - 10, axes.x),
        f'<g transform="translate(14 {(HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)">{_text(0, 0, axes.y)}</g>',
        *(_drawn(frame, n, line) for n, line in enumerate(lines)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _errors(line: Line) -> Sequence[float]:
    return line.error or [0.0] * len(line.y)


def _text(x: float, y: float, words: str, anchor: str = "middle", fill: str = "#1f2328") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{html.escape(words)}</text>'


def _grid(frame: Frame, value: float) -> str:
    y = frame.y(value)
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d0d7de"/>'
    return line + _text(LEFT - 6, y + 4, f"{value:.2f}", "end")


def _drawn(frame: Frame, number: int, line: Line) -> str:
    colour = COLOURS[number % len(COLOURS)]
    points = [(frame.x(x), frame.y(y)) for x, y in zip(line.x, line.y, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    bars = "".join(
        f'<line x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{frame.y(y - e):.1f}" y2="{frame.y(y + e):.1f}" '
        f'stroke="{colour}"/>'
        for x, y, e in zip(line.x, line.y, _errors(line), strict=True)
        if e
    )
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
    name = _text(WIDTH - RIGHT + 14, TOP + 14 + 18 * number, line.name, "start", colour)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{bars}{dots}{name}'
