"""Every byte whence writes goes through here: a temporary file beside the target, fsync, rename, fsync of the folder.

A reader therefore sees the old file or the new one, never half of one, also after a power cut. Checksums are xxh3-128:
neither parquet nor safetensors notices a flipped byte by itself.
"""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from whence.errors import ResourceError, StoreError, WhenceError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CHUNK = 1 << 20


def reach(point: str, path: Path) -> None:
    """A fault point: does nothing. The reliability harness replaces it to stop, fail or kill exactly here."""


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; publish it under ``path`` when the block ends well, remove it otherwise.

    Raises:
        ResourceError: the disk or the quota is full.
        StoreError: the place cannot be written to.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".part", dir=path.parent)
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
    with writing(path) as part, part.open("wb") as out:
        out.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 file atomically; lone surrogates, which no encoder takes, become question marks."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, readable, without ever a bare NaN."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(plain(record), ensure_ascii=True, allow_nan=False) + "\n" for record in records)
    write_text(path, "".join(lines))


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
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except WhenceError:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise ResourceError(
                f"no room to write {path}: {error.strerror}",
                wanted="free space (or quota) on that disk",
                try_="free some space, or another folder with -o",
            ) from error
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}",
            wanted="a place this process may write to",
            try_="another folder with -o",
        ) from error
