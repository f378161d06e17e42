"""The journal of an index: one line for every finished file, appended after the file itself is safe.

A line is JSON, a tab, and the checksum of the JSON; what does not fit its checksum (half a line after a power cut, a
flipped bit) is as if it had never been written, and costs the making of one file. Every process appends to a journal of
its own, so that no two ever write to one file; ``merged`` puts them together when nobody is at work.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whence.store import atomic

JOURNAL, JOURNALS = "journal.jsonl", "journal*.jsonl"
MOST_BYTES = 1 << 28


def journal_name(member: str = "") -> str:
    """The journal of one process among several; of the only one without a name."""
    return f"journal-{member}.jsonl" if member else JOURNAL


@dataclass
class Journal:
    """What the journals of a folder say.

    Attributes:
        folder: of the index.
        own: file that this process appends to.
        entries: name -> entry.
        broken: lines that do not fit their checksum.
        torn: whether a journal ends in half a line.
    """

    folder: Path
    own: str = JOURNAL
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: int = 0
    torn: bool = False
    _read: dict[str, int] = field(default_factory=dict)

    def refresh(self) -> None:
        """Read what was appended since the last time, by whomever."""
        for path in sorted(self.folder.glob(JOURNALS)):
            start = self._read.get(path.name, 0)
            try:
                with path.open("rb") as source:
                    source.seek(start)
                    text = source.read(MOST_BYTES)
            except OSError:
                continue
            whole = text.rfind(b"\n") + 1  # a line without its end may still be on its way
            self._read[path.name] = start + whole
            self.torn |= whole < len(text)
            for line in text[:whole].splitlines():
                entry = read_line(line)
                if entry is None:
                    self.broken += bool(line)
                else:
                    self.entries[entry["name"]] = entry

    def enter(self, entry: Mapping[str, Any]) -> None:
        """Append an entry; it needs a ``name``."""
        line = line_of(atomic.plain(entry))
        atomic.append_line(self.folder / self.own, line)
        kept = read_line(line.encode())  # as everybody reads it, also in the order of its keys: files follow that order
        assert kept is not None
        self.entries[kept["name"]] = kept

    def merged(self, kept: Iterable[str] | None = None) -> None:
        """One journal of all, in the order of names; with ``kept`` only of these. Only when nobody else is at work."""
        self.refresh()
        names = sorted(self.entries if kept is None else self.entries.keys() & set(kept))
        text = "".join(line_of(self.entries[name]) + "\n" for name in names)
        path = self.folder / JOURNAL
        if not path.exists() or path.read_bytes() != text.encode():
            atomic.write_text(path, text)
        for other in sorted(self.folder.glob(JOURNALS)):
            if other.name != JOURNAL:
                atomic.remove(other)
        self.broken, self._read = 0, {JOURNAL: len(text)}


def line_of(entry: Mapping[str, Any]) -> str:
    """An entry as it is written."""
    text = json.dumps(entry, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"{text}\t{atomic.text_checksum(text)}"


def read_line(line: bytes) -> dict[str, Any] | None:
    """The entry; None for anything that was not written by ``line_of``."""
    text, tab, told = line.partition(b"\t")
    try:
        if not tab or atomic.text_checksum(text.decode("ascii")).encode() != told:
            return None
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("name"), str) else None
