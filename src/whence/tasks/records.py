"""A row and a row that was left out. Apart from the readers, so that pricing a loss loads no file formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One record of the user's data.

    Attributes:
        id: stable id (the row's own ``id`` field when it has one, else ``source:line``).
        fields: the record as read, with the user's columns also under the names whence knows (``columns`` option).
        source: name of the source (file stem, or the name the user gave).
        location: where to find it, ``file.jsonl:12``.
    """

    id: str
    fields: Mapping[str, Any]
    source: str = ""
    location: str = ""


@dataclass(frozen=True)
class Quarantined:
    """A row that was left out: never in a sum, never scored 0."""

    location: str
    code: str
    message: str
    id: str = ""
