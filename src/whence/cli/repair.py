"""``whence repair``: an index compared with what was written, byte by byte."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from whence.cli.flags import spoken
from whence.cli.voice import Voice

DAMAGED = 4  # exit code of --check


@spoken
def repair(
    voice: Voice,
    index: Annotated[str, typer.Argument(help="Folder of an index.", show_default=False)],
    check: Annotated[bool, typer.Option("--check", help="Only say what is damaged (exit code 4).")] = False,
    model: Annotated[
        str | None, typer.Option(help="The indexed model, if it is elsewhere now.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="The indexed rows, if they are elsewhere now.", show_default=False)
    ] = None,
) -> int:
    """Read every byte of an index and make again what is damaged or missing, and nothing else.

    whence repair index/

    whence repair index/ --check

    Needs the model and the rows where they were when the index was built, or --model and --data.
    """
    repairing = importlib.import_module("whence.repairing")
    if check:
        found = importlib.import_module("whence.store.index_damage").examine(index)
        repairing.tell(found, voice)
        voice.emit({"type": "done", "damaged": sorted(found.damaged), "extra": found.extra})
        return DAMAGED if found.damaged else 0
    before, after = repairing.repair_index(index, model=model, train=data or None, watch=voice)
    voice.emit({"type": "done", "damaged": sorted(before.damaged), "left": sorted(after.damaged)})
    voice.say(f'\nnext: whence ask --index {index} --prompt "..." --response " ..."', "bold")
    return 0 if not after.damaged else DAMAGED
