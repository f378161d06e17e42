"""The entry point: the table of verbs, and the one place where errors become exit codes.

==== ==================================================================
code meaning
==== ==================================================================
0    done; everything asked for was produced
1    a bug in whence (details in crash.txt)
2    usage or settings; nothing was touched
3    input rows were rejected
4    a run folder: in use, damaged, foreign, of a newer whence
5    resources: disk full, or does not fit in memory
6    model or tokenizer could not be loaded
7    ``whence check``: a law is broken
75   stopped by SIGTERM or SIGUSR1, or another rank died; running the same command again is safe
130  Ctrl-C
==== ==================================================================
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from whence import __version__
from whence.cli.signals import Signals, Stopped
from whence.cli.voice import Voice
from whence.errors import ResourceError, WhenceError, gone, out_of_memory, rank_lost
from whence.report.characters import visible
from whence.store import atomic
from whence.store.provenance import redacted, redacted_argv, versions

BUG, USAGE, STOPPED, INTERRUPTED = 1, 2, 75, 130
# verb -> (module of this package, one line of help). Only the module of the verb that is run gets imported.
VERBS: Mapping[str, tuple[str, str]] = {
    "demo": ("demo", "A small model, a made-up encyclopedia, and where its answers come from."),
    "plan": ("plan", "What would it cost? Time, memory and disk of a trace or an index, before it starts."),
    "trace": ("trace", "Which training rows made the model say this?"),
    "index": ("index", "Keep every row's gradient in few bytes, so that any question takes moments."),
    "ask": ("index", "Which rows of an index made the model say this?"),
    "repair": ("repair", "Is an index as it was written? Make again what is not, and only that."),
    "check": ("laws", "Is it right on your model? The laws, measured on your own rows."),
    "damping": ("damping", "Which damping does the evidence speak for?"),
    "mixture": ("pool", "How much of each source to train on, by its influence on a reference set."),
    "bandit": ("pool", "Choose rows of a large pool from the gradients of a few."),
    "clean": ("clean", "Which labels to look at first, why, and what they should perhaps be."),
    "select": ("select", "Which rows to train on for these questions, or to leave out."),
    "unrolled": ("unrolled", "The exact effect of every row, through every step of a small training."),
    "evaluate": ("evaluate", "Does the score predict what retraining does? Proof, with baselines and controls."),
    "methods": ("inspect", "Every method: idea, reference, cost, when it is exact."),
    "info": ("inspect", "What a run computed, and how to repeat it."),
    "report": ("inspect", "Render the HTML report of a run again."),
    "view": ("inspect", "Page through every row of a run in the browser, on this machine only."),
}
GROUPS = ("evaluate",)  # verbs that have verbs of their own; their function makes an application of the words after it


def main() -> None:
    """Run the command line of this process and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line; the exit code is the result."""
    arguments = list(arguments)
    if threads := os.environ.get("WHENCE_NUM_THREADS"):
        os.environ.setdefault("OMP_NUM_THREADS", threads)  # read by torch when it is imported, which is later
    voice = Voice(json="--json" in arguments)
    with Signals() as signals:
        try:
            code = _run(voice, arguments, signals)
        except (KeyboardInterrupt, typer.Abort, Stopped):
            code = INTERRUPTED
    if signals.received not in (None, signal.SIGINT):
        return _explain(voice, "stopped; the same command can be run again", STOPPED)
    return _explain(voice, "interrupted", INTERRUPTED) if signals.received or code == INTERRUPTED else code


def _run(voice: Voice, arguments: Sequence[str], signals: Signals) -> int:
    try:
        return _code(_application(arguments)(arguments, standalone_mode=False, prog_name="whence"))
    except typer.TyperException as error:  # usage: an unknown flag, a missing value
        return _explain(voice, error.format_message(), USAGE)
    except WhenceError as error:
        return _refuse(voice, error, arguments)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the reader is gone; let the final flush go nowhere
        return 0
    except Exception as error:
        if signals.received:  # a library in C made another exception of ours
            return INTERRUPTED
        if out_of_memory(error):
            return _refuse(voice, _memory_error(error), arguments)
        if rank_lost(error):
            return _refuse(voice, gone(error), arguments)
        return _crash(voice, arguments)


def _application(arguments: Sequence[str]) -> Any:
    """The verbs as Typer knows them; all but the one asked for are stand-ins that cost nothing to make."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        context_settings={
            "help_option_names": ["-h", "--help"],
            "token_normalize_func": _dashed,
            "max_content_width": 100,
        },
        pretty_exceptions_enable=False,
    )
    app.callback()(_whence)
    at = next((n for n, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    asked = arguments[at] if at < len(arguments) else ""
    for name, (module, line) in VERBS.items():
        verb: Callable[..., Any] = _stand_in
        if name == asked:
            verb = getattr(importlib.import_module(f"whence.cli.{module}"), name)
        if name == asked and name in GROUPS:
            app.add_typer(verb(arguments[at + 1 :]), name=name, short_help=line)
        else:
            app.command(name, short_help=line)(verb)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"whence {__version__}\n")
        raise typer.Exit


def _whence(
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True, callback=_version),
) -> None:
    """Where did this behaviour come from? Training-data attribution with influence functions.

    Every verb also takes --json (NDJSON on stdout), --quiet and --debug.
    """


def _stand_in() -> None:
    """Never called: the verb that is asked for is the real one."""


def _dashed(flag: str) -> str:
    """``--top_k`` is ``--top-k``."""
    return flag.replace("_", "-")


def _code(result: Any) -> int:
    return result if isinstance(result, int) else 0


def _explain(voice: Voice, text: str, code: int) -> int:
    voice.emit({"type": "error", "exit_code": code, "message": text})
    voice.err.print(
        Text("whence: ", style="bold red" if code != INTERRUPTED else "bold"), Text(text), sep="", soft_wrap=True
    )
    return code


def _refuse(voice: Voice, error: WhenceError, arguments: Sequence[str]) -> int:
    if error.told:
        return error.exit_code
    record = {"got": error.got, "wanted": error.wanted, "try": error.try_}
    voice.emit({"type": "error", "exit_code": error.exit_code, "kind": type(error).__name__, **record})
    voice.json = False
    if "--debug" in arguments:
        voice.err.print(Text(traceback.format_exc()))
    return _explain(voice, visible(str(error)), error.exit_code)


def _crash(voice: Voice, arguments: Sequence[str]) -> int:
    """A bug of ours: keep the details in a file, say where, and show them only when asked."""
    details = traceback.format_exc()
    lines = [f"whence {redacted_argv(arguments)}", *(f"{n} {v}" for n, v in versions().items()), "", redacted(details)]
    place = Path("crash.txt").resolve()
    try:
        atomic.write_text(place, "\n".join(lines))
    except WhenceError:
        place = Path(tempfile.gettempdir()) / "whence-crash.txt"
        atomic.write_text(place, "\n".join(lines))
    if "--debug" in arguments:
        voice.err.print(Text(details))
    last = redacted(details.strip().splitlines()[-1])
    return _explain(
        voice, visible(f"a bug in whence: {last}\n  details: {place}\n  please report it with that file"), BUG
    )


def _memory_error(error: Exception) -> ResourceError:
    return ResourceError(
        f"out of memory: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}",
        wanted="memory for the model, one batch of activations and the factors",
        try_="--batch-tokens 1024, --layers with fewer layers, or --method diagonal",
    )
