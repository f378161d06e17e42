"""Records of long work that survive an interruption: one small file per finished item, found again by the same plan.

A folder belongs to one plan (settings, rows, model ...); another plan is refused with the fields that differ, so that
results of two different questions are never mixed. Run the same command again and only what is missing is computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whence.errors import StoreError
from whence.store import atomic

PLAN = "plan.json"


@dataclass(frozen=True)
class Journal:
    """Finished items by key, in memory and, with a folder, on disk.

    Attributes:
        folder: where records are kept; None = nowhere.
        records: what is finished.
    """

    folder: Path | None = None
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    @staticmethod
    def open(folder: str | Path | None, plan: Mapping[str, Any]) -> Journal:
        """The journal of this plan, with all that is finished.

        Raises:
            StoreError: the folder holds another plan (names the fields), or cannot be read or written.
        """
        if folder is None:
            return Journal()
        place, told = Path(folder).expanduser(), atomic.plain(plan)
        if (place / PLAN).exists():
            found = _read(place / PLAN)
            differ = sorted(key for key in {*found, *told} if found.get(key) != told.get(key))
            if differ:
                raise StoreError(
                    f"{place} holds results of another plan: {', '.join(differ)} differ",
                    wanted="the same settings, rows and model as before",
                    try_="another --out folder, or delete this one",
                )
        else:
            atomic.write_json(place / PLAN, told)
        files = sorted(path for path in place.glob("item-*.json"))
        records = [_read(path) for path in files]
        return Journal(place, {record["key"]: record for record in records})

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.records[key]

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep a finished item.

        Raises:
            StoreError: the folder cannot be written to.
        """
        self.records[key] = {**atomic.plain(record), "key": key}
        if self.folder is not None:
            atomic.write_json(
                self.folder / f"item-{atomic.text_checksum(key).rpartition(':')[2]}.json", self.records[key]
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict) or (path.name != PLAN and not isinstance(found.get("key"), str)):
            raise ValueError("not a record of ours")
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: {error}", wanted="a record that whence wrote", try_="delete that file") from error
    return found
