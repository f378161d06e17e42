"""How every ``whence evaluate`` verb ends: the table and what it shows, the files, the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from whence.cli.voice import Voice, grid
from whence.errors import OptionError, StoreError
from whence.evaluate.outcome import Outcome
from whence.options import TraceOptions, read_config, trace_options
from whence.report.characters import visible
from whence.report.evaluation import write_outcome

OUT = "Folder for outcome.json, report.html and the plots."
DEMO = "Folder of `whence demo`: its trained model is used, or made there."
CONTENDERS = (
    "Who takes part, with commas: methods (ekfac, relative:ekfac, ekfac_cg:steps=20, dot, cosine) and baselines (bm25, "
    "tfidf, embedding, activation, gradient_norm, loss, length, random, shuffled)."
)

CONFIG = "YAML file with any other settings (columns, max_length, batch_tokens ...); flags win."


def options_of(config: str | None, **flags: Any) -> TraceOptions:
    """Options from a YAML file and from flags; a flag that was not given is None and decides nothing.

    Raises:
        OptionError: no such file, or a setting that does not exist or cannot have this value.
    """
    given = {name: value for name, value in flags.items() if value not in (None, (), [], {})}
    return trace_options({**(read_config(config) if config else {}), **given})


def check_out(out: str | None) -> None:
    """Find out before the work that the answer cannot be written there.

    Raises:
        StoreError: the place is a file.
    """
    if out is not None and Path(out).expanduser().is_file():
        raise StoreError(f"--out {out} is a file", wanted="a folder, there or not", try_="--out evaluation/")


def contender_names(text: str | None) -> tuple[str, ...]:
    """Names from a list with commas; a comma between settings (``cg:steps=9,tolerance=1e-3``) belongs to them."""
    names: list[str] = []
    for part in (text or "").split(","):
        setting = "=" in part and ":" not in part and names
        if setting:
            names[-1] += f",{part.strip()}"
        elif part.strip():
            names.append(part.strip())
    return tuple(names)


def subject_given(**given: Any) -> bool:
    """Whether the user named model and data; False = none of them, which means the embedded example.

    Raises:
        OptionError: some but not all.
    """
    missing = [name for name, value in given.items() if not value]
    if missing and len(missing) < len(given):
        wanted = ", ".join(f"--{name}" for name in given)
        raise OptionError(f"no --{missing[0]}", wanted=f"{wanted} together, or none of them for the embedded example")
    return not missing


def answer(voice: Voice, outcome: Outcome, out: str | Path | None) -> int:
    """Print the table and the sentences (or emit them as NDJSON), and write the folder if one was asked for.

    Returns:
        The exit code, 0.

    Raises:
        StoreError: the folder cannot be written to.
    """
    voice.emit({"type": "evaluation", **outcome.to_dict()})
    if not voice.json:
        voice.out.print()
        voice.out.print(Text(visible(outcome.title), style="bold"))
        voice.out.print(grid(outcome.columns, outcome.rows))
        for sentence in outcome.words:
            voice.out.print(Text(visible(sentence)))
    if out is None:
        voice.say("\nnext: add --out evaluation/ to keep the numbers, the plots and a page to show", "bold")
        return 0
    written = write_outcome(outcome, out)
    voice.emit({"type": "done", "out": str(out), "files": [str(file) for file in written.files]})
    if written.missing:
        voice.say(f"note: {written.missing}")
    voice.say(f"\nnext: open {Path(out) / 'report.html'} in a browser", "bold")
    return 0
