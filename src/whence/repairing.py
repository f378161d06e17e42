"""Damage in an index found, and only what is damaged made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whence.errors import OptionError
from whence.indexing import build_index
from whence.store.index_damage import Checkup, examine
from whence.store.index_folder import read_plan
from whence.watch import Silent, Watcher

SHOWN = 8


def repair_index(
    index: str | Path, *, model: Any = None, train: Any = None, watch: Watcher | None = None
) -> tuple[Checkup, Checkup]:
    """Read every byte of an index, and make again what is damaged or missing: nothing else.

    Args:
        index: its folder.
        model: the indexed model, if it is no longer where it was; it is recognised by content.
        train: the training rows, likewise.
        watch: hears what is found and done.

    Returns:
        What was found before, and what is there now.

    Raises:
        StoreError: not an index; or its plan is lost.
        WhenceError: as ``build_index``.
    """
    watch = watch or Silent()
    place = Path(index).expanduser()
    before = examine(place)
    tell(before, watch)
    if not before.damaged and before.finished:
        return before, before
    asked = read_plan(place).get("request") or {}
    model, train = model or asked.get("model"), train or asked.get("train")
    if model is None or train is None:
        raise OptionError(
            f"{index} was built from Python objects",
            wanted="the model and the rows, to make parts of it again",
            try_="whence.build_index(...) as before: it makes only what is damaged",
        )
    build_index(
        model, train=train, out=place, compression=asked.get("compression"), options=asked.get("options"), watch=watch
    )
    return before, examine(place)


def tell(found: Checkup, watch: Watcher) -> None:
    """Say what was found."""
    for name, why in list(found.damaged.items())[:SHOWN]:
        watch.note("damage", f"damaged   {name}: {why}", file=name, why=why)
    if len(found.damaged) > SHOWN:
        watch.note("damage", f"damaged   and {len(found.damaged) - SHOWN} more files")
    if found.extra:
        shown = ", ".join(found.extra[:SHOWN])
        watch.note("extra", f"extra     not of this index and not read: {shown}", files=list(found.extra))
    if not found.damaged:
        watch.note(
            "whole", "whole     every byte is as it was written" if found.finished else "whole     but unfinished"
        )
