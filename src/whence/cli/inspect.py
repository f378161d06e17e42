"""``whence methods``, ``info``, ``report``, ``view``: look at what there is."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from whence.cli.flags import spoken
from whence.cli.voice import Voice
from whence.errors import OptionError, did_you_mean
from whence.options import command_line, trace_request
from whence.present import page
from whence.report import Extras
from whence.report.characters import visible
from whence.store import atomic
from whence.store.provenance import redacted
from whence.store.run import load_scores, read_manifest, verify
from whence.viewer import serve

FIELDS = ("idea", "reference", "passes", "memory", "exact_when")


@spoken
def methods(
    voice: Voice,
    name: Annotated[str | None, typer.Argument(help="Only this method.", show_default=False)] = None,
) -> int:
    """Every method: idea, reference, passes over the rows, memory, when it is exact.

    whence methods

    whence methods ekfac
    """
    base = importlib.import_module("whence.curvature.base")
    names = base.method_names()
    if name is not None and name not in names:
        raise OptionError(f"unknown method {name!r}", wanted="a method of whence", try_=did_you_mean(name, names))
    for found in [name] if name else names:
        method = base.get_method(found)
        record = {field: getattr(method, field) for field in FIELDS}
        settings = [setting.words for setting in base.method_settings(found).values()]
        record["settings"] = "; ".join(settings) if settings else "none"
        voice.emit({"type": "method", "name": method.name, **record})
        if not voice.json:
            voice.out.print(Text(method.name, style="bold"))
            voice.out.print(_grid({key.replace("_", " "): value for key, value in record.items()}))
    voice.say("next: whence trace ... --method NAME, or NAME:setting=value,setting=value")
    return 0


@spoken
def info(
    voice: Voice,
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    replay: Annotated[bool, typer.Option("--replay", help="Print only the command that repeats it.")] = False,
) -> int:
    """What a run computed, on what, and whether its files are as they were written.

    whence info run/

    whence info run/ --replay
    """
    body = read_manifest(run)
    verify(run, body)
    command = _replay(body)
    if replay:
        voice.out.print(Text(command or "# made from Python objects: no command repeats it"), soft_wrap=True)
        return 0
    voice.emit({"type": "run", "folder": str(run), "replay": command, **body})
    if not voice.json:
        voice.out.print(_grid(_summary(run, body)))
    voice.say("every file is as it was written", "green")
    voice.say(f"next: whence report {run}    renders the page again; whence info {run} --replay    the command")
    return 0


@spoken
def report(
    voice: Voice,
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.", show_default=False)] = None,
    title: Annotated[str, typer.Option(help="Title of the page.", show_default=False)] = "",
) -> int:
    """Render the HTML report of a run again.

    whence report run/ -o why.html
    """
    scores = load_scores(run)
    place = out or run / "report.html"
    atomic.write_text(place, page(scores, Extras(title=title)))
    voice.emit({"type": "report", "path": str(place), "bytes": place.stat().st_size})
    voice.say(f"written   {place} ({place.stat().st_size / 1e6:.1f} MB, one file, no network)")
    voice.say(f"next: open {place} in a browser; whence view {run}    pages through every row", "bold")
    return 0


@spoken
def view(
    voice: Voice,
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 0,
) -> int:
    """Page through every row of a run in the browser, served to this machine only.

    whence view run/

    The address holds a secret of this session. Ctrl-C ends it.
    """
    try:
        server = serve(load_scores(run), port=port)
    except OSError as error:
        raise OptionError(f"port {port}: {error.strerror}", wanted="a free port", try_="--port 0") from error
    voice.emit({"type": "view", "url": server.url})
    voice.say(f"open      {server.url}", "bold")
    voice.say("only this machine can reach it; Ctrl-C ends it")
    with server, suppress(KeyboardInterrupt):
        server.serve_forever(poll_interval=0.2)
    return 0


def _replay(body: Mapping[str, Any]) -> str:
    request = body.get("request")
    return redacted(command_line(trace_request(request))) if isinstance(request, Mapping) else ""


def _summary(run: Path, body: Mapping[str, Any]) -> dict[str, str]:
    about, scores = body["about"], body["scores"]
    train, rows = about.get("train", {}), about.get("rows", {})
    coverage = about.get("coverage", {}).get("share")
    fits = ", ".join(f"{stage['name']} {stage['rows']:,}" for stage in about.get("fit", ()))
    return {
        "run": str(run),
        "method": f"{about.get('method')} · damping {about.get('damping')} · fisher {about.get('fisher')}",
        "model": str(about.get("model", {}).get("name")),
        "rows": f"{train.get('name')} · {rows.get('scored')} scored, {rows.get('quarantined')} quarantined, "
        f"{rows.get('truncated')} truncated",
        "questions": str(scores["queries"]),
        "fitted on": f"{fits} rows" if fits else "nothing (no curvature)",
        "coverage": ""
        if coverage is None
        else f"{coverage:.1%} of the parameters, {len(about.get('layers', ()))} layers",
        "seconds": ", ".join(f"{name} {value}" for name, value in about.get("seconds", {}).items()),
        "versions": ", ".join(f"{name} {value}" for name, value in about.get("versions", {}).items()),
        "replay": _replay(body),
    }


def _grid(record: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 1))
    for name, value in record.items():
        table.add_row(Text(f"  {name}", style="dim"), Text(visible(str(value))))
    return table
