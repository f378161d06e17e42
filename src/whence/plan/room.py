"""Is there room on the disk for what a job will write, and if not: what would make it fit?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from whence.errors import OptionError
from whence.plan.record import Disk

KB = 1000
SPARE = 0.05  # of the free bytes that a way out leaves free
SHARDS = "shards"
STEPS = 12  # halvings until no budget fits


def room(
    disk: Disk, others: Sequence[Mapping[str, Any]], row_bytes: Callable[[int], int] | None, *, rows: int
) -> dict[str, Any]:
    """``enough`` and a ``verdict`` in words; of an index too large for its disk also the ``budget`` that would fit.

    Args:
        disk: what will be written, and what is free.
        others: alternatives, as data.
        row_bytes: of an index: budget in bytes a row -> bytes that a row then has.
        rows: that it keeps.
    """
    if not disk.folder or not disk.total:
        return {}
    if disk.total <= disk.free:
        return {"enough": True, "verdict": f"fits: {disk.total / max(1, disk.free):.1%} of what is free"}
    said = f"{disk.total:,} bytes to write, {disk.free:,} free at {disk.folder}: {disk.total - disk.free:,} too many"
    if row_bytes is not None:
        budget = fitting_budget(disk, row_bytes, rows=rows)
        out = "no --budget makes it fit" if budget is None else f"--budget {budget:g} would fit"
        return {"enough": False, "verdict": f"{said}; {out}", "budget": budget}
    ways = [other["flags"] for other in others if disk.total - other["saves"]["disk_bytes"] <= _usable(disk)]
    out = f"{ways[0]} would fit" if ways else "another folder with -o"
    return {"enough": False, "verdict": f"{said}; {out}"}


def fitting_budget(disk: Disk, row_bytes: Callable[[int], int], *, rows: int) -> float | None:
    """KB a row, two digits, at which the whole index fits with a little to spare; None where none does."""
    beside = disk.total - disk.files.get(SHARDS, 0)
    wanted = (_usable(disk) - beside) / max(1, rows)
    for _ in range(STEPS):
        if wanted < 1:
            return None
        budget = _two_digits(wanted)
        try:
            if row_bytes(int(budget)) * rows + beside <= _usable(disk):
                return budget / KB
        except OptionError:  # too few bytes for any scheme
            return None
        wanted *= 0.9  # a row has a few bytes beside its budget
    return None


def _usable(disk: Disk) -> float:
    return (1 - SPARE) * disk.free


def _two_digits(value: float) -> float:
    """Rounded down."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.floor(value / unit) * unit
