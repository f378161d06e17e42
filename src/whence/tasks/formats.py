"""File formats to records, one by one, never trusting the file.

Every reader yields a ``Record`` per row: its fields, or the reason why it has none. Readers go line by line with caps
on line length, nesting and expansion, so that memory stays flat whatever the file holds; only damage that makes the
*rest* of a file unreadable is raised (``DataError``).

Facts behind the choices: ``json.loads`` accepts lone surrogates that no tokenizer or UTF-8 writer can take; pyarrow's
JSON reader names a row relative to its own block and gives up at the first bad one; csv has no line of its own for a
quoted line break.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from whence.errors import DataError

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MIB = 2**20
AGAIN = 2_000_000  # lines of a CSV file that are read twice at most


@dataclass(frozen=True)
class Limits:
    """Caps on what a file may ask of us.

    Attributes:
        line_bytes: longest line (or JSON file of one document) that is read.
        nesting: deepest nesting of lists and objects.
        gzip_ratio: expanded bytes per stored byte, checked once ``gzip_floor`` bytes came out.
        gzip_floor: bytes that may always be expanded.
    """

    line_bytes: int = 64 * _MIB
    nesting: int = 64
    gzip_ratio: float = 200.0
    gzip_floor: int = 256 * _MIB


LIMITS = Limits()


class Record(NamedTuple):
    """One row as it came out of a file: ``fields``, or None with a ``code`` and a ``message``.

    ``line`` counts from 1: physical lines for text formats, rows otherwise. ``column`` counts from 1, 0 = unknown.
    """

    line: int
    fields: Mapping[str, Any] | None
    code: str = ""
    message: str = ""
    column: int = 0


def read_file(path: Path, limits: Limits = LIMITS) -> Iterator[Record]:
    """Records of one file, by its ending.

    Raises:
        DataError: an unknown ending, or a file that is damaged as a whole.
    """
    name = path.name.lower()
    if name.endswith((".parquet", ".pq")):
        return _read_parquet(path)
    stem = name.removesuffix(".gz")
    if stem.endswith((".jsonl", ".ndjson")):
        return _read_jsonl(path, limits)
    if stem.endswith(".json"):
        return _read_json(path, limits)
    if stem.endswith((".csv", ".tsv")):
        return _read_csv(path, limits, delimiter="\t" if stem.endswith(".tsv") else ",")
    raise DataError(
        f"{path}: do not know how to read this kind of file",
        wanted=".jsonl, .json, .csv, .tsv (each also .gz), .parquet, or a folder saved by datasets",
        try_="convert it, or load it yourself and pass a datasets.Dataset or a list of dictionaries",
    )


class _Line(NamedTuple):
    number: int
    data: bytes
    ended: bool
    too_long: bool = False
    broken: str = ""


def _lines(path: Path, limits: Limits) -> Iterator[_Line]:
    """Physical lines with their number. A line over the cap comes back empty and flagged, having cost no memory."""
    with path.open("rb") as stored:
        head = stored.read(4)
        stored.seek(0)
        zipped = path.name.lower().endswith(".gz")
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=stored) if zipped else stored)
        expanded, number = 0, 0
        try:
            while piece := stream.readline(limits.line_bytes + 1):
                number += 1
                expanded += len(piece)
                too_long = len(piece) > limits.line_bytes
                while too_long and not piece.endswith(b"\n") and (piece := stream.readline(_MIB)):
                    expanded += len(piece)
                    _check_expansion(path, stored, expanded, limits)
                _check_expansion(path, stored, expanded, limits)
                if number == 1:
                    piece = _without_mark(path, piece)
                yield _Line(number, b"" if too_long else piece, piece.endswith(b"\n"), too_long)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            if number == 0:
                raise DataError(
                    f"{path}: not a readable gzip file ({error}); it begins with {head!r}",
                    try_="gunzip -t on it; if it is not compressed, drop the .gz from its name",
                ) from error
            yield _Line(number + 1, b"", False, broken=f"the gzip data ends or breaks here ({error})")


def _check_expansion(path: Path, stored: IO[bytes], expanded: int, limits: Limits) -> None:
    if expanded > limits.gzip_floor and expanded > limits.gzip_ratio * max(stored.tell(), 1):
        raise DataError(
            f"{path}: {stored.tell():,} stored bytes expand to more than {expanded:,}; this looks like a bomb",
            wanted=f"at most {limits.gzip_ratio:g} times after the first {limits.gzip_floor // _MIB} MiB",
            try_="unpack it yourself if you trust it",
        )


def _without_mark(path: Path, line: bytes) -> bytes:
    """The first line without a UTF-8 byte-order mark; UTF-16 is refused by name.

    Every other byte of UTF-16 is zero where people write in Latin letters or in JSON; a mark alone is a bad line.
    """
    body = line.removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff")
    if b"\0\0\0\0" in (body[1:8:2], body[0:8:2]):
        raise DataError(
            f"{path}: looks like UTF-16", wanted="UTF-8", try_="iconv -f UTF-16 -t UTF-8 old.jsonl > new.jsonl"
        )
    return line.removeprefix(b"\xef\xbb\xbf")


def _read_jsonl(path: Path, limits: Limits) -> Iterator[Record]:
    for line in _lines(path, limits):
        if line.broken:
            yield Record(line.number, None, "truncated", line.broken)
        elif line.too_long:
            yield Record(line.number, None, "line_too_long", f"longer than {limits.line_bytes // _MIB} MiB")
        elif line.data.strip():
            yield _parse_line(line, limits)


def _parse_line(line: _Line, limits: Limits) -> Record:
    record = parse_object(line.data, line.number, limits)
    # A writer that was killed leaves a last line without its line break; say so rather than "invalid".
    if record.code in ("invalid_json", "not_utf8") and not line.ended:
        message = f"the last line is cut off ({record.message}); was the program that wrote it stopped?"
        return record._replace(code="truncated", message=message)
    return record


class _DuplicateKeyError(ValueError):
    """Raised while parsing an object that names a key twice; which value is meant cannot be known."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return fields


_DECODE = json.JSONDecoder(object_pairs_hook=_object).decode


def parse_object(data: bytes, line: int, limits: Limits) -> Record:
    """One JSON object, or the reason why it is not one."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return Record(line, None, "not_utf8", f"byte {error.start + 1} is not UTF-8", error.start + 1)
    try:
        value = _DECODE(text)
    except _DuplicateKeyError as error:
        return Record(line, None, "duplicate_key", f"the key {str(error)[:80]!r} appears twice")
    except json.JSONDecodeError as error:
        return Record(line, None, "invalid_json", error.msg, error.pos + 1)
    except RecursionError:
        return Record(line, None, "too_deep", f"nested deeper than {limits.nesting}")
    except ValueError as error:  # for one: a number of more digits than Python takes
        return Record(line, None, "invalid_json", str(error)[:200])
    return _check_value(value, line, data, limits)


def _check_value(value: Any, line: int, data: bytes, limits: Limits) -> Record:
    if not isinstance(value, dict):
        return Record(line, None, "not_an_object", f"{_kind(value)} where an object was wanted")
    if data.count(b"[") + data.count(b"{") > limits.nesting and depth(value, limits.nesting) > limits.nesting:
        return Record(line, None, "too_deep", f"nested deeper than {limits.nesting}")
    if _SURROGATE_ESCAPE.search(data) and has_surrogate(value):
        return Record(line, None, "lone_surrogate", "holds half of a surrogate pair, which is not a character")
    return Record(line, value)


def depth(value: Any, most: float = math.inf) -> int:
    """How deep lists and objects nest; a plain value is 0. Beyond ``most`` nobody looks: a list may hold itself."""
    level, deepest = [value], 0
    while deepest <= most and (level := [v for v in level if isinstance(v, dict | list | tuple)]):
        deepest += 1
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
    return deepest


def has_surrogate(value: Any) -> bool:
    """True when any text inside holds a lone surrogate (no UTF-8, no tokenizer takes it)."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if _SURROGATE.search(item):
                return True
        elif isinstance(item, Mapping):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            stack += item
    return False


def _kind(value: Any) -> str:
    names = {list: "an array", str: "text", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number")


def _read_json(path: Path, limits: Limits) -> Iterator[Record]:
    """An array of objects; also one object a line, which many files named .json are, or a single object."""
    lines = list(_lines(path, limits))
    if any(line.broken or line.too_long for line in lines):
        raise DataError(f"{path}: cut off, damaged, or a line over {limits.line_bytes // _MIB} MiB", try_="use .jsonl")
    filled = [line for line in lines if line.data.strip()]
    if not filled:
        return
    heads = [parse_object(line.data, line.number, limits) for line in filled[:3]]
    if any(head.fields is not None for head in heads) and not filled[0].data.lstrip().startswith(b"["):
        yield from (_parse_line(line, limits) for line in filled)
        return
    yield from _read_array(path, b"".join(line.data for line in lines), limits)


def _read_array(path: Path, data: bytes, limits: Limits) -> Iterator[Record]:
    try:
        value = _DECODE(data.decode())
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg})",
            wanted="an array of objects, or one object a line",
            try_="mend it there, or store the rows as .jsonl, where one bad row is left out and the rest is read",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})", wanted="an array of objects in UTF-8") from error
    items = value if isinstance(value, list) else [value]
    for number, item in enumerate(items, start=1):
        yield check_object(item, number, limits)


def check_object(item: Any, number: int, limits: Limits) -> Record:
    """A record from an already parsed value, with the checks that a parsed line gets."""
    if not isinstance(item, Mapping):
        return Record(number, None, "not_an_object", f"{_kind(item)} where an object was wanted")
    if any(not isinstance(key, str) for key in item):
        return Record(number, None, "bad_column", "a column name is not text")
    if any(isinstance(v, list | dict | tuple) for v in item.values()) and depth(item, limits.nesting) > limits.nesting:
        return Record(number, None, "too_deep", f"nested deeper than {limits.nesting}")
    if has_surrogate(item):
        return Record(number, None, "lone_surrogate", "holds half of a surrogate pair, which is not a character")
    return Record(number, {k: v.tolist() if hasattr(v, "tolist") else v for k, v in item.items()})  # numpy, torch


class _CsvLines:
    """The lines of a CSV file, of which some can be read again: a stray quote swallows good rows until it is found out.

    Attributes:
        source: all lines.
        done: lines of finished records.
        taken: lines of the record that is being read.
    """

    def __init__(self, source: Iterator[str]) -> None:
        self.source, self.done, self.taken = source, 0, []
        self._again: deque[str] = deque()
        self._left = AGAIN

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self.source)
        self.taken.append(line)
        return line

    def settle(self) -> None:
        """The record is good, or beyond help."""
        self.done += len(self.taken)
        self.taken.clear()

    def give_back(self) -> bool:
        """All lines of the record but its first are read again; False when there are none, or too many were."""
        more = len(self.taken) - 1
        if more < 1 or more > self._left:
            self.settle()
            return False
        self._left -= more
        self._again.extendleft(reversed(self.taken[1:]))
        self.done += 1
        self.taken.clear()
        return True


def _read_csv(path: Path, limits: Limits, *, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(limits.line_bytes)
    lines = _CsvLines(_csv_lines(path, limits))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        start, problem = lines.done + 1, None
        try:
            cells = next(reader, None)
        except csv.Error as error:
            cells, problem = [], Record(start, None, "invalid_csv", str(error))
        if cells is None:
            return
        if header and cells and len(cells) != len(header):
            problem = Record(start, None, "wrong_columns", f"{len(cells)} cells where the header has {len(header)}")
        if problem is not None:
            if lines.give_back():
                reader = csv.reader(lines, delimiter=delimiter, strict=True)
            yield problem
            continue
        lines.settle()
        if cells and not header:
            header = _check_header(path, cells)
        elif any(_SURROGATE.search(cell) for cell in cells):
            yield Record(start, None, "not_utf8", "holds bytes that are not UTF-8")
        elif cells:
            yield Record(start, dict(zip(header, cells, strict=True)))


def _csv_lines(path: Path, limits: Limits) -> Iterator[str]:
    for line in _lines(path, limits):
        if line.broken or line.too_long:
            message = line.broken or f"longer than {limits.line_bytes // _MIB} MiB"
            raise DataError(f"{path}:{line.number}: {message}", try_="store the rows as .jsonl")
        yield line.data.decode(errors="surrogateescape")


def _check_header(path: Path, cells: list[str]) -> list[str]:
    if len(set(cells)) != len(cells):
        twice = next(c for c in cells if cells.count(c) > 1)
        raise DataError(f"{path}:1: the column {twice!r} appears twice", wanted="a header with unique names")
    return cells


def _read_parquet(path: Path) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_parquet(path, file)
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for fields in _batch_rows(batch):
                    number += 1
                    if fields is None:
                        yield Record(number, None, "not_utf8", "holds text that is not UTF-8")
                    else:
                        yield check_object(fields, number, LIMITS)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # names and times that cannot be
        raise DataError(
            f"{path}: cannot be read as parquet ({str(error)[:200]})",
            wanted="a complete, undamaged parquet file",
            try_="write it again; a cut-off download is the usual cause",
        ) from error


def _check_parquet(path: Path, file: pq.ParquetFile) -> None:
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    expanded = sum(group.total_byte_size for group in groups)
    if expanded > LIMITS.gzip_floor and expanded > LIMITS.gzip_ratio * path.stat().st_size:
        raise DataError(f"{path}: expands to {expanded:,} bytes; this looks like a bomb", try_="unpack it yourself")


def _batch_rows(batch: pa.RecordBatch) -> Iterable[dict[str, Any] | None]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_one_row(batch, i) for i in range(batch.num_rows)]


def _one_row(batch: pa.RecordBatch, i: int) -> dict[str, Any] | None:
    try:
        return batch.slice(i, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return None
