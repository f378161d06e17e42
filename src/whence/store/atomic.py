"""Every byte whence writes goes through here: a temporary file beside the target, fsync, rename, fsync of the folder.

A reader therefore sees the old file or the new one, never half of one, also after a power cut. Checksums are xxh3-128:
neither parquet nor safetensors notices a flipped byte by itself.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from whence import faults
from whence.errors import ResourceError, StoreError, WhenceError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXHAUSTED = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
CHUNK = 1 << 20
PART = ".part"  # ending of unfinished files; they begin with a dot
_FOREIGN = re.compile(r"\(os error (\d+)\)")  # how safetensors, in Rust, tells what the system said


def reach(point: str, path: Path) -> None:
    """A fault point: does nothing, unless the reliability tests want a process to stop, fail or die exactly here."""
    faults.point()


@contextmanager
def writing(path: str | Path, *, size: int = 0) -> Iterator[Path]:
    """Give a temporary path to write to; publish it under ``path`` when the block ends well, remove it otherwise.

    Args:
        path: of the finished file.
        size: bytes it will have, if known, for the message when there is no room for them.

    Raises:
        ResourceError: the disk or the quota is full, or the system has run out of something else.
        StoreError: the place cannot be written to.
    """
    path = Path(path)
    with _explained(path, size):
        reach("begin", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=PART, dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            reach("open", path)
            yield part
            reach("written", path)
            _publish(part, path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with writing(path, size=len(data)) as part, part.open("wb") as out:
        out.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 file atomically; lone surrogates, which no encoder takes, become question marks."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, readable, without ever a bare NaN."""
    write_text(path, json_text(value))


def json_text(value: Mapping[str, Any]) -> str:
    """What ``write_json`` writes; reading it and writing it again gives the same text."""
    return json.dumps(plain(value), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def write_json_once(path: Path, value: Mapping[str, Any]) -> None:
    """``write_json`` unless the file is there already: of several processes the first wins, and nobody sees half of it.

    Raises:
        ResourceError, StoreError: as ``writing``.
    """
    mine = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")  # processes of two machines may have one number
    write_json(mine, value)
    with _explained(path, 0):
        try:
            reach("link", path)
            path.hardlink_to(mine)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            mine.replace(path)  # a disk without hard links
        finally:
            mine.unlink(missing_ok=True)
        sync_folder(path.parent)
        reach("linked", path)


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(plain(record), ensure_ascii=True, allow_nan=False) + "\n" for record in records)
    write_text(path, "".join(lines))


def append_line(path: Path, line: str) -> None:
    """Add a line, durably. What is left of a line that another process could not finish gets an end first.

    Raises:
        ResourceError, StoreError: as ``writing``.
    """
    with _explained(path, len(line) + 1):
        reach("append", path)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            data = (b"\n" if torn else b"") + line.encode() + b"\n"
            faults.point(lambda: os.write(handle, data[: len(data) // 2]))
            if os.write(handle, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            reach("appended", path)
            os.fsync(handle)
        finally:
            os.close(handle)
        reach("append synced", path)
        if size == 0:
            sync_folder(path.parent)


def create(path: Path, text: str) -> bool:
    """Make a small file that must not exist yet; False if somebody was faster. Its content is only for information.

    Raises:
        ResourceError, StoreError: as ``writing``.
    """
    with _explained(path, len(text)):
        reach("create", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)
        return True


def overwrite(path: Path, text: str) -> None:
    """Replace a small file's content at once and without a sync: a sign of life, worth nothing after a crash.

    Raises:
        ResourceError, StoreError: as ``writing``.
    """
    with _explained(path, len(text)):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}{PART}")
        beside.write_text(text)
        beside.replace(path)


def make_folder(path: Path) -> None:
    """A folder and those above it.

    Raises:
        ResourceError, StoreError: as ``writing``.
    """
    with _explained(path, 0):
        path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file of ours, or an empty folder; one that is gone already is fine.

    Raises:
        ResourceError, StoreError: as ``writing``.
    """
    with _explained(path, 0), suppress(FileNotFoundError):
        reach("remove", path)
        path.rmdir() if path.is_dir() else path.unlink()


def plain(value: Any) -> Any:
    """The value as JSON holds it: tuples as lists, paths and dtypes as text, NumPy scalars as numbers, NaN as null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    if hasattr(value, "tolist") and not isinstance(value, str):  # NumPy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def checksum(path: str | Path) -> str:
    """``xxh3:<hex>`` of a file's bytes, read in pieces."""
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as source:
        while piece := source.read(CHUNK):
            digest.update(piece)
    return f"xxh3:{digest.hexdigest()}"


def text_checksum(text: str) -> str:
    """``xxh3:<hex>`` of a text."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(text.encode('utf-8', errors='replace'))}"


def _publish(part: Path, path: Path) -> None:
    part.chmod(0o666 & ~_umask())  # mkstemp makes private files; results are as readable as any other file
    with part.open("rb+") as out:
        os.fsync(out.fileno())
    reach("synced", path)
    part.replace(path)
    reach("renamed", path)
    sync_folder(path.parent)
    reach("settled", path)


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder durable (a no-op where the system has no such thing)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _explained(path: Path, size: int) -> Iterator[None]:
    try:
        yield
    except WhenceError:
        raise
    except OSError as error:
        raise _failure(path, error.errno, error.strerror or str(error), size) from error
    except Exception as error:
        told = _FOREIGN.search(str(error))
        if told is None:
            raise
        raise _failure(path, int(told[1]), os.strerror(int(told[1])), size) from error


def _failure(path: Path, code: int | None, said: str, size: int) -> WhenceError:
    if code in FULL:
        return ResourceError(
            f"no room to write {path}: {said} ({_amounts(path, size)})",
            wanted="free space (or quota) on that disk; what is finished is kept",
            try_="free some space and run the same command again, or another folder with -o",
        )
    if code in EXHAUSTED:
        return ResourceError(
            f"cannot write {path}: {said}",
            wanted="a disk and a system that take it; what is finished is kept",
            try_="run the same command again when that is cured (`ulimit -n` shows the limit on open files)",
        )
    return StoreError(
        f"cannot write {path}: {said}",
        wanted="a place this process may write to",
        try_="another folder with -o",
    )


def _amounts(path: Path, size: int) -> str:
    """Bytes needed and bytes free, as far as they can be told."""
    needed = f"{size:,} bytes needed" if size else "more bytes needed than there are"
    try:
        return f"{needed}, {shutil.disk_usage(path.parent).free:,} free"
    except OSError:
        return needed
