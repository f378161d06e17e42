"""Work of a run that is finished while the run is not: kept in its folder, taken by whoever runs the same again.

::

    run/.unfinished/
    ├── fit.json                  what this part of the work is of, field by field, and when it was begun; sealed
    ├── fit.1.safetensors         a piece: tensors
    ├── fit.1.json                written after them: their checksum, of what they are, what else is known; sealed
    └── scores.json ...

A piece without its record does not exist, nor does one that does not fit it. A part of something else is thrown away:
keeping saves time, and nothing rests on it. Only for who holds the run folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from whence.errors import StoreError
from whence.store import atomic
from whence.store.index_folder import read_sealed
from whence.store.run import file_record, seal, sealed

FOLDER, FORMAT = ".unfinished", "whence unfinished 1"
DATA, RECORD = ".safetensors", ".json"


@dataclass
class Part:
    """One part of the work.

    Attributes:
        folder: ``.unfinished`` of the run.
        name: of the part; a word without dots.
        identity: field -> value; what is of the same is the same to the bit.
        since: when it was begun.
        begun: whether an earlier process began it.
        differs: fields in which what was there differed, and was thrown away.
    """

    folder: Path
    name: str
    identity: Mapping[str, Any]
    since: str
    begun: bool = False
    differs: tuple[str, ...] = ()
    _written: bool = field(default=False, repr=False)

    def find(self, piece: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors of a piece and what was said of it; None unless it is there, whole and of the same."""
        if not self.begun:
            return None
        data = self._data(piece)
        try:
            record = read_sealed(data.with_suffix(RECORD))
            if record.get("of") != seal(dict(self.identity)) or record.get("file") != file_record(data):
                return None
            kept, made = load_file(data), dict[str, Tensor]()
            for place in record["places"].values():
                if place["key"] not in made:
                    made[place["key"]] = _unpacked(kept[place["key"]], place)
            return {name: made[place["key"]] for name, place in record["places"].items()}, record["about"]
        except (StoreError, SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError):
            return None

    def keep(self, piece: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write a piece; one object under several names is written once.

        Raises:
            ResourceError, StoreError: as ``atomic.writing``.
        """
        if not self._written:
            body = {"format": FORMAT, "since": self.since, "identity": self.identity}
            atomic.write_json(self.folder / f"{self.name}{RECORD}", sealed(body))
            self._written = True
        kept: dict[str, Tensor] = {}
        places: dict[str, dict[str, Any]] = {}
        first: dict[int, str] = {}
        for name, tensor in tensors.items():
            key, axes = first.setdefault(id(tensor), name), _axes(tensor)
            places[name] = {"key": key, "axes": axes, "device": str(tensor.device)}
            if key == name:
                kept[key] = _packed(tensor, axes)
        data = self._data(piece)
        size = sum(t.numel() * t.element_size() for t in kept.values())
        with atomic.writing(data, size=size) as part:
            save_file(kept, part)
        record = {"of": seal(dict(self.identity)), "file": file_record(data), "places": places, "about": about}
        atomic.write_json(data.with_suffix(RECORD), sealed(record))

    def drop(self, piece: str) -> None:
        """A piece that nobody needs any more."""
        data = self._data(piece)
        atomic.remove(data.with_suffix(RECORD))
        atomic.remove(data)

    def _data(self, piece: str) -> Path:
        return self.folder / f"{self.name}.{piece}{DATA}"


def open_part(run: Path, name: str, identity: Mapping[str, Any]) -> Part:
    """A part of the work, as far as an earlier process came with the very same; what is of something else is removed.

    Raises:
        ResourceError, StoreError: as ``atomic.remove``.
    """
    folder, told = run / FOLDER, atomic.plain(identity)
    now = time.strftime("%Y-%m-%d %H:%M")
    for path in folder.glob(f".*{atomic.PART}"):
        atomic.remove(path)
    try:
        plan = read_sealed(folder / f"{name}{RECORD}")
        stored, since = dict(plan["identity"]), str(plan["since"])
    except (StoreError, KeyError, TypeError, ValueError):
        _remove(folder, f"{name}.*")
        return Part(folder, name, told, now)
    differs = tuple(sorted(f for f in {*stored, *told} if stored.get(f) != told.get(f)))
    if differs or plan.get("format") != FORMAT:
        _remove(folder, f"{name}.*")
        return Part(folder, name, told, now, differs=differs)
    return Part(folder, name, told, since, begun=True, _written=True)


def forget(run: Path) -> None:
    """Remove what is kept: the run is finished. Files that are not ours stay.

    Raises:
        ResourceError, StoreError: as ``atomic.remove``.
    """
    folder = run / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        return
    _remove(folder, f"*{RECORD}")  # records first: a piece without one does not exist
    _remove(folder, f"*{DATA}")
    _remove(folder, f".*{atomic.PART}")
    if not any(folder.iterdir()):
        atomic.remove(folder)


def _remove(folder: Path, pattern: str) -> None:
    for path in sorted(folder.glob(pattern), key=lambda p: (p.suffix != RECORD, p.name)):
        if path.is_file() or path.is_symlink():
            atomic.remove(path)


def _axes(tensor: Tensor) -> list[int]:
    """The order of axes in which the tensor lies in memory without gaps; a product may round otherwise in another."""
    axes = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    return axes if tensor.permute(axes).is_contiguous() else list(range(tensor.dim()))


def _packed(tensor: Tensor, axes: list[int]) -> Tensor:
    lying = tensor.detach().permute(axes).cpu().contiguous()
    alone = lying.untyped_storage().nbytes() == lying.numel() * lying.element_size()
    return lying if alone else lying.clone()  # save_file refuses tensors that are parts of others


def _unpacked(tensor: Tensor, place: Mapping[str, Any]) -> Tensor:
    """In memory of its own, as it lay; the file's map begins anywhere, and that too may round otherwise."""
    axes: list[int] = place["axes"]
    back = [axes.index(axis) for axis in range(len(axes))]
    return tensor.to(torch.device(place["device"]), copy=True).permute(back)
