"""How every ``whence evaluate`` verb ends: the table and what it shows, the files, the record."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from whence.cli.voice import Voice
from whence.evaluate.outcome import Outcome
from whence.report.characters import visible
from whence.report.evaluation import write_outcome
from whence.report.words import cell


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
        voice.out.print(_table(outcome))
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


def _table(outcome: Outcome) -> Table:
    table = Table(*(visible(name) for name in outcome.columns), box=None, pad_edge=False)
    for row in outcome.rows:
        table.add_row(*(Text(visible(cell(value), one_line=True)) for value in row))
    return table
