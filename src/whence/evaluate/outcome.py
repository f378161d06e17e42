"""What every evaluation ends in: a table, charts, the numbers behind them and what they say, all as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from whence.errors import DataError

FORMAT = "whence evaluation 1"


@dataclass(frozen=True)
class Curve:
    """Points of one contender, with the ends of their intervals where these are known.

    Attributes:
        name: of the contender.
        x, y: P places; NaN = unknown, drawn as a gap.
        low, high: P ends of an interval around each y, or empty.
        drawn: how this curve is drawn if otherwise than the chart's kind (a line of slope 1 in a scatter).

    Raises:
        DataError: sequences of different lengths.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    drawn: Literal["", "line", "scatter"] = ""

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y)} | {len(ends) for ends in (self.low, self.high) if ends}
        if len(lengths) > 1 or bool(self.low) != bool(self.high):
            raise DataError(f"curve {self.name!r} with lengths {sorted(lengths)}", wanted="one y (and interval) per x")


@dataclass(frozen=True)
class Chart:
    """One drawing.

    Attributes:
        title: what it shows.
        x_axis, y_axis: with units.
        curves: lines, clouds of points, or groups of bars; of ``bars``, x counts the groups from 0.
        kind: how curves are drawn: ``bars`` lie on their side, one group of them below the other.
        log_x: logarithmic x axis (all x above 0).
        groups: names of the groups of ``bars``, in the order of x; empty = their numbers.
    """

    title: str
    x_axis: str
    y_axis: str
    curves: tuple[Curve, ...]
    kind: Literal["line", "scatter", "bars"] = "line"
    log_x: bool = False
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """One evaluation.

    Attributes:
        verb: ``lds``, ``retrieval`` ...
        title: what was asked, in one sentence.
        columns, rows: the table, best first.
        charts: what is drawn.
        values: every number behind table and charts, JSON-able (numpy values and arrays are converted on writing).
        words: what it shows, in plain sentences; limits and warnings too.
        about: settings, versions, machine, seeds, seconds.

    Raises:
        DataError: a table row with another number of cells than there are columns.
    """

    verb: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    charts: tuple[Chart, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise DataError(f"a row of {len(wrong[0])} cells", wanted=f"{len(self.columns)}: {', '.join(self.columns)}")

    def to_dict(self) -> dict[str, Any]:
        """Everything, under the name of the format. ``store.atomic.plain`` makes it JSON."""
        return {"format": FORMAT, **asdict(self)}
