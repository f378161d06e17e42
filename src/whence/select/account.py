"""What was done and why, as plain data: what the page, the terminal and ``selection.json`` are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """One table of the account."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Account:
    """One choice, told.

    Attributes:
        verb: ``select``, ``mixture``, ``bandit`` or ``clean``.
        title: what was done, in one sentence.
        words: how and why, limits too.
        tables: the first is also shown in the terminal.
        charts: drawings, as ``report.charts`` takes them.
        about: settings, versions, fingerprints, seconds.
    """

    verb: str
    title: str
    words: tuple[str, ...]
    tables: tuple[Table, ...]
    charts: tuple[Mapping[str, Any], ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def chart(
    title: str, axes: tuple[str, str], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], **more: Any
) -> dict[str, Any]:
    """A drawing of lines: name -> (x, y)."""
    drawn = [
        {"name": name, "x": list(x), "y": list(y), "low": [], "high": [], "drawn": ""}
        for name, (x, y) in curves.items()
    ]
    empty = {"kind": "line", "log_x": False, "groups": []}
    return {"title": title, "x_axis": axes[0], "y_axis": axes[1], "curves": drawn, **empty, **more}
