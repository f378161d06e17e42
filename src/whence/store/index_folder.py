"""The index folder: what belongs together, what is finished, and how damage is found before a number is used.

::

    index/
    ├── .whence                  marker; .whence.lock and .whence.owner while a process writes
    ├── index-plan.json          what the index is of: model, tokenizer, task, rows, method, scheme; written first
    ├── journal.jsonl            one line per finished file: its name, size and checksum; what has none does not exist
    ├── fit-*.safetensors        while it is built: sums over parts of the rows, and finished stages of the fit
    ├── factors.safetensors      the fitted curvature
    ├── shard-00000.safetensors  coded rows, in the order of the batch plan
    ├── rows.parquet             ids, texts and status of all rows, so that an answer needs no training data
    ├── quarantine.jsonl         rows that were left out, and why
    ├── history.jsonl            who worked on it, when, how long; the only file that differs between two builds
    └── index.json               the manifest, written last and sealed: a folder without it is not finished

A file is a function of the plan and its name. So running the same command again, with as many processes as one likes,
finishes the folder with the bytes that an undisturbed run would have written, and a damaged file is made again alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whence.errors import StoreError
from whence.store import atomic
from whence.store.index_journal import Journal, journal_name
from whence.store.run import KINDS, file_record, seal, sealed

FORMAT = "whence index 2"
PLAN, MANIFEST = KINDS["index"], "index.json"
FACTORS, ROWS, QUARANTINE = "factors.safetensors", "rows.parquet", "quarantine.jsonl"
HISTORY, SCRATCH = "history.jsonl", "fit-*.safetensors"
SHOWN = 4  # differing fields spelled out in a refusal
MOST_BYTES = 1 << 28  # of a plan or a manifest


@dataclass(frozen=True)
class IndexFolder:
    """A folder whose plan is known.

    Attributes:
        path: of the folder.
        identity: field -> value; equal identities make equal bytes.
        journal: what is finished.
        plan: what else the plan holds.
    """

    path: Path
    identity: Mapping[str, Any]
    journal: Journal
    plan: Mapping[str, Any] = field(default_factory=dict)
    _whole: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def alone(self, work: Callable[[], Any]) -> Any:
        """Do it."""
        return work()

    def refresh(self) -> None:
        """Learn what others have finished."""
        self.journal.refresh()

    def finished(self, name: str) -> dict[str, Any] | None:
        """The journal entry of a file that is complete and undamaged; None for one that must be made (again)."""
        entry, path = self.journal.entries.get(name), self.path / name
        if entry is None:
            return None
        try:  # whoever needs it no longer may remove it at any moment
            found = path.stat()
            stamp = (found.st_size, found.st_mtime_ns, found.st_ino)
            if self._whole.get(name) != stamp:  # read once by every process
                if entry.get("file") != file_record(path):
                    return None
                self._whole[name] = stamp
        except OSError:
            return None
        return entry

    def enter(self, name: str, **facts: Any) -> None:
        """Record a file that was just written."""
        self.journal.enter({"name": name, "file": file_record(self.path / name), **facts})

    def remember(self, name: str, facts: Mapping[str, Any]) -> None:
        """Record something that is not a file."""
        self.journal.enter({"name": name, **facts})

    def remembered(self, first: str) -> list[dict[str, Any]]:
        """What was recorded under names that begin like this."""
        return [entry for name, entry in sorted(self.journal.entries.items()) if name.startswith(f"{first} ")]

    def drop(self, name: str) -> None:
        """Remove a file that is not needed any more."""
        atomic.remove(self.path / name)

    def close(self, names: Iterable[str], body: Mapping[str, Any]) -> None:
        """Write the manifest over these files, unless it is there and says the same."""
        files = {name: (self.finished(name) or {}).get("file") or file_record(self.path / name) for name in names}
        whole = {"format": FORMAT, "identity": self.identity, "files": dict(sorted(files.items())), **body}
        text = atomic.json_text(sealed(whole))
        path = self.path / MANIFEST
        if not path.is_file() or path.read_bytes() != text.encode():
            atomic.write_text(path, text)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def open_plan(
    folder: Path, identity: Mapping[str, Any], *, member: str = "", extra: Mapping[str, Any] | None = None
) -> IndexFolder:
    """The folder as one for this plan; a new one is begun.

    Args:
        folder: of the index.
        identity: what the index is of.
        member: name of this process, if there are several.
        extra: kept with a new plan; that of an old plan stays.

    Raises:
        StoreError: it was begun with another plan (names the fields), or its plan cannot be read.
    """
    told, path = atomic.plain(identity), folder / PLAN
    if not path.exists():
        atomic.write_json_once(path, sealed({"format": FORMAT, "identity": told, **(extra or {})}))
    plan = read_plan(folder)
    require_same(folder, plan["identity"], told)
    journal = Journal(folder, journal_name(member), entries_of_manifest(folder))
    journal.refresh()
    return IndexFolder(folder, told, journal, {k: v for k, v in plan.items() if k not in ("identity", "format")})


def read_plan(folder: Path) -> dict[str, Any]:
    """What the folder is of; where the plan is damaged, as the manifest says.

    Raises:
        StoreError: no such thing.
    """
    path = folder / PLAN
    try:
        plan = read_sealed(path)
    except StoreError:
        try:
            body = read_manifest(folder)
        except StoreError:
            body = {}
        if not body:
            raise StoreError(
                f"{path} is damaged, and there is no manifest that repeats it",
                wanted="to know what this folder is an index of",
                try_="whence index ... -o another folder",
            ) from None
        plan = {"format": FORMAT, "identity": body["identity"], **body.get("plan", {})}
        atomic.write_json(path, sealed(plan))
    if plan.get("format") != FORMAT or not isinstance(plan.get("identity"), dict):
        raise StoreError(
            f"{folder} has the format {str(plan.get('format'))[:40]!r}",
            wanted=FORMAT,
            try_="build the index again in another folder, or pip install -U whence",
        )
    return plan


def entries_of_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Journal entries as the manifest of a finished index knows them, for a journal that was damaged."""
    try:
        body = read_manifest(folder)
    except StoreError:
        return {}
    entries = {name: {"name": name, "file": record} for name, record in body["files"].items()}
    if FACTORS in entries:
        entries[FACTORS] |= {"places": body.get("places", {}), "about": body.get("fit", {})}
    return entries | {entry["name"]: entry for entry in body.get("splits", ())}


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
    body = read_sealed(path)
    if body.get("format") != FORMAT:
        said = str(body.get("format"))[:40]
        raise StoreError(f"{folder} has the format {said!r}", wanted=FORMAT, try_="pip install -U whence")
    if not all(isinstance(body.get(part), dict) for part in ("identity", "files")):
        raise damaged(path, "it does not say what it is of")
    return body


def read_sealed(path: Path) -> dict[str, Any]:
    """A JSON object with its seal, exactly as it was written (also white space).

    Raises:
        StoreError: anything else.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        raw = path.read_bytes()
        body = json.loads(raw)
        same = atomic.json_text(body).encode() == raw
        told = body.pop("seal")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise damaged(path, "it is not a sealed JSON object") from error
    if not same or told != seal(body):
        raise damaged(path, "its seal does not fit its content")
    return body


def verify(folder: Path, body: Mapping[str, Any], name: str) -> Path:
    """A file of the index, compared with its size and checksum in the manifest.

    Raises:
        StoreError: missing, changed, or not listed.
    """
    record = body["files"].get(name)
    path = folder / name
    if record is None or Path(name).name != name:
        raise damaged(folder / MANIFEST, f"it does not list {name[:80]!r}")
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
        try_=f"whence repair {path.parent}, which makes only what is damaged again",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
