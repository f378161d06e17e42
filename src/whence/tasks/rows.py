"""Rows: what was read, where it came from, and what could not be read.

``read_rows`` turns anything a user may point at (files of several formats, a folder saved by ``datasets``, a hub data
set, a ``datasets.Dataset``, plain dictionaries, several of these with source names) into one list of rows with stable
ids. **One bad row never stops a run**: it is quarantined with its place and reason, until there are more of them than
the user allowed. Unscored is not zero: a quarantined row enters no sum.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from whence.errors import DataError, OptionError, did_you_mean
from whence.results import SCORED, RowView
from whence.tasks.formats import LIMITS, Limits, Record
from whence.tasks.records import Quarantined, Row
from whence.tasks.shapes import SHAPES, apply_columns, check_fields, detect_shape, explain_columns, fields_text
from whence.tasks.sources import Source, file_digest, open_sources


@dataclass(frozen=True)
class ReadOptions:
    """How rows are read.

    Attributes:
        shape: a name of ``shapes.SHAPES``, or ``auto`` to detect it in each source.
        columns: name that whence knows -> the user's column, e.g. ``{"text": "sentence"}``.
        max_bad_rows: how many rows may be quarantined before the run stops: a share when a float <= 1, else a count.
        dup_ids: what to do when two rows carry one id: ``error``; ``suffix`` (the later ones get ``#2``, ``#3`` ...);
            ``source`` (every id is prefixed with its source's name).
        source: name of the source of rows given as plain Python objects.
        limits: caps that keep hostile files from eating memory.
    """

    shape: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    max_bad_rows: float = 0.01
    dup_ids: Literal["error", "suffix", "source"] = "error"
    source: str = "rows"
    limits: Limits = LIMITS


@dataclass(frozen=True)
class Rows:
    """What was read.

    Attributes:
        rows: the usable rows, in reading order.
        quarantine: the others.
        shape: the shape that was detected or asked for; ``mixed`` when sources differ.
        about: per source name: shape, rows, quarantined; per file: bytes and digest; columns seen.
        fingerprint: hex digest of ids and contents of the usable rows; files' names and order of keys play no part.
        ids: ids of all records in reading order, the quarantined included.
    """

    rows: tuple[Row, ...]
    quarantine: tuple[Quarantined, ...]
    shape: str
    about: Mapping[str, Any]
    fingerprint: str
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


def read_rows(spec: Any, *, options: ReadOptions | None = None) -> Rows:
    """Read every source of ``spec``.

    Args:
        spec: a path (``.jsonl .json .csv .tsv``, each also ``.gz``; ``.parquet``; a ``save_to_disk`` folder), a hub
            name ``name:split[:n]``, any of these as ``source=path``; a ``datasets.Dataset``; a list of dictionaries; a
            list of paths; or a mapping from source name to any of these.
        options: see ``ReadOptions``.

    Raises:
        DataError: nothing there, unreadable as a whole, no usable row, duplicate ids, or too many bad rows.
        OptionError: an unknown shape or policy.
    """
    options = options or ReadOptions()
    _check_options(options)
    sources = open_sources(spec, default_name=options.source, limits=options.limits)
    parts = [_read_source(source, options) for source in sources]
    columns = sorted({name for part in parts for name in part.columns})
    _check_mapped(options.columns, columns)
    rows, bad, ids = _assemble(parts, options.dup_ids)
    check_bad_rows(bad, len(ids), options.max_bad_rows, hint=explain_columns(columns, options.shape))
    shapes = {part.source.name: part.shape for part in parts}
    about = {
        "shapes": shapes,
        "rows": {part.source.name: len(part.records) for part in parts},
        "columns": columns,
        "mapped": dict(options.columns),
        "files": {part.source.place: part.digest for part in parts if part.digest},
    }
    kinds = set(shapes.values())
    shape = kinds.pop() if len(kinds) == 1 else "mixed"
    return Rows(tuple(rows), tuple(bad), shape, about, _fingerprint(rows), tuple(ids))


def check_bad_rows(bad: Sequence[Quarantined], total: int, allowed: float, *, hint: str = "") -> None:
    """Stop when nothing is usable or more rows are bad than allowed.

    Args:
        bad: the quarantined rows.
        total: all rows, the bad ones included.
        allowed: a share of ``total`` when a float <= 1, else a count.
        hint: said when more than half of the rows are bad (what columns were found).

    Raises:
        DataError: names the first few bad rows, the counts by reason and what to try.
    """
    if total == 0:
        raise DataError("there are no rows", wanted="at least one row", try_="check that the file is not empty")
    limit = allowed * total if isinstance(allowed, float) and allowed <= 1 else allowed
    if len(bad) < total and len(bad) <= limit + 1e-9:
        return
    reasons = ", ".join(f"{code} ({n})" for code, n in Counter(b.code for b in bad).most_common(5))
    lines = [f"{len(bad)} of {total} rows cannot be used: {reasons}"]
    lines += [f"    {b.location}: {b.message}" for b in bad[:4]]
    if len(bad) > 4:
        lines.append(f"    ... and {len(bad) - 4} more")
    wanted = f"at most {limit:g} (max_bad_rows = {allowed:g})" if limit < total else "at least one usable row"
    try_ = hint if len(bad) * 2 > total and hint else "mend these rows, or allow them to be left out: --max-bad-rows"
    raise DataError("\n".join(lines), wanted=wanted, try_=try_)


def changed_files(rows: Rows) -> list[str]:
    """Files that no longer hold what was read from them. Results describe what was read, so nothing is lost by it."""
    read: Mapping[str, str] = rows.about.get("files", {})
    return [place for place, before in read.items() if not Path(place).exists() or file_digest(Path(place)) != before]


@dataclass(frozen=True)
class _Part:
    """One source, read: its records with the verdict of the shape check (None = fine)."""

    source: Source
    records: list[Record]
    verdicts: list[tuple[str, str] | None]
    shape: str
    columns: set[str]
    digest: dict[str, Any]


def _check_options(options: ReadOptions) -> None:
    if options.shape not in (*SHAPES, "auto"):
        raise OptionError(f"unknown row shape {options.shape!r}", wanted="auto or one of " + ", ".join(SHAPES))
    if options.dup_ids not in ("error", "suffix", "source"):
        raise OptionError(f"unknown policy {options.dup_ids!r} for duplicate ids", wanted="error, suffix or source")
    if not options.max_bad_rows >= 0:
        raise OptionError(
            f"max_bad_rows = {options.max_bad_rows!r}", wanted="a share from 0.0 to 1.0, or a whole number of rows"
        )


def _read_source(source: Source, options: ReadOptions) -> _Part:
    before = file_digest(source.path) if source.path else {}
    records = [_mapped(record, options.columns) for record in source.records()]
    if source.path and file_digest(source.path) != before:
        raise DataError(f"{source.place} changed while it was being read", try_="wait until its writer is done")
    good = [r.fields for r in records if r.fields is not None]
    if not records:
        raise DataError(
            f"{source.place} holds no rows", wanted="at least one row", try_="check that the file is not empty"
        )
    columns = {name for fields in good for name in fields}
    shape = options.shape if options.shape != "auto" else _majority_shape(good)
    if good and not shape:
        _check_mapped(options.columns, columns)
        raise DataError(
            f"{source.place}: no known row shape among the columns {', '.join(sorted(columns)) or '(none)'}",
            wanted="text; prompt + completion; messages; instruction + output; input_ids; text + label; "
            "prompt + chosen + rejected; input + target; tokens + tags",
            try_=explain_columns(sorted(columns), "auto"),
        )
    verdicts = [(r.code, r.message) if r.fields is None else check_fields(r.fields, shape) for r in records]
    return _Part(source, records, verdicts, shape, columns, before)


def _check_mapped(mapped: Mapping[str, str], columns: Iterable[str]) -> None:
    """A column that the user named must be somewhere; a slip there must not pass for rows of another shape."""
    for known, theirs in mapped.items():
        if theirs not in columns:
            raise DataError(
                f"there is no column {theirs!r} to take {known!r} from",
                wanted="a column that the rows have",
                try_=did_you_mean(theirs, columns),
            )


def _mapped(record: Record, columns: Mapping[str, str]) -> Record:
    if record.fields is None:
        return record
    return record._replace(fields=apply_columns(record.fields, columns))


def _majority_shape(records: Sequence[Mapping[str, Any]]) -> str:
    """The commonest shape among the first thousand records; "" when none is known."""
    counts = Counter(detect_shape(fields) for fields in records[:1000])
    known = [(n, shape) for shape, n in counts.items() if shape]
    return max(known)[1] if known else ""


def _assemble(parts: Iterable[_Part], dup_ids: str) -> tuple[list[Row], list[Quarantined], list[str]]:
    """Give every record its id, in reading order; part the good from the bad."""
    seen: dict[str, str] = {}
    rows: list[Row] = []
    bad: list[Quarantined] = []
    for part in parts:
        for record, verdict in zip(part.records, part.verdicts, strict=True):
            location = f"{part.source.place}:{record.line}"
            own, problem = _own_id(record)
            row_id = own or f"{part.source.name}:{record.line}"
            if own and dup_ids == "source":
                row_id = f"{part.source.name}/{own}"
            row_id = _unique(row_id, location, seen, dup_ids)
            verdict = verdict or problem
            if verdict is None:
                assert record.fields is not None
                rows.append(Row(row_id, record.fields, part.source.name, location))
            else:
                at = f"{location}:{record.column}" if record.column else location
                bad.append(Quarantined(at, verdict[0], verdict[1], row_id))
    return rows, bad, list(seen)


def _own_id(record: Record) -> tuple[str, tuple[str, str] | None]:
    """The row's own id as text ("" when it has none), and what is wrong with it."""
    value = record.fields.get("id") if record.fields is not None else None
    if value is None or value == "":
        return "", None
    if isinstance(value, float) and value.is_integer():  # pandas turns whole-number columns with a gap into floats
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return "", ("bad_id", f"id is {type(value).__name__} {str(value)[:40]!r}; wanted text or a whole number")
    text = str(value)
    if len(text) > 512:
        return "", ("bad_id", f"id has {len(text)} characters; at most 512 are taken")
    return text, None


def _unique(row_id: str, location: str, seen: dict[str, str], dup_ids: str) -> str:
    if row_id in seen:
        if dup_ids != "suffix":
            raise DataError(
                f"two rows have the id {row_id!r}: {seen[row_id]} and {location}",
                wanted="ids that tell rows apart",
                try_="number them, or leave the ids out: rows without one are told apart by source and line",
            )
        n = 2
        while f"{row_id}#{n}" in seen:
            n += 1
        row_id = f"{row_id}#{n}"
    seen[row_id] = location
    return row_id


def _fingerprint(rows: Iterable[Row]) -> str:
    """Hex digest of the rows' ids and contents, independent of key order and of where they were stored."""
    digest = hashlib.blake2b(digest_size=16)
    encode = json.JSONEncoder(sort_keys=True, default=str, separators=(",", ":")).encode
    for row in rows:
        digest.update(encode([row.id, row.fields]).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def row_text(row: Row, shape: str = "auto") -> tuple[str, tuple[tuple[str, str], ...]]:
    """What a person reads of a row: the text, and its pieces as (kind, text) when there is more than one."""
    return fields_text(row.fields, shape)


def row_view(row: Row, *, shape: str = "auto", status: str = SCORED) -> RowView:
    """The row as results and reports show it."""
    text, spans = row_text(row, shape)
    label = row.fields.get("label")
    return RowView(row.id, text, row.source, row.location, status, spans, "" if label is None else str(label))
