"""``whence plan``: what would it cost?"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field
from rich.table import Table
from rich.text import Text

from whence.cli.flags import from_records, spoken
from whence.cli.voice import Voice
from whence.options import PlanOptions, TraceOptions, TraceRequest, plan_options, read_config, trace_request
from whence.report.characters import visible

SHOWN = 5  # rows that would be left out


class Config(BaseModel):
    """Where settings come from besides the flags."""

    config: str | None = Field(
        default=None, description="YAML file with any settings of trace, or a run.json; flags win."
    )


VISIBLE = {
    "model": "", "data": "", "prompt": "", "response": "", "query": "", "out": "-o", "job": "", "method": "",
    "layers": "", "budget": "", "calibrate": "", "config": "-c",
}  # fmt: skip


@spoken
@from_records((TraceRequest, TraceOptions, PlanOptions, Config), visible=VISIBLE)
def plan(voice: Voice, given: dict[str, Any]) -> int:
    """What would it cost? Rows, passes, time, memory and disk of a trace or an index, before it starts.

    whence plan --model ./model --data train.jsonl --query questions.jsonl -o run/

    whence plan --model ./model --data train.jsonl -o index/

    Takes the settings of trace. All rows are read, so what would be left out is said exactly; time, memory and disk
    come from a few batches of the real work on this machine.
    """
    own = {name: given.pop(name) for name in PlanOptions.model_fields if name in given}
    flat = read_config(given.pop("config")) if "config" in given else {}
    request = trace_request({**flat, **given})
    planning = importlib.import_module("whence.planning")  # torch and transformers load only when there is work
    found = planning.estimate_request(request, plan_options(**own), watch=voice)
    voice.emit({"type": "plan", **found})
    if not voice.json:
        voice.out.print()
        voice.out.print(_stages(found))
        for line in _facts(found):
            voice.out.print(Text(visible(line, one_line=True)), soft_wrap=True)
    _say_problems(voice, found)
    verb = "index" if found["job"] == "index" else "trace"
    voice.emit({"type": "done"})
    voice.say(f"next: the same settings after `whence {verb}`", "bold")
    return 0


def _stages(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name, where in (
        ("step", "left"),
        ("rows", "right"),
        ("passes", "right"),
        ("time", "right"),
        ("memory", "right"),
    ):
        table.add_column(name, justify=where, style="dim" if name == "passes" else "")  # type: ignore[arg-type]
    for stage in found["stages"]:
        rows = f"{stage['rows']:,}" if stage["rows"] else ""
        passes = f"{stage['passes']:.2f}" if stage["rows"] else ""
        table.add_row(stage["name"], rows, passes, duration(stage["seconds"]), size(stage["peak_bytes"]))
    if found["seconds"] is not None:
        table.add_row("in all", "", f"{found['passes']:.2f}", duration(found["seconds"]), size(found["peak_bytes"]))
    return table


def _facts(found: Mapping[str, Any]) -> list[str]:
    rows, disk = found["rows"], found["disk"]
    lines = [
        f"tokens    {rows['tokens']:,} in {rows['batches']:,} batches, {rows['padding']:.1%} padding",
        f"memory    {size(found['peak_bytes']) or 'not measured'} at the most, {size(found['available_bytes'])} free",
    ]
    if found["seconds"] is not None and disk["files"]:
        most = sorted(disk["files"].items(), key=lambda item: -item[1])[:3]
        said = ", ".join(f"{name} {size(count)}" for name, count in most)
        fits = "" if disk.get("enough", True) else ": not enough"
        free = f"{size(disk['free_bytes'])} free at {disk['folder']}{fits}"
        lines.append(f"disk      {size(disk['bytes'])} ({said}), {free}")
    bad = found["quarantine"]
    if bad["rows"]:
        reasons = ", ".join(f"{code} ({count})" for code, count in bad["reasons"].items())
        lines.append(f"left out  {bad['rows']:,} rows: {reasons}")
        lines += [f"          {entry['location']}: {entry['message']}" for entry in bad["first"][:SHOWN]]
    lines += [f"note      {note}" for note in found["notes"]]
    return [*lines, *map(_cheaper, found["alternatives"])]


def _cheaper(other: Mapping[str, Any]) -> str:
    """One way, with what it saves and what is left to pay."""
    saves, costs = other["saves"], other["costs"]
    parts = [f"{duration(saves['seconds'])} (leaves {duration(costs['seconds'])})" if saves["seconds"] >= 0.1 else ""]
    for kind, left in (("memory", "peak_bytes"), ("disk", "disk_bytes")):
        if saved := saves[f"{kind}_bytes"]:
            parts.append(f"{size(saved)} of {kind} (leaves {size(costs[left])})")
    return f"cheaper   {other['flags']}: saves about {', '.join(p for p in parts if p)}; {other['price']}"


def _say_problems(voice: Voice, found: Mapping[str, Any]) -> None:
    voice.say("")
    for problem in found["problems"]:
        voice.say(f"it would stop: {problem}", "bold red")


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: int | None) -> str:
    """Bytes in units of a thousand."""
    if not count:
        return "" if count is None else "0 B"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
