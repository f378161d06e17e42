"""The parts of a plan as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whence.plan.laws import Cost


@dataclass(frozen=True)
class Step:
    """One step of the job.

    Attributes:
        name: for people; ``fit:`` steps carry the stage's name.
        cost: seconds that it will take.
        rows: training rows whose gradients it needs.
        peak: most bytes in use while it runs; 0 = unknown.
        note: what a number rests on, where that is not plain.
    """

    name: str
    cost: Cost
    rows: int = 0
    peak: int = 0
    note: str = ""

    def plain(self, total: int) -> dict[str, Any]:
        """As data; passes are rows over all rows."""
        return {
            "name": self.name,
            "rows": self.rows,
            "passes": round(self.rows / max(1, total), 3),
            "seconds": round(self.cost.seconds, 2),
            "cpu_seconds": round(self.cost.cpu_seconds, 2),
            "peak_bytes": self.peak or None,
            "note": self.note,
        }


@dataclass(frozen=True)
class Disk:
    """Bytes by file, and where they will be.

    Attributes:
        files: file (or kind of files) -> bytes.
        folder: nearest existing folder, "" when nothing is written.
        free: bytes free there.
    """

    files: Mapping[str, int]
    folder: str = ""
    free: int = 0

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def plain(self) -> dict[str, Any]:
        """As data."""
        where = {"folder": self.folder, "free_bytes": self.free} if self.folder else {}
        return {"bytes": self.total, "files": dict(self.files), **where}


def padding(sizes: Sequence[tuple[int, int]], tokens: int) -> dict[str, Any]:
    """Tokens that the model sees: batches, padding included, and its share."""
    padded = sum(rows * longest for rows, longest in sizes)
    share = round(1 - tokens / padded, 4) if padded else 0.0
    return {"batches": len(sizes), "padded_tokens": padded, "padding": share}
