"""All rows written again with some values changed, in the form they came in; rows without a change byte for byte.

JSON lines: the row is written anew. CSV and TSV: only the cell changes, every other byte of the row stays. Parquet: the
column changes within its type, all others and the schema stay. Rows without a line of their own become JSON lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from whence.errors import DataError
from whence.select.lines import Origin, as_line, check_all_seen, ended, physical, rewrite_parquet, shared_out
from whence.store import atomic

Edits = Mapping[int, Mapping[str, Any]]  # place of a row -> field -> new value


def write_edited(origins: Sequence[Origin], edits: Edits, folder: Path, stem: str) -> list[Path]:
    """All rows in order, some with other values in some fields.

    Args:
        origins: sources in reading order.
        edits: position among all rows -> field -> new value.
        folder: where.
        stem: name of the file without ending; one file or one by source, as ``write_counted``.

    Returns:
        The files.

    Raises:
        DataError: a file that changed, a column that is not there, or a value that its type cannot hold.
        ResourceError, StoreError: it cannot be written.
    """
    paths = []
    for path, parts in shared_out(origins, folder, stem):
        own = [(o, {n - at: edits[n] for n in range(at, at + len(o.numbers)) if n in edits}) for o, at in parts]
        with atomic.writing(path) as part:
            if parts[0][0].form == "parquet":
                _edit_parquet(*own[0], part)
            else:
                with part.open("wb") as out:
                    for origin, changes in own:
                        _EDITORS[origin.form](origin, changes, out)
        paths.append(path)
    return paths


def _edit_objects(origin: Origin, edits: Edits, out: IO[bytes]) -> None:
    for n, fields in enumerate(origin.objects()):
        if fields is not None:
            out.write(as_line({**fields, **edits.get(n, {})}))


def _edit_lines(origin: Origin, edits: Edits, out: IO[bytes]) -> None:
    places = {number: n for n, number in enumerate(origin.numbers)}
    for number, line in physical(origin):
        place = places.pop(number, None)
        if place is not None and place in edits:
            out.write(as_line({**json.loads(line), **edits[place]}))
        elif place is not None:
            out.write(ended(line))
    check_all_seen(origin, places)


# --- tables --------------------------------------------------------------------------------------------------------


def _edit_table(origin: Origin, edits: Edits, out: IO[bytes]) -> None:
    """The header, then each row with all its physical lines."""
    places = {number: n for n, number in enumerate(origin.numbers)}
    cells = _Cells("\t" if origin.ending == ".tsv" else ",")
    names: list[str] = []
    row, here = list[bytes](), -1  # before the first row: the header
    for number, line in physical(origin):
        if number in places:
            names = names or cells.values(b"".join(row).lstrip(b"\r\n"))
            out.write(_table_row(row, cells, names, edits.get(here)))
            row, here = [], places.pop(number)
        row.append(line)
    out.write(_table_row(row, cells, names, edits.get(here)))
    check_all_seen(origin, places)


def _table_row(row: list[bytes], cells: _Cells, names: Sequence[str], edit: Mapping[str, Any] | None) -> bytes:
    """One row, without the empty lines after it, which belong to nobody."""
    while row and not row[-1].strip(b"\r\n"):
        row.pop()
    found = b"".join(ended(line) for line in row)
    for name, value in (edit or {}).items():
        if name not in names:
            raise DataError(f"no column {name!r}", wanted="one of " + ", ".join(names[:8]))
        found = cells.replaced(found, names.index(name), value)
    return found


class _Cells:
    """Where the cells of one row stand, by the rules of ``csv``'s own dialect.

    Attributes:
        delimiter: between cells.
    """

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter
        self._cell = re.compile(rf'"[^"]*(?:""[^"]*)*"|[^{re.escape(delimiter)}\r\n]*')

    def values(self, row: bytes) -> list[str]:
        """What the cells say."""
        text = row.decode(errors="surrogateescape")
        raw = [text[start:stop] for start, stop in self._spans(text)]
        return [cell[1:-1].replace('""', '"') if cell.startswith('"') else cell for cell in raw]

    def replaced(self, row: bytes, number: int, value: Any) -> bytes:
        """The row with another value in one cell, which keeps its quotes and gets some where it needs them."""
        text = row.decode(errors="surrogateescape")
        start, stop = self._spans(text)[number]
        new = "" if value is None else str(value)
        if text.startswith('"', start, stop) or any(c in new for c in (self.delimiter, '"', "\r", "\n")):
            new = '"' + new.replace('"', '""') + '"'
        return (text[:start] + new + text[stop:]).encode(errors="surrogateescape")

    def _spans(self, text: str) -> list[tuple[int, int]]:
        found, at = [], 0
        while True:
            match = self._cell.match(text, at)
            assert match is not None  # the second alternative takes nothing at all
            found.append(match.span())
            at = match.end() + 1
            if not text.startswith(self.delimiter, match.end()):
                return found


# --- parquet -------------------------------------------------------------------------------------------------------


def _edit_parquet(origin: Origin, edits: Edits, part: Path) -> None:
    def changed(at: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        here = {n: edits[at + n] for n in range(batch.num_rows) if at + n in edits}
        for name in dict.fromkeys(name for edit in here.values() for name in edit):
            new = {n: edit[name] for n, edit in here.items() if name in edit}
            batch = _with_values(origin, batch, name, new)
        return batch

    rewrite_parquet(origin, part, changed)


def _with_values(origin: Origin, batch: pa.RecordBatch, name: str, new: Mapping[int, Any]) -> pa.RecordBatch:
    place = batch.schema.get_field_index(name)
    if place < 0:
        raise DataError(f"{origin.path} has no column {name!r}", wanted="one of " + ", ".join(batch.schema.names[:8]))
    field = batch.schema.field(place)
    values = batch.column(place).to_pylist()
    for n, value in new.items():
        values[n] = value
    try:
        return batch.set_column(place, field, pa.array(values, field.type))
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        shown = next(iter(new.values()))
        raise DataError(
            f"{origin.path}: {name} cannot hold {shown!r} ({str(error)[:200]})", wanted=f"a value of type {field.type}"
        ) from error


_EDITORS = {"lines": _edit_lines, "table": _edit_table, "objects": _edit_objects}
