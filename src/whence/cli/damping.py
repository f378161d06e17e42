"""``whence damping``: which damping does the evidence speak for?"""

from __future__ import annotations

import importlib
import shlex
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from whence.cli.flags import spoken
from whence.cli.voice import Voice
from whence.options import describe, sweep_options, trace_options
from whence.report.characters import visible


@spoken
def damping(
    voice: Voice,
    model: Annotated[str, typer.Option(help=describe("model"), show_default=False)],
    data: Annotated[list[str], typer.Option(help=describe("data"), show_default=False)],
    query: Annotated[list[str], typer.Option(help=describe("query"), show_default=False)],
    method: Annotated[str, typer.Option(help=describe("method"))] = "ekfac",
    layers: Annotated[list[str] | None, typer.Option(help=describe("layers"), show_default=False)] = None,
    values: Annotated[str | None, typer.Option(help=describe("values"), show_default=False)] = None,
    sample: Annotated[int, typer.Option(help=describe("sample"))] = 256,
    reference: Annotated[str, typer.Option(help=describe("reference"))] = "auto",
    bank: Annotated[str | None, typer.Option(help=describe("bank"), show_default=False)] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="JSON file; trace takes it as --damping.")] = None,
    report: Annotated[str | None, typer.Option(help="HTML page with the curves.", show_default=False)] = None,
    dtype: Annotated[str, typer.Option(help=describe("dtype"))] = "auto",
) -> int:
    """Try many dampings on one fit: how stable is the ranking, and which value agrees with a truth?

    whence damping --model ./model --data train.jsonl --query questions.jsonl -o damping.json --report damping.html

    The curvature is fitted once and gradients are taken once. The value found is scored against an exact matrix of the
    smallest layers, against proximal retrainings of some rows, or against retrained models if you have a bank of them.
    """
    options = trace_options(method=method, layers=tuple(layers or ()), dtype=dtype)
    tried = sweep_options(values=values, sample=sample, reference=reference, bank=bank)
    dampings = importlib.import_module("whence.dampings")
    found = dampings.choose_damping(model, train=data, query=query, options=options, tried=tried, watch=voice)
    for place in filter(None, (out, report)):
        dampings.write_study(found, place)
    voice.emit({"type": "damping", **found.to_dict()})
    if not voice.json:
        _print(voice, found)
    then = f"--damping {out or found.recommended.damping}"
    asked = [("--model", model), *(("--data", x) for x in data), *(("--query", x) for x in query)]
    asked += [("--layers", x) for x in layers or ()]
    words = " ".join(f"{flag} {shlex.quote(value)}" for flag, value in asked)
    voice.say(f"\nnext: whence trace {words} --method {method} {then}", "bold")
    return 0


def _print(voice: Voice, found: Any) -> None:
    columns, rows = found.table()
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(visible(str(cell))) for cell in row), style="bold" if row[-1] else "")
    voice.out.print()
    voice.out.print(table)
    voice.out.print()
    voice.out.print(Text(found.recommended.damping, style="bold"), Text(visible(found.recommended.reason)))
