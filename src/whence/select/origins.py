"""Where every row stands: the same sources that ``read_rows`` reads, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from whence.errors import DataError
from whence.select.lines import Origin
from whence.tasks.formats import LIMITS
from whence.tasks.rows import ReadOptions, Row, Rows, read_rows
from whence.tasks.sources import Source, open_sources

SOURCE = "train"  # the name of rows given as Python objects


@dataclass(frozen=True)
class Opened:
    """Rows and their places.

    Attributes:
        rows: as read; ``rows.ids`` are all N.
        origins: the sources, together N places.
        sources: N names.
    """

    rows: Rows
    origins: tuple[Origin, ...]
    sources: tuple[str, ...]

    def by_id(self) -> dict[str, Row]:
        """Rows that could be read, by id."""
        return {row.id: row for row in self.rows.rows}


def open_places(spec: Any, *, columns: Mapping[str, str] | None = None) -> Opened:
    """Read the rows and find their places; a row that cannot be used still has one.

    Raises:
        DataError: as ``read_rows``.
    """
    options = ReadOptions(columns=dict(columns or {}), max_bad_rows=1.0, source=SOURCE)
    rows = read_rows(spec, options=options)
    origins = [_origin(source) for source in open_sources(spec, default_name=SOURCE, limits=LIMITS)]
    names = tuple(origin.name for origin in origins for _ in origin.numbers)
    if len(names) != len(rows.ids):
        raise DataError(
            f"{len(names)} rows now, {len(rows.ids)} a moment ago",
            wanted="files that stay as they are",
            try_="wait until their writer is done",
        )
    return Opened(rows, tuple(origins), names)


def _origin(source: Source) -> Origin:
    numbers = tuple(record.line for record in source.records())
    return Origin(source.name, source.path, numbers, _objects(source))


def _objects(source: Source) -> Callable[[], Iterable[Mapping[str, Any] | None]]:
    return lambda: (record.fields for record in source.records())


def check_same(opened: Opened, ids: tuple[str, ...], fingerprint: str | None) -> None:
    """The rows are those that were scored.

    Args:
        opened: rows as they are now.
        ids: of the rows scored.
        fingerprint: of their contents, when known.

    Raises:
        DataError: says what differs.
    """
    if opened.rows.ids != ids:
        now = set(opened.rows.ids)
        other = next((id_ for id_ in ids if id_ not in now), "their order")
        raise DataError(
            f"the data holds {len(opened.rows.ids)} rows, the scores are of {len(ids)} (first difference: {other})",
            wanted="the rows that were scored",
            try_="the --data of that run",
        )
    if fingerprint is not None and opened.rows.fingerprint != fingerprint:
        raise DataError(
            f"the rows have changed since they were scored (fingerprint {opened.rows.fingerprint}, then {fingerprint})",
            wanted="the rows that were scored, or new scores",
            try_="whence trace again",
        )
