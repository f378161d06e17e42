"""How the command line speaks: prose and progress on stderr, the answer (or NDJSON) on stdout.

Everything that comes from data is made visible before it reaches a terminal: no control character, no markup of theirs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from whence.report.characters import visible
from whence.report.words import cell
from whence.store.atomic import plain

EVERY = 30.0  # seconds between progress lines where there is no terminal


class Voice:
    """The watcher of a command: says notes, shows progress, emits records.

    Attributes:
        out: console of the answer (stdout).
        err: console of everything else (stderr).
        json: answer as NDJSON records on stdout instead of prose.
        quiet: no notes and no progress.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self.out = Console(highlight=False, markup=False, soft_wrap=False)
        self.err = Console(stderr=True, highlight=False, markup=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage, self._began, self._said = "", 0.0, 0.0

    def note(self, kind: str, text: str, **facts: Any) -> None:
        """Say a fact; with ``json`` also as a record."""
        self.emit({"type": "note", "kind": kind, **facts})
        if not self.quiet:
            self.err.print(Text(visible(text, one_line=True)), soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """One line of prose on stderr."""
        if not self.quiet:
            self.err.print(Text(visible(text), style=style), soft_wrap=True)

    def emit(self, record: Mapping[str, Any]) -> None:
        """One NDJSON record on stdout, only with ``json``."""
        if self.json:
            sys.stdout.write(json.dumps(plain(record), ensure_ascii=True, allow_nan=False) + "\n")
            sys.stdout.flush()

    def step(self, stage: str, done: int, total: int) -> None:
        """Progress of a stage: a bar with ETA on a terminal, a plain line every thirty seconds elsewhere."""
        if self.quiet:
            return
        if self.err.is_terminal and not self.err.is_dumb_terminal:
            self._step_bar(stage, done, total)
        else:
            self._step_line(stage, done, total)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._task, self._stage = None, None, ""

    def _step_bar(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage or self._bar is None:
            self.close()
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._bar = Progress(*columns, *times, console=self.err, transient=True)
            self._task = self._bar.add_task(f"{stage:<9}", total=total)
            self._stage = stage
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=done)
        if done >= total:
            self.close()

    def _step_line(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._said = stage, now, now
        if now - self._said < EVERY or done >= total or done == 0:
            return
        self._said = now
        left = (now - self._began) / done * (total - done)
        self.err.print(Text(f"{stage:<9} {done:,} of {total:,} rows · about {_duration(left)} left"))


def grid(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table of an answer for ``Voice.out``; a column of numbers stands right, long text is folded."""
    table = Table(box=None, pad_edge=False)
    for n, name in enumerate(columns):
        numbers = all(isinstance(row[n], (int, float, type(None))) for row in rows)
        table.add_column(visible(str(name)), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell(value), one_line=True)) for value in row))
    return table


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
