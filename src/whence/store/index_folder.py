"""The index folder: what belongs together, what is finished, and how damage is found before a number is used.

::

    index/
    ├── .whence                  marker; .whence.lock and .whence.owner while a process writes
    ├── index-plan.json          what the index is of: model, tokenizer, task, rows, method, scheme; written first
    ├── factors.safetensors      the fitted curvature
    ├── shard-00000.safetensors  coded rows, in the order of the batch plan
    ├── shard-00000.json         journal: written after its file, with size and checksum; what has none does not exist
    ├── rows.parquet             ids, texts and status of all rows, so that an answer needs no training data
    ├── quarantine.jsonl         rows that were left out, and why
    └── index.json               the manifest, written last and sealed: a folder without it is not finished

A shard is a function of the plan and its number. So running the same command again finishes the folder with the bytes
that an undisturbed run would have written, and a damaged shard is made again alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.errors import StoreError
from whence.store import atomic
from whence.store.run import KINDS, file_record, seal

FORMAT = "whence index 1"
PLAN, MANIFEST = KINDS["index"], "index.json"
FACTORS, ROWS, QUARANTINE = "factors.safetensors", "rows.parquet", "quarantine.jsonl"
SHOWN = 4  # differing fields spelled out in a refusal


@dataclass(frozen=True)
class IndexFolder:
    """A folder whose plan is known.

    Attributes:
        path: of the folder.
        identity: field -> value; equal identities make equal bytes.
    """

    path: Path
    identity: Mapping[str, Any]

    def finished(self, name: str) -> dict[str, Any] | None:
        """The journal entry of a file that is complete and undamaged; None for one that must be made (again)."""
        try:
            entry = json.loads(self._journal(name).read_text("utf-8"))
            if (self.path / name).is_file() and entry["file"] == file_record(self.path / name):
                return entry
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None

    def enter(self, name: str, **facts: Any) -> None:
        """Record a file that was just written."""
        atomic.write_json(self._journal(name), {"file": file_record(self.path / name), **facts})

    def _journal(self, name: str) -> Path:
        return (self.path / name).with_suffix(".json")

    def close(self, names: Iterable[str], body: Mapping[str, Any]) -> None:
        """Write the manifest over these files."""
        files = {name: file_record(self.path / name) for name in sorted(names)}
        whole = atomic.plain({"format": FORMAT, "identity": self.identity, "files": files, **body})
        atomic.write_json(self.path / MANIFEST, {**whole, "seal": seal(whole)})


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def open_plan(folder: Path, identity: Mapping[str, Any]) -> IndexFolder:
    """The folder as one for this plan; a new one is begun.

    Raises:
        StoreError: it was begun with another plan (names the fields), or its plan cannot be read.
    """
    told, path = atomic.plain(identity), folder / PLAN
    if not path.exists():
        atomic.write_json(path, {"format": FORMAT, "identity": told})
        return IndexFolder(folder, told)
    try:
        found = json.loads(path.read_text("utf-8"))
        known = dict(found["identity"]) if found["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, "it is not a plan of this version") from error
    require_same(folder, known, told)
    return IndexFolder(folder, told)


def require_same(folder: Path, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse an index of something else.

    Raises:
        StoreError: names the fields that differ, with both values of the first.
    """
    wrong = sorted(f for f in {*stored, *now} if stored.get(f) != now.get(f))
    if wrong:
        shown = "; ".join(f"{f}: index {_short(stored.get(f))}, now {_short(now.get(f))}" for f in wrong[:SHOWN])
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise StoreError(
            f"{folder} is an index of something else ({shown}{more})",
            wanted="the same model, tokenizer, task, rows, method and scheme",
            try_="what the index was made with, or another folder with -o",
        )


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a finished index.

    Raises:
        StoreError: no index there, an unfinished one, a damaged manifest, or another format.
    """
    path = Path(folder).expanduser() / MANIFEST
    if not path.is_file():
        begun = path.with_name(PLAN).is_file()
        raise StoreError(
            f"{folder} is {'an unfinished index' if begun else 'not an index'} (it has no {MANIFEST})",
            wanted="the folder of a finished index",
            try_="run the same whence index again" if begun else "whence index --model ... --data ... -o index/",
        )
    try:
        body = json.loads(path.read_text("utf-8"))
        sealed = body.pop("seal")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise damaged(path, "it is not a sealed JSON object") from error
    if sealed != seal(body):
        raise damaged(path, "its seal does not fit its content")
    if body.get("format") != FORMAT:
        raise StoreError(f"{folder} has the format {body.get('format')!r}", wanted=FORMAT, try_="pip install -U whence")
    return body


def verify(folder: Path, body: Mapping[str, Any], name: str) -> Path:
    """A file of the index, compared with its size and checksum in the manifest.

    Raises:
        StoreError: missing, changed, or not listed.
    """
    record = body["files"].get(name)
    path = folder / name
    if record is None or Path(name).name != name:
        raise damaged(folder / MANIFEST, f"it does not list {name!r}")
    if not path.is_file():
        raise damaged(path, "it is missing")
    if file_record(path) != record:
        raise damaged(path, "its content is not what was written (checksum differs)")
    return path


def damaged(path: Path, why: str) -> StoreError:
    """The error of a file that cannot be trusted."""
    return StoreError(
        f"{path} is damaged: {why}",
        wanted="the file as whence wrote it",
        try_="run the same whence index again: only what is damaged is made again",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
