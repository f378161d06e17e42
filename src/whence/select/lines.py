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
from itertools import accumulate
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
    shared = shared_out(origins, folder, stem)
    for path, parts in shared:
        _write([(origin, counts[at : at + len(origin.numbers)]) for origin, at in parts], path)
    return [path for path, _ in shared]


def shared_out(origins: Sequence[Origin], folder: Path, stem: str) -> list[tuple[Path, list[tuple[Origin, int]]]]:
    """Files, and for each the sources that go into it with the position of their first row among all rows."""
    starts = accumulate((len(origin.numbers) for origin in origins), initial=0)
    parts = list(zip(origins, starts, strict=False))
    if len(origins) == 1 or all(origin.ending == ".jsonl" for origin in origins):
        return [(folder / f"{stem}{origins[0].ending}", parts)]
    found: list[tuple[Path, list[tuple[Origin, int]]]] = []
    for origin, at in parts:
        name = _safe(origin.name, [path.stem for path, _ in found], stem)
        found.append((folder / f"{stem}-{name}{origin.ending}", [(origin, at)]))
    return found


def as_line(fields: Mapping[str, Any]) -> bytes:
    """A row as JSON."""
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
    for number, line in physical(origin):
        wanted = times.pop(number, 0)
        for _ in range(wanted):
            out.write(ended(line))
    check_all_seen(origin, times)


def _copy_table(origin: Origin, counts: Sequence[int], out: IO[bytes]) -> None:
    """The header, then each row with all its physical lines (a quoted cell may hold line breaks)."""
    starts = dict(zip(origin.numbers, counts, strict=True))
    row, times = list[bytes](), 1  # before the first row: the header
    for number, line in physical(origin):
        if number in starts:
            _put_row(row, times, out)
            row, times = [], starts.pop(number)
        row.append(line)
    _put_row(row, times, out)
    check_all_seen(origin, starts)


def _put_row(row: list[bytes], times: int, out: IO[bytes]) -> None:
    """A row without the empty lines after it, which belong to nobody."""
    while row and not row[-1].strip(b"\r\n"):
        row.pop()
    for _ in range(times):
        out.writelines(ended(line) for line in row)


def _copy_objects(origin: Origin, counts: Sequence[int], out: IO[bytes]) -> None:
    for fields, times in zip(origin.objects(), counts, strict=True):
        if times and fields is not None:
            out.write(as_line(fields) * times)


_COPIERS = {"lines": _copy_lines, "table": _copy_table, "objects": _copy_objects}


def physical(origin: Origin) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file with their numbers from 1, unpacked, without the mark of UTF-8 files."""
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


def ended(line: bytes) -> bytes:
    """The last line of a file may lack its line break; another one may follow it now."""
    return line if line.endswith(b"\n") else line + b"\n"


def check_all_seen(origin: Origin, missing: Mapping[int, int]) -> None:
    """Every line that was wanted was there.

    Raises:
        DataError: the file has become shorter.
    """
    if missing:
        raise DataError(
            f"{origin.path} has no line {min(missing)} any more", wanted="the file as it was read", try_="run it again"
        )


# --- parquet -------------------------------------------------------------------------------------------------------


def _copy_parquet(origin: Origin, counts: Sequence[int], part: Path) -> None:
    def taken(at: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        own = counts[at : at + batch.num_rows]
        return batch.take(pa.array([n for n, times in enumerate(own) for _ in range(times)], pa.int64()))

    rewrite_parquet(origin, part, taken)


def rewrite_parquet(origin: Origin, part: Path, change: Callable[[int, pa.RecordBatch], pa.RecordBatch]) -> None:
    """Batch by batch, with the schema (and its metadata) of the input.

    Args:
        origin: whose file is read.
        part: the file to write.
        change: (position of its first row, batch) -> what is written in its place.

    Raises:
        DataError: the file no longer holds as many rows.
    """
    assert origin.path is not None
    with pq.ParquetFile(origin.path, page_checksum_verification=True) as file:
        at = 0
        with pq.ParquetWriter(part, file.schema_arrow, write_page_checksum=True) as writer:
            for batch in file.iter_batches(batch_size=1024):
                new = change(at, batch)
                at += batch.num_rows
                if new.num_rows:
                    writer.write_batch(new)
    if at != len(origin.numbers):
        raise DataError(f"{origin.path} has {at} rows, not {len(origin.numbers)}", wanted="the file as it was read")
