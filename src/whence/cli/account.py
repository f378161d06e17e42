"""How the verbs that choose rows end: the account in the terminal (or as NDJSON), and what to do next."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

from rich.text import Text

from whence.cli.voice import Voice, grid
from whence.report.characters import visible
from whence.select.account import Account


class Found(Protocol):
    """What was chosen: something that tells itself and can be written."""

    @property
    def account(self) -> Account: ...

    def write(self, folder: str | Path) -> tuple[Path, ...]: ...


def claim(out: str | None) -> None:
    """Find out before the work that the choice cannot be written there.

    Raises:
        StoreError: the place holds something that is not ours.
    """
    if out is not None:
        importlib.import_module("whence.written").check_out(out)


def ended(voice: Voice, found: Found, out: str | None, *, then: str = "") -> int:
    """Print title, words and first table; emit everything with --json; write; name the next command.

    Returns:
        The exit code, 0.

    Raises:
        StoreError: the folder is not ours, or cannot be written to.
    """
    account = found.account
    voice.emit({"type": account.verb, **account.to_dict()})
    if not voice.json:
        voice.out.print()
        voice.out.print(Text(visible(account.title), style="bold"))
        for sentence in account.words:
            voice.out.print(Text(visible(sentence)))
        for table in account.tables[:1]:
            voice.out.print()
            voice.out.print(grid(table.columns, table.rows))
    files = () if out is None else found.write(out)
    voice.emit({"type": "done", "out": out, "files": [str(file) for file in files]})
    if out is None:
        voice.say("\nnext: add -o FOLDER/ to write the rows, their scores and the page", "bold")
        return 0
    place = out.rstrip("/")
    voice.say(f"\nnext: open {place}/report.html in a browser", "bold")
    if then:
        voice.say(f"      {then.format(out=place)}")
    return 0
