"""Shards of an index: coded rows in safetensors files, written once, read block by block through a memory map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whence.gradients.ranks import Ranks
from whence.gradients.source import Closed, GradientSource
from whence.linalg.codes.base import Code, Record
from whence.linalg.matrix_batch import MatrixBatch
from whence.store import atomic
from whence.store.ahead import worked_ahead
from whence.store.index_folder import MANIFEST, damaged, shard_name, verify

ROW, NORM, LOSS = "row", "norm", "loss"
KNOWN = {ROW: torch.int32, NORM: torch.float32, LOSS: torch.float32}
KNOWN_BYTES = 12  # of these three, per row
BLOCK = 8192  # rows scored at once
METADATA = {"format": "whence shard 1"}


@dataclass
class Encode:
    """The visitor that codes whitened gradients.

    Attributes:
        code: how.
        columns: row id -> its number.
    """

    code: Code
    columns: Mapping[str, int]
    records: list[Record] = field(default_factory=list)
    _parts: dict[str, Record] = field(default_factory=dict)
    _seen: int = 0
    _norm_B: Tensor | None = None

    def see(self, layer: str, grads: MatrixBatch) -> None:
        x_BM = grads.full().flatten(1)
        self._parts[layer] = {k: t.cpu() for k, t in self.code.part(layer, x_BM).items()}
        self._seen += 1
        norm_B = torch.linalg.vector_norm(x_BM, dim=1).square().cpu()  # no second copy of the rows
        self._norm_B = norm_B if self._norm_B is None else self._norm_B + norm_B

    def close(self, closed: Closed) -> None:
        assert self._norm_B is not None and self._seen == len(self._parts)
        record = self.code.join(self._parts)
        record[ROW] = torch.tensor([self.columns[id_] for id_ in closed.ids], dtype=torch.int32)
        record[NORM] = torch.where(closed.finite, self._norm_B.float(), torch.nan)
        record[LOSS] = closed.losses.float()
        self.records.append(record)
        # the parts stay until those of the next batch take their places: memory is not given back and fetched each time
        self._seen, self._norm_B = 0, None

    def share(self, ranks: Ranks) -> None:
        """Take in the batches that other ranks coded, in the order in which one process would have: rank by rank."""
        told = ranks.everyone([len(record[ROW]) for record in self.records])
        given = [self.finished() if rank == ranks.rank else self._room(sum(rows)) for rank, rows in enumerate(told)]
        whole = [{name: ranks.from_rank(n, t) for name, t in record.items()} for n, record in enumerate(given)]
        parts = [_split(record, rows) for record, rows in zip(whole, told, strict=True)]
        self.records = [of[step] for step in range(max(map(len, parts))) for of in parts if step < len(of)]

    def finished(self) -> Record:
        """All rows seen."""
        if not self.records:  # none of them fitted in memory
            return self._room(0)
        return {name: torch.cat([r[name] for r in self.records]).contiguous() for name in self.records[0]}

    def _room(self, rows: int) -> Record:
        fields = {**self.code.fields, **{name: (dtype,) for name, dtype in KNOWN.items()}}
        return {name: torch.empty((rows, *count), dtype=dtype) for name, (dtype, *count) in fields.items()}


def _split(record: Record, rows: Sequence[int]) -> list[Record]:
    """A record of several batches as one of each."""
    pieces = {name: tensor.split(list(rows)) for name, tensor in record.items()}
    return [{name: of[n] for name, of in pieces.items()} for n in range(len(rows))]


def shard_batches(source: GradientSource, row_bytes: int, shard_bytes: int) -> list[range]:
    """Batch numbers of every shard: neighbours in the plan, closed as soon as a shard has its bytes."""
    found, start, size = [], 0, 0
    for number in range(source.n_batches):
        size += source.batch_size(number) * row_bytes
        if size >= shard_bytes or number == source.n_batches - 1:
            found.append(range(start, number + 1))
            start, size = number + 1, 0
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file, atomically; the same tensors make the same bytes."""
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    with atomic.writing(path, size=size) as part:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, metadata=METADATA)


def write_factors(path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Tensors of every layer, equal ones once; returns layer -> name -> key in the file."""
    keys: dict[object, str] = {}
    kept: dict[str, Tensor] = {}
    places: dict[str, dict[str, str]] = {}
    for layer, named in tensors.items():
        for name, tensor in named.items():
            content = keys.get(id(tensor)) or _digest(tensor)
            key = keys.setdefault(id(tensor), keys.setdefault(content, f"{len(kept):05d}"))
            kept.setdefault(key, tensor)
            places.setdefault(layer, {})[name] = key
    write_tensors(path, {key: tensor.clone() for key, tensor in kept.items()})
    return places


def _digest(tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
    """Equal tensors have equal digests; layers that see the same inputs have the same covariance."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return str(tensor.dtype), tuple(tensor.shape), xxhash.xxh3_128_hexdigest(data.data)


def read_factors(
    path: Path, places: Mapping[str, Mapping[str, str]], *, device: str = "cpu"
) -> dict[str, dict[str, Tensor]]:
    """The inverse of ``write_factors``, for the layers that ``places`` has; what was equal is one tensor.

    Raises:
        StoreError: a file that does not hold what it should.
    """
    try:
        with safe_open(path, "pt", device=device) as file:
            kept = {
                key: file.get_tensor(key) for key in sorted({k for named in places.values() for k in named.values()})
            }
        return {layer: {name: kept[key] for name, key in named.items()} for layer, named in places.items()}
    except (SafetensorError, OSError, KeyError, AttributeError) as error:
        raise damaged(path, str(error)) from error


def blocks(path: Path, code: Code, *, rows: int = BLOCK) -> Iterator[Record]:
    """The shard's records, some rows at a time, so that memory does not depend on the shard's size.

    Raises:
        StoreError: a file that is not a shard of this code.
    """
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            total = parts[ROW].get_shape()[0]
            for start in range(0, total, rows):
                block = {name: part[start : start + rows] for name, part in parts.items()}
                yield checked_block(path, block, code)
    except (SafetensorError, OSError, KeyError, IndexError, RuntimeError) as error:
        raise damaged(path, str(error)) from error


def checked_block(path: Path, block: Record, code: Code) -> Record:
    """The block itself; a file may be whole and still not be ours.

    Raises:
        StoreError: it is not of this code.
    """
    fields = {**code.fields, **dict.fromkeys(KNOWN, None)}
    rows = len(block[ROW])
    for name in {*fields, *block}:
        dtype, *count = fields.get(name) or (KNOWN.get(name),)
        if name not in block or block[name].dtype != dtype or tuple(block[name].shape) != (rows, *count):
            raise damaged(path, f"it does not hold the rows of this index ({name})")
    return block


class Receiver(Protocol):
    """Takes scores as they are found; every ``Sink`` does."""

    def put(self, ids: Sequence[str], block_QB: np.ndarray, layers_LQB: np.ndarray | None) -> None:
        """As of ``Sink``."""
        ...


@dataclass(frozen=True)
class Shelf:
    """The shards of a finished index.

    Attributes:
        folder: where they are.
        manifest: its manifest.
        code: how rows are coded.
        ids: all row ids; a shard holds their numbers.
    """

    folder: Path
    manifest: Mapping[str, Any]
    code: Code
    ids: Sequence[str]

    def blocks(self) -> Iterator[Record]:
        """All coded rows; every shard is checked before its first row is given.

        Raises:
            StoreError: a shard that is missing or damaged.
        """
        return (block for _, _, block in self.placed())

    def placed(self) -> Iterator[tuple[int, int, Record]]:
        """As ``blocks``, each with the number of its shard and the place of its first row there."""
        for number in range(self.manifest["shards"]):
            path = verify(self.folder, self.manifest, shard_name(number))
            start = 0
            for block in blocks(path, self.code):
                self.check_numbers(path, block)
                yield number, start, block
                start += len(block[ROW])

    def check_numbers(self, path: Path, block: Record) -> None:
        """Refuse row numbers that are not the index's.

        Raises:
            StoreError: there are some.
        """
        row = block[ROW]
        if len(row) and (int(row.min()) < 0 or int(row.max()) >= len(self.ids)):
            raise damaged(path, "it holds rows that are not in the index")

    def search(
        self,
        query_QD: Tensor,
        sink: Receiver,
        progress: Callable[[int], None] = lambda _rows: None,
        *,
        among: Iterator[Record] | None = None,
    ) -> np.ndarray:
        """Scores of dense whitened queries against every row, or those ``among`` which to look, into the sink.

        Returns:
            N squared norms of the whitened rows (their self-influence); NaN for rows without a score.
        """
        if query_QD.shape[1] != self.code.layout.total:
            raise damaged(self.folder / MANIFEST, "its rows are not as long as the model's whitened gradient")
        norms = np.full(len(self.ids), np.nan)
        for block, scores_BQ in worked_ahead(lambda b: (b, self.code.dot(b, query_QD)), among or self.blocks()):
            rows, norm = block[ROW].long().numpy(), block[NORM].double().numpy()
            block_QB = scores_BQ.T.double().cpu().numpy().copy()
            block_QB[:, ~np.isfinite(norm)] = np.nan
            sink.put([self.ids[int(n)] for n in rows], block_QB, None)
            norms[rows] = norm
            progress(len(rows))
        return norms
