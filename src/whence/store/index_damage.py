"""Everything in an index compared with what was written: what is damaged, missing, or not of this index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.errors import StoreError
from whence.store.index_folder import HISTORY, MANIFEST, PLAN, read_manifest, read_sealed, verify
from whence.store.index_journal import JOURNAL, JOURNALS, Journal
from whence.store.index_schema import checked
from whence.store.run import LOCK, MARKER, OWNER, file_record

KNOWN = {PLAN, MANIFEST, HISTORY, JOURNAL, MARKER, LOCK, OWNER}


@dataclass(frozen=True)
class Checkup:
    """What an examination found.

    Attributes:
        damaged: file -> why it cannot be trusted.
        extra: files that are not of this index; they are never read.
        finished: whether there is a manifest.
    """

    damaged: dict[str, str]
    extra: tuple[str, ...]
    finished: bool


def examine(folder: str | Path) -> Checkup:
    """Read every byte of an index.

    Raises:
        StoreError: not the folder of an index.
    """
    place = Path(folder).expanduser()
    begun = [name for name in (PLAN, MANIFEST, JOURNAL) if (place / name).is_file()]
    if not begun:
        read_manifest(place)  # says what it is not
    journal = Journal(place)
    journal.refresh()
    finished, found = (place / MANIFEST).is_file(), dict(_plan_damage(place))
    body: dict[str, Any] = {}
    if finished:
        try:
            body = dict(checked(place, read_manifest(place)))
        except StoreError as error:
            found[MANIFEST] = error.got
    files = body.get("files") or {n: e["file"] for n, e in journal.entries.items() if isinstance(e.get("file"), dict)}
    found |= dict(_file_damage(place, files, whole=bool(body)))
    found |= dict(_journal_damage(place, journal, body))
    names = {path.name for path in place.iterdir() if path.is_file()}
    mine = {*KNOWN, *files, *(path.name for path in place.glob(JOURNALS))}
    return Checkup(found, tuple(sorted(names - mine)), finished)


def _plan_damage(place: Path) -> Iterator[tuple[str, str]]:
    try:
        read_sealed(place / PLAN)
    except StoreError as error:
        yield PLAN, error.got


def _file_damage(place: Path, files: dict[str, Any], *, whole: bool) -> Iterator[tuple[str, str]]:
    for name, record in files.items():
        path = place / name
        if whole:
            try:
                verify(place, {"files": files}, name)
            except StoreError as error:
                yield name, error.got
        elif path.is_file() and file_record(path) != record:
            yield name, "its content is not what was written (checksum differs)"
        elif not path.is_file() and not name.startswith("fit-"):
            yield name, "it is missing"


def _journal_damage(place: Path, journal: Journal, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Of a finished index the journal repeats what the manifest says."""
    if journal.broken or journal.torn:
        yield JOURNAL, "it has lines that do not fit their checksum"
    elif body:
        told = {name: entry.get("file") for name, entry in journal.entries.items() if entry.get("file")}
        if any(told.get(name) != record for name, record in body["files"].items()):
            yield JOURNAL, "it does not say what the manifest says"
