"""Each row's own strongest numbers: a distance and a nibble each, a byte and a half when rows are not too long.

The strongest are chosen over all layers together, so that a row spends its bytes where it speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from whence.errors import OptionError
from whence.linalg.codes import gaps, levels
from whence.linalg.codes.base import Fields, Layout, Record, field_bytes, sliced

WHOLE = 1 << 21  # rows up to this long are kept whole until their batch is complete
SAMPLE = 16  # one number in so many is looked at to guess how large the K-th is
RANGE_BYTES = 8  # two float32 per row
FORMED = 1 << 21  # numbers of a block of rows written out in full
LOOKED_UP = 1 << 19  # slots decoded at once where the queries are looked up
MANY, DENSE_UP_TO = 64, 4  # more queries than this, and one number in so many kept: rows are written out


@dataclass(frozen=True, eq=False)
class Sparse:
    """A fixed number of slots per row.

    Attributes:
        layout: of the rows.
        slots: K, even.
        width: bytes per distance.
    """

    layout: Layout
    slots: int
    width: int

    @property
    def about(self) -> Mapping[str, Any]:
        return {"scheme": "sparse", "slots": self.slots, "width": self.width}

    @property
    def fields(self) -> Fields:
        distance = torch.uint8 if self.width == 1 else torch.int16
        return {
            "distance": (distance, self.slots),
            "level": (torch.uint8, self.slots // 2),
            "range": (torch.float32, 2),
        }

    @property
    def bytes_per_row(self) -> int:
        return field_bytes(self.fields)

    def part(self, layer: str, x_BM: Tensor) -> Record:
        """The layer's strongest numbers, as many as could be kept of it, and their positions in the row."""
        if self.layout.total <= WHOLE:
            return {"whole": x_BM}
        count = min(self.slots, x_BM.shape[1])
        at = x_BM.abs().topk(count, dim=1, sorted=False).indices if count < x_BM.shape[1] else _all(x_BM)
        return {"values": x_BM.gather(1, at).float(), "at": at + self.layout.spans[layer].start}

    def join(self, parts: Mapping[str, Record]) -> Record:
        values, at = self._strongest(parts)
        at = torch.where(values != 0, at, -1)
        kept_B = gaps.kept_within(at, self.slots, width=self.width)
        distance, source = gaps.coded(at, kept_B, slots=self.slots, width=self.width)
        placed = values.gather(1, source.clamp(min=0))
        nibbles, span = levels.log_levels(placed, source >= 0)
        return {"distance": distance, "level": levels.packed(nibbles), "range": span}

    def _strongest(self, parts: Mapping[str, Record]) -> tuple[Tensor, Tensor]:
        """Values and positions of each row's K largest numbers, by falling size."""
        first = next(iter(parts.values()))
        if "whole" in first:
            layers = [parts[name]["whole"].detach().cpu().float().numpy() for name in self.layout.sizes]
            found = [largest([x[n] for x in layers], self.slots) for n in range(len(layers[0]))]
            values, at = (torch.from_numpy(np.stack(side)) for side in zip(*found, strict=True))
            return values, at
        values, at = (torch.cat([parts[n][field] for n in self.layout.sizes], dim=1) for field in ("values", "at"))
        best = values.abs().topk(min(self.slots, values.shape[1]), dim=1).indices
        return values.gather(1, best), at.gather(1, best)

    def dot(self, record: Mapping[str, Tensor], query_QD: Tensor) -> Tensor:
        if len(query_QD) > MANY and self.layout.total <= DENSE_UP_TO * self.slots:
            step = max(1, FORMED // self.layout.total)
            return torch.cat([self.restored(block).to(query_QD.dtype) @ query_QD.T for block in sliced(record, step)])
        query_DQ = query_QD.T.contiguous()
        step = max(1, LOOKED_UP // self.slots)
        return torch.cat([self.gathered(block, query_DQ) for block in sliced(record, step)])

    def gathered(self, record: Mapping[str, Tensor], query_DQ: Tensor) -> Tensor:
        """``dot`` by looking up the queries at each row's positions: work and memory in what is kept, not in D."""
        at, values = self.entries(record, torch.int32 if self.layout.total < 1 << 31 else torch.int64)
        return embedding_bag(at, query_DQ, per_sample_weights=values.to(query_DQ.dtype), mode="sum")

    def restored(self, record: Mapping[str, Tensor]) -> Tensor:
        """B x D numbers, 0 where nothing was kept."""
        at, values = self.entries(record)
        full = torch.zeros(len(at), self.layout.total, device=at.device)
        return full.scatter_add_(1, at, values)  # fillers add 0 wherever they point

    def entries(self, record: Mapping[str, Tensor], dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
        """Positions (as ``dtype``) and values of all slots; fillers have the value 0."""
        at, entry = gaps.positions(record["distance"], dtype)
        values = levels.from_log_levels(levels.unpacked(record["level"]), record["range"])
        return at.clamp_(0, self.layout.total - 1), values.masked_fill_(entry.logical_not_(), 0)


def largest(pieces: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and positions of a row's k largest numbers (all, if fewer) by falling size; of equals, the first.

    A threshold guessed from a sample leaves little to sort; a guess that leaves fewer than k is not used. The row comes
    in its pieces and is never copied as a whole: NumPy, since it finds what is above a threshold in half torch's time.
    """
    looked_at = np.abs(np.concatenate([piece[::SAMPLE] for piece in pieces]))
    rank = k // SAMPLE + int(4 * (k / SAMPLE) ** 0.5) + 1  # a little more than k: four standard deviations
    if rank < len(looked_at):
        least = np.partition(looked_at, len(looked_at) - rank)[len(looked_at) - rank]
        longest = max(map(len, pieces))
        size, above = np.empty(longest, looked_at.dtype), np.empty(longest, dtype=bool)  # one piece after the other
        among = [np.flatnonzero(np.greater_equal(np.abs(x, size[: len(x)]), least, above[: len(x)])) for x in pieces]
        if sum(map(len, among)) >= k:
            return _ranked(pieces, among, k)
    return _ranked(pieces, [np.arange(len(piece)) for piece in pieces], k)


def _ranked(pieces: Sequence[np.ndarray], among: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of these places. Sizes are sorted as the integers that their bits are, each with its place."""
    starts = np.cumsum([0, *map(len, pieces)])
    values = np.concatenate([piece[at] for piece, at in zip(pieces, among, strict=True)])
    at = np.concatenate([found + start for found, start in zip(among, starts, strict=False)])
    last = len(values) - 1
    keys = (np.abs(values).view(np.int32).astype(np.int64) << 32) + (last - np.arange(len(values)))
    keys.sort()
    order = last - (keys[::-1][:k] & 0xFFFFFFFF)
    return values[order], at[order]


def sparse(layout: Layout, budget: int) -> Sparse:
    """As many slots as fit into ``budget`` bytes a row.

    Raises:
        OptionError: less than a few slots.
    """
    room = budget - RANGE_BYTES
    width = gaps.slot_bytes(layout.total, room)
    slots = int(room // (width + 0.5)) // 2 * 2
    if slots < 2:
        raise OptionError(f"{budget} bytes a row", wanted="at least 16", try_="a budget of 4 KB")
    return Sparse(layout, min(slots, _most(layout.total)), width)


def _most(total: int) -> int:
    return (total + 1) // 2 * 2


def _all(x_BM: Tensor) -> Tensor:
    return torch.arange(x_BM.shape[1], device=x_BM.device).expand(len(x_BM), -1)
