"""The run folder: who may write to it, what it holds, and how it is found damaged before it is used.

::

    run/
    ├── .whence            marker: this folder is ours and may be overwritten; format version
    ├── .whence.lock       held while a process writes; .whence.owner says who
    ├── run.json           the manifest, written last: what was asked, what ran, checksums of every other file
    ├── scores.parquet     one line per (query, training row)
    ├── rows.parquet       training rows in order, with status
    ├── queries.parquet    queries in order
    ├── layers.parquet     scores by layer, when asked for
    ├── tokens.parquet     token scores of the strongest rows
    ├── quarantine.jsonl   rows that were left out, and why
    └── report.html

``run.json`` is the commit record: a folder without it is an unfinished run and is never read as a result.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from whence.errors import StoreError
from whence.results import Scores
from whence.store import atomic, tables

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1
MARKER, LOCK, OWNER, MANIFEST = ".whence", ".whence.lock", ".whence.owner", "run.json"
# what a folder may hold, and the file that says so
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
KINDS = {"run": MANIFEST, "index": "index-plan.json", "rounds": "rounds.json"}
QUARANTINE, QUARANTINE_FILE = "quarantine", "quarantine.jsonl"


@contextmanager
def claimed(folder: str | Path, *, kind: str = "run") -> Iterator[Path]:
    """Hold a folder for writing, creating and marking it if it does not exist.

    Args:
        folder: of a run or of an index.
        kind: which of them; a folder that holds the other is refused.

    Raises:
        StoreError: it is a file, holds something that is not ours, is of a newer format, or another process holds it.
    """
    place = own_folder(folder, kind=kind)
    lock = Lock(place)
    if not lock.alone():
        raise in_use(place)
    try:
        clear_parts(place)
        sign_owner(place)
        yield place
    finally:
        with suppress(OSError):
            (place / OWNER).unlink(missing_ok=True)
        lock.release()


def own_folder(folder: str | Path, *, kind: str) -> Path:
    """A folder of ours, made and marked if it is new.

    Raises:
        StoreError: as ``claimed``.
    """
    place = Path(folder).expanduser()
    _check_ours(place)
    _check_kind(place, kind)
    if not (place / MARKER).is_file():
        try:
            atomic.write_text(place / MARKER, json.dumps({"format": FORMAT}) + "\n")
        except StoreError as error:
            # somebody who came at the same time holds the folder by now, and has cleared what was half made
            if not isinstance(error.__cause__, FileNotFoundError) or not (place / MARKER).is_file():
                raise
    return place


def sign_owner(place: Path) -> None:
    """Say who is at work in a folder."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    atomic.write_json(place / OWNER, owner)


def clear_parts(place: Path) -> None:
    """Remove the unfinished files of processes that died; only for who holds the folder alone."""
    for path in place.glob(f".*{atomic.PART}"):
        atomic.remove(path)


class Lock:
    """The lock of a folder, held alone or for sharing; the system takes it from a process that dies.

    Where the system cannot share locks there is only the first.
    """

    def __init__(self, place: Path) -> None:
        self._path = place / LOCK
        self._alone: BaseFileLock = FileLock(self._path, timeout=0)
        self._shared: int | None = None

    def alone(self) -> bool:
        """Hold it alone; False when others hold it. On a disk without locks a file made by exclusive create is one."""
        try:
            self._alone.acquire()
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS or isinstance(self._alone, SoftFileLock):
                raise
            warnings.warn(f"{self._path.parent} is on a disk without locks; a file stands for one", stacklevel=2)
            self._alone = SoftFileLock(f"{self._path}.soft", timeout=0)  # the file itself is there by now
            return self.alone()
        return True

    def share(self) -> bool:
        """Hold it for sharing (no longer alone); False when somebody holds it alone.

        Raises:
            StoreError: a system, or a disk on the network, without such locks.
        """
        if fcntl is None:
            raise StoreError("several processes on one folder", wanted="a system with flock", try_="one process")
        self._alone.release()
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in NO_LOCKS:
                raise StoreError(
                    f"{self._path.parent} is on a disk without locks ({error.strerror})",
                    wanted="flock, for several processes on one folder",
                    try_="one process, a disk mounted with flock, or another folder with -o",
                ) from error
            return False
        self._shared = handle
        return True

    def release(self) -> None:
        """Let go."""
        if self._shared is not None:
            os.close(self._shared)
            self._shared = None
        self._alone.release()


def save_scores(folder: Path, scores: Scores, *, manifest: Mapping[str, Any] | None = None) -> None:
    """Write everything a result consists of, the manifest last. The caller holds the folder (``claimed``).

    ``about["quarantine"]`` goes to a file of its own, one row a line.
    """
    about = {k: v for k, v in scores.about.items() if k != QUARANTINE}
    with suppress(FileNotFoundError):
        (folder / MANIFEST).unlink()  # from here on, and until the new manifest is there, this is an unfinished run
    names = tables.write_tables(folder, scores)
    atomic.write_jsonl(folder / QUARANTINE_FILE, scores.about.get(QUARANTINE, ()))
    names.append(QUARANTINE_FILE)
    body = {
        "format": FORMAT,
        **(manifest or {}),
        "scores": tables.shape_record(scores),
        "about": about,
        "files": {name: file_record(folder / name) for name in sorted(names)},
    }
    write_manifest(folder, body)


def file_record(path: Path) -> dict[str, Any]:
    """Size and checksum of one file of the run."""
    return {"bytes": path.stat().st_size, "checksum": atomic.checksum(path)}


def write_manifest(folder: Path, body: Mapping[str, Any]) -> None:
    """Seal and write ``run.json``."""
    atomic.write_json(folder / MANIFEST, sealed({k: v for k, v in body.items() if k != "seal"}))


def add_file(folder: Path, name: str) -> None:
    """Record a file that was added to a finished run (a report rendered later)."""
    body = read_manifest(folder)
    body["files"][name] = file_record(folder / name)
    write_manifest(folder, body)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
        StoreError: no run there, an unfinished one, a damaged manifest, or one from a newer whence.
    """
    folder = Path(folder).expanduser()
    path = folder / MANIFEST
    if not path.is_file():
        raise _no_run(folder)
    try:
        body = json.loads(path.read_text("utf-8"))
        told = body.pop("seal")
    except (ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise _damaged(path, "it is not a sealed JSON object") from error
    if not isinstance(body.get("format"), int) or told != seal(body):
        raise _damaged(path, "its seal does not fit its content")
    if body["format"] > FORMAT:
        raise StoreError(
            f"{folder} was written by a newer whence (format {body['format']})",
            wanted=f"format {FORMAT} or older",
            try_="pip install -U whence",
        )
    return body


def load_scores(folder: str | Path) -> Scores:
    """Read a finished run back; every file is checked against the manifest before a number of it is used.

    Raises:
        StoreError: not a finished run, or a file that is missing or damaged.
    """
    folder = Path(folder).expanduser()
    body = read_manifest(folder)
    verify(folder, body)
    try:
        lines = (folder / QUARANTINE_FILE).read_text("utf-8").splitlines()
        about = {**body["about"], QUARANTINE: [json.loads(line) for line in lines]}
        return tables.read_tables(folder, body["scores"], about=about)
    except (KeyError, TypeError, ValueError, OSError) as error:  # pyarrow's errors are ValueError and OSError
        raise _damaged(folder, str(error)) from error


def verify(folder: Path, body: Mapping[str, Any]) -> None:
    """Compare sizes and checksums of the data files with the manifest.

    Raises:
        StoreError: names the first file that is missing or differs.
    """
    files = body.get("files")
    if not isinstance(files, Mapping):
        raise _damaged(folder / MANIFEST, "it does not list its files")
    for name, record in files.items():
        if Path(name).name != name:
            raise _damaged(folder / MANIFEST, f"it names a file outside its folder: {name!r}")
        if not name.endswith((".parquet", ".jsonl")):
            continue  # a report may be edited or deleted without hurting the numbers
        path = folder / name
        if not path.is_file():
            raise _damaged(path, "it is missing")
        if file_record(path) != record:
            raise _damaged(path, "its content is not what was written (checksum differs)")


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body as JSON holds it, with its seal."""
    plain = atomic.plain(body)
    return {**plain, "seal": seal(plain)}


def seal(body: Mapping[str, Any]) -> str:
    """Checksum of a manifest, over its content whatever the order of its keys."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _check_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file", wanted="a folder for the run", try_="another name with -o")
    if not folder.exists() or (folder / MARKER).is_file():
        return
    content = sorted(p.name for p in folder.iterdir() if not p.name.startswith((MARKER, f".{MARKER}")))
    if content and not (folder / MARKER).is_file():  # which another process may have made just now
        raise StoreError(
            f"{folder} is a folder that whence did not make (it holds {', '.join(content[:3])} ...)",
            wanted="a new folder, an empty one, or an earlier run of whence",
            try_=f"-o {folder}-whence",
        )


def _check_kind(folder: Path, kind: str) -> None:
    for other, name in KINDS.items():
        if other != kind and (folder / name).is_file():
            raise StoreError(
                f"{folder} holds {other} files ({name})",
                wanted=f"a folder for {kind} files",
                try_="another name with -o",
            )


def in_use(folder: Path) -> StoreError:
    """The error of a folder that somebody else holds: names the machine, the process and since when."""
    owner: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        owner = json.loads((folder / OWNER).read_text("utf-8"))
    who = f"process {owner['pid']} on {owner['host']} since {owner['since']}" if len(owner) == 3 else "another process"
    return StoreError(
        f"{folder} is in use by {who}",
        wanted="a run folder nobody is writing to",
        try_="wait for it to finish, or another folder with -o",
    )


def _no_run(folder: Path) -> StoreError:
    if not folder.exists():
        return StoreError(f"no folder {folder}", wanted="the folder of a finished run", try_="whence trace ... -o run/")
    state = "an unfinished run" if (folder / MARKER).is_file() else "not a whence run"
    return StoreError(
        f"{folder} is {state} (it has no {MANIFEST})",
        wanted="the folder of a finished run",
        try_="run the same whence trace again with this -o",
    )


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(
        f"{path} is damaged: {why}",
        wanted="the file as whence wrote it",
        try_="restore it from a copy, or run the same whence trace again with this -o",
    )
