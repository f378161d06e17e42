"""What may be kept beside an index to answer faster from it, and thrown away at any time.

::

    index/.cache/faiss-<digest>/
    ├── codes.safetensors   short codes of all rows with a score, and a checksum of each row as it is in its shard
    └── cache.json          what they are of, sealed; written last

The folder is named after the checksum of the index's manifest and all settings: what does not match is not looked at.
Shards are not read whole to score a few rows of them, so each row has a checksum of its own, taken when its shard was
verified. Of strangers' files only arrays are read, whose sizes are compared with the index's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from whence.errors import StoreError
from whence.linalg.codes.base import Record
from whence.store import atomic
from whence.store.index_folder import MANIFEST, damaged, read_sealed, shard_name
from whence.store.index_shards import Shelf, checked_block, write_tensors
from whence.store.run import file_record, sealed

CACHE, CODES, TOLD = ".cache", "codes.safetensors", "cache.json"
FORMAT = "whence index cache 1"


@dataclass(frozen=True)
class Kept:
    """The arrays of a cache.

    Attributes:
        codes_NC: uint8, rows in the order of the shards, those without a score left out.
        center_M: float32; what codes are distances from.
        row_N: numbers of the rows.
        shard_N, place_N: where each row is.
        check_N: checksums of the rows.
    """

    codes_NC: np.ndarray
    center_M: np.ndarray
    row_N: np.ndarray
    shard_N: np.ndarray
    place_N: np.ndarray
    check_N: np.ndarray

    def tensors(self) -> dict[str, Tensor]:
        """As they are written."""
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in vars(self).items()}


DTYPES = {
    "codes_NC": (torch.uint8, 2),
    "center_M": (torch.float32, 1),
    "row_N": (torch.int32, 1),
    "shard_N": (torch.int32, 1),
    "place_N": (torch.int32, 1),
    "check_N": (torch.int64, 1),
}


def cache_folder(index: Path, settings: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Where the cache of this index with these settings is, and what it is of.

    Raises:
        StoreError: a link in the place of the folder: it may lead anywhere.
    """
    of = atomic.plain({**settings, "index": file_record(index / MANIFEST)})
    folder = index / CACHE / f"faiss-{atomic.text_checksum(atomic.json_text(of)).removeprefix('xxh3:')[:16]}"
    for place in (folder.parent, folder):
        if place.is_symlink():
            raise StoreError(f"{place} is a link", wanted="a folder of the index itself", try_=f"rm {place}")
    return folder, of


def read_cache(folder: Path, of: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[Kept, dict[str, Any]] | None:
    """A cache and what was noted with it; None for one that is missing, damaged or of something else.

    Args:
        folder: of the cache.
        of: what it must be of.
        sizes: ``code`` bytes of a row, ``center`` numbers, ``rows`` and ``shards`` of the index at most.
    """
    try:
        told = read_sealed(folder / TOLD)
        if told.get("format") != FORMAT or told.get("of") != of or not isinstance(told.get("about"), dict):
            return None
        if file_record(folder / CODES) != told.get("codes"):
            return None
        tensors = load_file(folder / CODES)
    except (StoreError, OSError, SafetensorError):
        return None
    if not _right(tensors, sizes):
        return None
    return Kept(**{name: tensor.numpy() for name, tensor in tensors.items()}), told["about"]


def _right(tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> bool:
    """Can these be the arrays of such an index? Nothing later looks at a place that is not there."""
    if set(tensors) != set(DTYPES) or any((tensors[n].dtype, tensors[n].dim()) != w for n, w in DTYPES.items()):
        return False
    rows = len(tensors["row_N"])
    if not 0 < rows <= sizes["rows"] or any(len(t) != rows for n, t in tensors.items() if n != "center_M"):
        return False
    limits = {"row_N": sizes["rows"], "shard_N": sizes["shards"]}
    within = all(int(tensors[n].min()) >= 0 and int(tensors[n].max()) < limit for n, limit in limits.items())
    return within and tensors["codes_NC"].shape[1] == sizes["code"] and len(tensors["center_M"]) == sizes["center"]


def write_cache(folder: Path, of: Mapping[str, Any], kept: Kept, about: Mapping[str, Any]) -> None:
    """Write a cache, and remove those that nobody can use any more: of what the index was before, or damaged.

    Raises:
        StoreError, ResourceError: as ``atomic.writing``.
    """
    for other in sorted(folder.parent.glob("faiss-*")):
        if other != folder and not other.is_symlink() and _stale(other, of):
            remove_cache(other)
    write_tensors(folder / CODES, kept.tensors())
    body = {"format": FORMAT, "of": of, "about": about, "codes": file_record(folder / CODES)}
    atomic.write_json(folder / TOLD, sealed(body))


def _stale(folder: Path, of: Mapping[str, Any]) -> bool:
    """Is this the cache of something else than ``of``, beyond how lengths count?"""
    try:
        other = read_sealed(folder / TOLD).get("of")
    except StoreError:
        return True
    return not isinstance(other, dict) or {**other, "unit": None} != {**of, "unit": None}


def remove_cache(folder: Path) -> None:
    """Remove a cache's own files, and its folder if nothing else is in it."""
    for name in (TOLD, CODES):
        atomic.remove(folder / name)
    if folder.is_dir() and not any(folder.iterdir()):
        atomic.remove(folder)


def checks(record: Mapping[str, Tensor]) -> np.ndarray:
    """A checksum of every row of a record, int64."""
    parts = [record[name].contiguous().numpy() for name in sorted(record)]
    flat = [part.reshape(len(part), -1).view(np.uint8) for part in parts]
    rows = np.ascontiguousarray(np.concatenate(flat, axis=1))
    return np.array([xxhash.xxh3_64_intdigest(row) for row in rows], dtype=np.uint64).view(np.int64)


def chosen_rows(shelf: Shelf, kept: Kept, rows: Iterable[int]) -> Iterator[Record]:
    """Records of some rows of the cache, a shard at a time; each is compared with its checksum.

    Raises:
        StoreError: a shard that is missing, or a row that is not what it was.
    """
    wanted = np.sort(np.fromiter(rows, dtype=np.int64))
    shards = kept.shard_N[wanted]
    for number in np.unique(shards).tolist():
        here = wanted[shards == number]
        path = shelf.folder / shard_name(number)
        for start in range(0, len(here), BLOCK):
            block = here[start : start + BLOCK]
            record = checked_block(path, _read(path, kept.place_N[block]), shelf.code)
            shelf.check_numbers(path, record)
            if not np.array_equal(checks(record), kept.check_N[block]):
                raise damaged(path, "a row of it is not what it was when the cache was made")
            yield record


BLOCK = 4096  # rows read at once


def _read(path: Path, places: np.ndarray) -> Record:
    at = torch.from_numpy(places.astype(np.int64))
    try:
        with safe_open(path, "pt") as file:
            found = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)  # a map of the file: only the rows taken are read
                if int(at.min()) < 0 or int(at.max()) >= len(tensor):
                    raise damaged(path, "it has fewer rows than its cache")
                found[name] = tensor[at]
            return found
    except (SafetensorError, OSError, IndexError, RuntimeError) as error:
        raise damaged(path, str(error)) from error
