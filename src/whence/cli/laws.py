"""``whence check``: is it right on *your* model?"""

from __future__ import annotations

import importlib
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from whence.cli.flags import pair, spoken
from whence.cli.voice import Voice
from whence.options import describe, trace_options
from whence.report.characters import visible

BROKEN = 7  # exit code: a law does not hold on this model; none of the error codes, because nothing went wrong
MARKS = {"held": ("✓", "green"), "broken": ("✗", "bold red"), "noted": ("·", "dim")}


@spoken
def check(
    voice: Voice,
    model: Annotated[str, typer.Argument(help=describe("model"), show_default=False)],
    rows: Annotated[list[str], typer.Argument(help=describe("data"), show_default=False)],
    layers: Annotated[list[str] | None, typer.Option(help=describe("layers"), show_default=False)] = None,
    task: Annotated[str, typer.Option(help=describe("task"))] = "auto",
    max_length: Annotated[int | None, typer.Option(help=describe("max_length"), show_default=False)] = None,
    dtype: Annotated[str, typer.Option(help=describe("dtype"))] = "auto",
    device: Annotated[str, typer.Option(help=describe("device"))] = "auto",
    attention: Annotated[str, typer.Option(help=describe("attention"))] = "auto",
    column: Annotated[list[str] | None, typer.Option(help=describe("columns"), show_default=False)] = None,
) -> int:
    """Run the laws that attribution stands on with your model and rows.

    whence check ./model train.jsonl

    Captured gradients against autograd, tokens adding up to rows, batches and padding changing nothing, coverage,
    doubled start tokens, the loss mask. Exit code 0 when every law holds, 7 when one is broken.
    """
    given: dict[str, Any] = {"task": task, "max_length": max_length, "dtype": dtype, "device": device}
    columns = dict(pair(text) for text in column or [])
    options = trace_options(attention=attention, layers=tuple(layers or ()), columns=columns, **given)
    api = importlib.import_module("whence.api")
    findings = api.check(model, rows, options=options, watch=voice)
    for finding in findings:
        voice.emit({"type": "law", **asdict(finding)})
    broken = [finding for finding in findings if finding.verdict == "broken"]
    if not voice.json:
        voice.out.print()
        voice.out.print(_table(findings))
    _say_next(voice, broken, f"{model} --data {rows[0]}" + (f" --task {task}" if task != "auto" else ""))
    return BROKEN if broken else 0


def _table(findings: list[Any]) -> Table:
    table = Table.grid(padding=(0, 1))
    for finding in findings:
        mark, style = MARKS[finding.verdict]
        table.add_row(Text(mark, style=style), Text(finding.law, style="bold"), Text(visible(finding.sentence)))
    return table


def _say_next(voice: Voice, broken: list[Any], what: str) -> None:
    voice.say("")
    if broken:
        names = ", ".join(finding.law for finding in broken)
        voice.say(f"broken: {names}. Scores of this model would carry that error.", "bold red")
        voice.say("next: try --attention eager or --dtype float32, and --layers to leave a layer out")
        return
    voice.say("every law holds", "bold green")
    voice.say(f"next: whence trace --model {what} --query questions.jsonl -o run/")
