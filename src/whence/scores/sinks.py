"""Where blocks of scores go: all of them, or the streaming top-k. Ids decide the column, never the order of arrival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from whence.gradients.ranks import Ranks


class Sink(Protocol):
    """Takes blocks of scores as batches close."""

    @property
    def columns(self) -> Mapping[str, int]:
        """Id -> column."""
        ...

    def put(self, ids: Sequence[str], block_QB: np.ndarray, layers_LQB: np.ndarray | None) -> None:
        """Scores of Q queries against the B examples with these ids; NaN for examples that could not be scored."""
        ...

    def kept(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """What ``take`` needs to have these rows, the last that were put, and all before them."""
        ...

    def take(self, ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Be as the sink was that said ``arrays`` of these rows; called for all its blocks in their order."""
        ...

    def share(self, ranks: Ranks, ids: Sequence[str]) -> None:
        """Take in what other ranks put; ``ids`` are those that this rank has put since it was last asked."""
        ...


@dataclass
class AllScores:
    """The whole Q x N matrix (and Q x N x L when layers are asked for), NaN until a row is scored.

    Attributes:
        columns: id -> column.
        values: Q x N.
        per_layer: Q x N x L or None.
    """

    columns: Mapping[str, int]
    values: np.ndarray
    per_layer: np.ndarray | None = None

    @staticmethod
    def empty(queries: int, ids: Sequence[str], layers: int | None = None) -> AllScores:
        """Room for every id; ``layers`` > 0 keeps each layer's share too."""
        shape = (queries, len(ids))
        per_layer = None if layers is None else np.full((*shape, layers), np.nan, dtype=np.float32)
        return AllScores({id_: n for n, id_ in enumerate(ids)}, np.full(shape, np.nan, dtype=np.float64), per_layer)

    def put(self, ids: Sequence[str], block_QB: np.ndarray, layers_LQB: np.ndarray | None) -> None:
        where = [self.columns[id_] for id_ in ids]
        self.values[:, where] = block_QB
        if self.per_layer is not None and layers_LQB is not None:
            self.per_layer[:, where] = layers_LQB.transpose(1, 2, 0)

    def kept(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The columns of these rows."""
        where = [self.columns[id_] for id_ in ids]
        layered = {} if self.per_layer is None else {"per_layer": self.per_layer[:, where]}
        return {"values": self.values[:, where], **layered}

    def take(self, ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Put the columns back."""
        where = [self.columns[id_] for id_ in ids]
        self.values[:, where] = arrays["values"]
        if self.per_layer is not None:
            self.per_layer[:, where] = arrays["per_layer"]

    def share(self, ranks: Ranks, ids: Sequence[str]) -> None:
        """Columns of other ranks, which have put other rows."""
        mine = [self.columns[id_] for id_ in ids]
        where = sorted(column for part in ranks.everyone(mine) for column in part)
        at = np.searchsorted(where, mine)
        for array in (self.values, self.per_layer):
            if array is not None:
                new = torch.zeros(len(array), len(where), *array.shape[2:], dtype=torch.from_numpy(array).dtype)
                new[:, at] = torch.from_numpy(array[:, mine])
                array[:, where] = ranks.total(new).numpy()


@dataclass
class TopK:
    """The k strongest proponents and k strongest opponents of each query, in memory independent of N.

    Ties are broken by training order, as sorting all scores would (``finish`` sorts by score, then column).
    """

    columns: Mapping[str, int]
    k: int
    queries: int
    _best: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def put(self, ids: Sequence[str], block_QB: np.ndarray, layers_LQB: np.ndarray | None) -> None:
        where = np.array([self.columns[id_] for id_ in ids])
        for side, sign in enumerate((1.0, -1.0)):
            signed = np.where(np.isfinite(block_QB) & (block_QB * sign > 0), block_QB * sign, -np.inf)
            if len(self._best) <= side:
                self._best.append(self._empty())
            self._best[side] = self._merge(self._best[side], _strongest(signed, where, self.k))

    def kept(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The strongest of all rows so far."""
        named = zip(("proponents", "opponents"), self._best, strict=False)
        return {f"{side} {part}": both[n] for side, both in named for n, part in enumerate(("values", "columns"))}

    def take(self, ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """The last of several counts."""
        sides = [side for side in ("proponents", "opponents") if f"{side} values" in arrays]
        self._best = [(arrays[f"{side} values"], arrays[f"{side} columns"]) for side in sides]

    def _empty(self) -> tuple[np.ndarray, np.ndarray]:
        return np.full((self.queries, 0), -np.inf), np.zeros((self.queries, 0), dtype=np.int64)

    def _merge(
        self, old: tuple[np.ndarray, np.ndarray], new: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        values = np.concatenate([old[0], new[0]], axis=1)
        columns = np.concatenate([old[1], new[1]], axis=1)
        order = np.lexsort((columns, -values), axis=1)[:, : self.k]
        return np.take_along_axis(values, order, 1), np.take_along_axis(columns, order, 1)

    def share(self, ranks: Ranks, ids: Sequence[str]) -> None:
        """The strongest of all ranks' strongest."""
        for side in (0, 1):
            best = self._best[side] if len(self._best) > side else self._empty()
            found = self._empty()
            for rank, width in enumerate(ranks.everyone(best[0].shape[1])):
                shape = (self.queries, width)
                given = best if rank == ranks.rank else (np.empty(shape), np.empty(shape, dtype=np.int64))
                values, columns = (ranks.from_rank(rank, torch.from_numpy(part)).numpy() for part in given)
                # what was shared before comes back from every rank: count it once
                known = (columns[:, :, None] == found[1][:, None, :]).any(2)
                found = self._merge(found, (np.where(known, -np.inf, values), columns))
            self._best[side : side + 1] = [found]

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """(Q x 2k values, Q x 2k columns): proponents then opponents, best first, -1 and NaN where there are none."""
        sides = self._best or [self._empty(), self._empty()]
        values = np.full((self.queries, 2 * self.k), np.nan)
        columns = np.full((self.queries, 2 * self.k), -1, dtype=np.int64)
        for side, (best, where) in enumerate(sides):
            real = np.isfinite(best)
            at = slice(side * self.k, side * self.k + best.shape[1])
            values[:, at] = np.where(real, best if side == 0 else -best, np.nan)
            columns[:, at] = np.where(real, where, -1)
        return values, columns


def _strongest(signed: np.ndarray, where: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The block without most of what cannot be among the k largest: those and all that tie with the last of them."""
    rows, width = signed.shape
    columns = np.broadcast_to(where, signed.shape)
    if width <= 4 * k:
        return signed, columns
    least = np.partition(signed, width - k, axis=1)[:, width - k, None]
    q, n = np.nonzero((signed >= least) & np.isfinite(signed))
    counts = np.bincount(q, minlength=rows)
    place = np.arange(len(q)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (rows, int(counts.max(initial=0)))
    values, kept = np.full(shape, -np.inf), np.zeros(shape, dtype=np.int64)
    values[q, place], kept[q, place] = signed[q, n], columns[q, n]
    return values, kept
