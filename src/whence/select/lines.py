"""Rows of files written out again as they stand there: the bytes of each line, in the order of the input.

JSON lines, CSV and TSV go out byte for byte (what was compressed comes out plain), parquet as parquet with its schema.
Rows of other forms (a JSON array, a saved or hub data set, Python objects) have no line of their own and are written as
JSON, one object a line; ``form`` says which it was.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from whence.errors import DataError
from whence.store import atomic

Form = Literal["lines", "table", "parquet", "objects"]
MARK = b"\xef\xbb\xbf"  # of UTF-8 files; only the first line of a file may have one


@dataclass(frozen=True)
class Origin:
    """Where the rows of one source stand.

    Attributes:
        name: of the source.
        path: its file, or None for rows without one.
        numbers: one per row, from 1: the (first) line of a text file, else the row.
        objects: the rows themselves, where they have no file that can be copied from.
    """

    name: str
    path: Path | None
    numbers: tuple[int, ...]
    objects: Callable[[], Iterable[Mapping[str, Any] | None]]

    @property
    def form(self) -> Form:
        """How the rows can be written again."""
        name = "" if self.path is None or self.path.is_dir() else self.path.name.lower()
        stem = name.removesuffix(".gz")
        if name.endswith((".parquet", ".pq")):
            return "parquet"
        if stem.endswith((".csv", ".tsv")):
            return "table"
        return "lines" if stem.endswith((".jsonl", ".ndjson")) else "objects"

    @property
    def ending(self) -> str:
        """Of a file that holds such rows."""
        if self.form == "table" and self.path is not None:
            return Path(self.path.name.lower().removesuffix(".gz")).suffix
        return ".parquet" if self.form == "parquet" else ".jsonl"


def write_counted(origins: Sequence[Origin], counts: Sequence[int], folder: Path, stem: str) -> list[Path]:
    """Write every row as often as its count says, in input order.

    Args:
        origins: sources in reading order.
        counts: one per row over all sources, 0 = not at all.
        folder: where.
        stem: name of the file without ending. Sources whose rows can share a file (all of them JSON lines, or a single
            source) go to ``stem.ext``; otherwise each has its own, ``stem-source.ext``.

    Raises:
        DataError: a file no longer holds the rows that were read from it.
        ResourceError, StoreError: it cannot be written.
    """
    total = sum(len(origin.numbers) for origin in origins)
    if total != len(counts):
        raise DataError(f"{len(counts)} counts for {total} rows", wanted="one per row")
    together = len(origins) == 1 or all(origin.ending == ".jsonl" for origin in origins)
    parts, at = [], 0
    for origin in origins:
        parts.append((origin, counts[at : at + len(origin.numbers)]))
        at += len(origin.numbers)
    if together:
        path = folder / f"{stem}{origins[0].ending}"
        _write(parts, path)
        return [path]
    paths = []
    for origin, own in parts:
        paths.append(folder / f"{stem}-{_safe(origin.name, [p.stem for p in paths], stem)}{origin.ending}")
        _write([(origin, own)], paths[-1])
    return paths


def write_edited(origins: Sequence[Origin], edits: Mapping[int, Mapping[str, Any]], path: Path) -> None:
    """All rows in order, some with other values in some fields; rows without an edit byte for byte.

    Args:
        origins: sources whose rows are JSON lines, or have no line of their own.
        edits: position -> field -> new value.
        path: of the file.

    Raises:
        DataError: a table or parquet file, or one that changed.
    """
    with atomic.writing(path) as part, part.open("wb") as out:
        at = 0
        for origin in origins:
            own = {n: edits[at + n] for n in range(len(origin.numbers)) if at + n in edits}
            _edit(origin, own, out)
            at += len(origin.numbers)


def _edit(origin: Origin, edits: Mapping[int, Mapping[str, Any]], out: IO[bytes]) -> None:
    if origin.form == "objects":
        for n, fields in enumerate(origin.objects()):
            if fields is not None:
                out.write(_as_line({**fields, **edits.get(n, {})}))
        return
    if origin.form != "lines":
        raise DataError(f"{origin.path}: rows of a {origin.form} file are not edited", wanted="JSON lines")
    places = {number: n for n, number in enumerate(origin.numbers)}
    for number, line in _physical(origin):
        place = places.pop(number, None)
        if place is not None and place in edits:
            out.write(_as_line({**json.loads(line), **edits[place]}))
        elif place is not None:
            out.write(_ended(line))
    _check_all_seen(origin, places)


def _as_line(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(atomic.plain(fields), ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _safe(name: str, taken: Iterable[str], stem: str) -> str:
    """A source's name as part of a file name, unlike those before."""
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:60].strip("-") or "rows"
    used, n, found = set(taken), 1, plain
    while f"{stem}-{found}" in used:
        n, found = n + 1, f"{plain}-{n + 1}"
    return found


def _write(parts: Sequence[tuple[Origin, Sequence[int]]], path: Path) -> None:
    if parts[0][0].form == "parquet":
        origin, counts = parts[0]
        with atomic.writing(path) as part:
            _copy_parquet(origin, counts, part)
        return
    with atomic.writing(path) as part, part.open("wb") as out:
        for origin, counts in parts:
            _COPIERS[origin.form](origin, counts, out)


# --- text ----------------------------------------------------------------------------------------------------------


def _copy_lines(origin: Origin, counts: Sequence[int], out: IO[bytes]) -> None:
    times = dict(zip(origin.numbers, counts, strict=True))
    for number, line in _physical(origin):
        wanted = times.pop(number, 0)
        for _ in range(wanted):
            out.write(_ended(line))
    _check_all_seen(origin, times)


def _copy_table(origin: Origin, counts: Sequence[int], out: IO[bytes]) -> None:
    """The header, then each row with all its physical lines (a quoted cell may hold line breaks)."""
    starts = dict(zip(origin.numbers, counts, strict=True))
    row, times = list[bytes](), 1  # before the first row: the header
    for number, line in _physical(origin):
        if number in starts:
            _put_row(row, times, out)
            row, times = [], starts.pop(number)
        row.append(line)
    _put_row(row, times, out)
    _check_all_seen(origin, starts)


def _put_row(row: list[bytes], times: int, out: IO[bytes]) -> None:
    """A row without the empty lines after it, which belong to nobody."""
    while row and not row[-1].strip(b"\r\n"):
        row.pop()
    for _ in range(times):
        out.writelines(_ended(line) for line in row)


def _copy_objects(origin: Origin, counts: Sequence[int], out: IO[bytes]) -> None:
    for fields, times in zip(origin.objects(), counts, strict=True):
        if times and fields is not None:
            out.write(_as_line(fields) * times)


_COPIERS = {"lines": _copy_lines, "table": _copy_table, "objects": _copy_objects}


def _physical(origin: Origin) -> Iterator[tuple[int, bytes]]:
    with _opened(origin) as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(MARK) if number == 1 else line


@contextmanager
def _opened(origin: Origin) -> Iterator[IO[bytes]]:
    assert origin.path is not None
    with origin.path.open("rb") as stored:
        zipped = origin.path.name.lower().endswith(".gz")
        try:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=stored) if zipped else stored)
        except (EOFError, zlib.error) as error:
            raise DataError(f"{origin.path} is cut off or damaged: {error}", try_="unpack it: gunzip -k") from error


def _ended(line: bytes) -> bytes:
    """The last line of a file may lack its line break; another one may follow it now."""
    return line if line.endswith(b"\n") else line + b"\n"


def _check_all_seen(origin: Origin, missing: Mapping[int, int]) -> None:
    if missing:
        raise DataError(
            f"{origin.path} has no line {min(missing)} any more", wanted="the file as it was read", try_="run it again"
        )


# --- parquet -------------------------------------------------------------------------------------------------------


def _copy_parquet(origin: Origin, counts: Sequence[int], part: Path) -> None:
    """Batch by batch, with the schema (and its metadata) of the input."""
    assert origin.path is not None
    with pq.ParquetFile(origin.path, page_checksum_verification=True) as file:
        at = 0
        with pq.ParquetWriter(part, file.schema_arrow, write_page_checksum=True) as writer:
            for batch in file.iter_batches(batch_size=1024):
                own = counts[at : at + batch.num_rows]
                at += batch.num_rows
                places = [n for n, times in enumerate(own) for _ in range(times)]
                if places:
                    writer.write_batch(batch.take(pa.array(places, pa.int64())))
    if at != len(counts):
        raise DataError(f"{origin.path} has {at} rows, not {len(counts)}", wanted="the file as it was read")
