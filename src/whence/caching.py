"""A disposable cache beside an index: near rows are guessed from short codes, and only those are scored exactly.

The guess is made from one bit per number of the folded rows (``linalg.fold``, ``candidates.neighbours``), so rows are
lost that a search of all would find. How many is measured: with the questions at which the cache is made, whose answers
are exact, and at every later question by a random sample of the rows that were not looked at. What is scored is scored
from the rows themselves, as without a cache. Where candidates of all questions are most of the rows, all are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from whence.candidates.funnel import recall, sampled
from whence.candidates.neighbours import Coder, require_faiss, version
from whence.errors import OptionError
from whence.linalg import draws
from whence.linalg.codes.base import Record
from whence.linalg.fold import Fold, fold_of
from whence.store.index_cache import Kept, cache_folder, checks, chosen_rows, read_cache, write_cache
from whence.store.index_shards import NORM, ROW, Receiver, Shelf
from whence.watch import Watcher

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of the rows, that may be candidates
AIM = 0.95  # of the exact top: what is looked for when nobody says how many rows
JUDGED = 16  # questions that a new cache is judged by
TOP = 10
LEAST_AUDIT, AUDIT_SHARE = 200, 0.05
CODED = 1024  # rows folded at once
MOST = 0.5  # of the rows; where more are candidates, one pass over all is as fast and loses nothing
SIDES = (("proponents", 1.0), ("opponents", -1.0))


@dataclass(frozen=True)
class CacheWish:
    """What was asked for.

    Attributes:
        keep: candidates on either side of a question: a share below 1, a count from 1, None for as many as are needed.
        audit: rows beside them, as of the options.
        seed: of the sample.
        top: the strongest on either side that shall not be lost.
        unit: rows are divided by their length before they are compared.
    """

    keep: float | None
    audit: int | str = "auto"
    seed: int = 0
    top: int = TOP
    unit: bool = False

    def count(self, rows: int, share: float) -> int:
        """Candidates among so many rows; ``share`` if nobody said."""
        keep = share if self.keep is None else self.keep
        return max(1, min(rows, round(keep * rows) if keep < 1 else int(keep)))

    def audited(self, rows: int) -> int:
        """Rows of the sample."""
        if self.audit == "auto":
            return max(LEAST_AUDIT, int(AUDIT_SHARE * rows))
        return rows if self.audit == "all" else int(self.audit)


def parse_cache(text: str) -> float | None:
    """The ``keep`` of ``faiss``, ``faiss:5%`` or ``faiss:2000``.

    Raises:
        OptionError: none of them, or faiss is not installed.
    """
    kind, colon, number = text.partition(":")
    try:
        keep = float(number.removesuffix("%")) / 100 if number.endswith("%") else float(int(number)) if colon else None
    except ValueError:
        keep = 0.0
    if kind != "faiss" or (keep is not None and not (0 < keep < 1 if number.endswith("%") else keep >= 1)):
        raise OptionError(f"cache {text[:80]!r}", wanted="faiss, or with a number of candidates: faiss:5%, faiss:2000")
    require_faiss()
    return keep


@dataclass
class Cached:
    """A shelf that is searched through a cache.

    Attributes:
        shelf: the coded rows.
        wish: how.
        watch: hears what was found.
        scored: row numbers that some question was answered with.
        about: of the last search.
    """

    shelf: Shelf
    wish: CacheWish
    watch: Watcher
    scored: set[int] = field(default_factory=set)
    about: dict[str, Any] = field(default_factory=dict)
    _open: tuple[Kept, dict[str, Any]] | None = None

    @property
    def fold(self) -> Fold:
        """Of the rows."""
        return fold_of(self.shelf.code.layout.total)

    def search(self, query_QD: torch.Tensor, sink: Receiver, progress: Callable[[int], None]) -> np.ndarray:
        """As ``Shelf.search``; but where there is a cache, only candidates and a sample are scored.

        Raises:
            StoreError: a damaged shard, or a row that is not what it was.
        """
        settings = {"faiss": version(), "size": self.fold.size, "draws": draws.VERSION, "unit": self.wish.unit}
        folder, of = cache_folder(self.shelf.folder, settings)
        if self._open is None:
            sizes = {"code": Coder(np.zeros(self.fold.size)).bytes, "center": self.fold.size}
            sizes |= {"rows": len(self.shelf.ids), "shards": self.shelf.manifest["shards"]}
            found = read_cache(folder, of, sizes)
            self._open = found if found is not None and _is_whole(found[1]) else None
        if self._open is not None:
            return self._narrowed(query_QD, sink, progress)
        norms, kept, about = self._made(query_QD, sink, progress)
        write_cache(folder, of, kept, about)
        self._open = kept, about
        self.scored.update(kept.row_N.tolist())
        self._tell({**about, "made": True, "bytes": kept.codes_NC.nbytes}, _said_made(about))
        return norms

    def unscored(self) -> frozenset[str]:
        """Rows with a code that no question was answered with."""
        if self._open is None:
            return frozenset()
        return frozenset(self._ids(np.setdiff1d(self._open[0].row_N, list(self.scored))))

    def _tell(self, about: dict[str, Any], text: str) -> None:
        self.about = {**about, "told": text}
        self.watch.note("cache", f"cache     {text}", **about)

    # making it

    def _made(
        self, query_QD: torch.Tensor, sink: Receiver, progress: Callable[[int], None]
    ) -> tuple[np.ndarray, Kept, dict[str, Any]]:
        """One pass over all rows: their codes, and exact answers to judge the codes by."""
        coding, seen = _Coding(self.fold, self.shelf, self.wish.unit), _Seen(sink, JUDGED)
        norms = self.shelf.search(query_QD, seen, progress, among=coding.blocks())
        kept = coding.finished()
        exact_QN = self._ranked(seen.of(self._ids(kept.row_N)), norms[kept.row_N])
        return norms, kept, self._judged(kept, query_QD[:JUDGED], exact_QN)

    def _ids(self, rows: np.ndarray) -> list[str]:
        return [self.shelf.ids[int(n)] for n in rows]

    def _ranked(self, values: np.ndarray, norms: np.ndarray) -> np.ndarray:
        """What rows are ranked by."""
        return values / np.sqrt(norms) if self.wish.unit else values

    def _judged(self, kept: Kept, query_QD: torch.Tensor, exact_QN: np.ndarray) -> dict[str, Any]:
        """The share of the exact top on either side that is among the first candidates, for every share of the rows."""
        rows = exact_QN.shape[1]
        near, found = self._nearest(kept, query_QD, max(1, round(SHARES[-1] * rows))), {}
        for share in SHARES:
            first = near[:, :, : max(1, round(share * rows))]
            parts = [
                np.isin(np.argsort(-sign * values, kind="stable")[: self.wish.top], places)
                for values, places in zip(exact_QN, first, strict=True)
                for _, sign in SIDES
            ]
            found[f"{share:.0%}"] = round(float(np.mean(parts)), 4)
        share = next((s for s in SHARES if found[f"{s:.0%}"] >= AIM), SHARES[-1])
        counts = {"rows": rows, "questions": len(exact_QN), "top": self.wish.top}
        return {**counts, "recall_by_share": found, "share": share}

    # using it

    def _nearest(self, kept: Kept, query_QD: torch.Tensor, count: int) -> np.ndarray:
        """Q x 2 x count places in the cache: candidates to speak for each question, and against it."""
        query_QM = self.fold.dense(query_QD).numpy()
        both, threads = np.concatenate([query_QM, -query_QM]), torch.get_num_threads()
        found = Coder(kept.center_M).nearest(kept.codes_NC, both, count, threads=threads)
        return found.reshape(2, len(query_QM), -1).transpose(1, 0, 2)

    def _narrowed(self, query_QD: torch.Tensor, sink: Receiver, progress: Callable[[int], None]) -> np.ndarray:
        """Exact scores of candidates, and of some others to see what was lost."""
        assert self._open is not None
        kept, about = self._open
        total = len(kept.row_N)
        near = self._nearest(kept, query_QD, self.wish.count(total, float(about["share"])))
        weights_N = np.zeros(total)
        weights_N[near[near >= 0]] = 1
        counts = {"rows": total, "candidates": int(weights_N.sum()), "a_side": near.shape[2], "top": self.wish.top}
        if counts["candidates"] > MOST * total:
            self.scored.update(kept.row_N.tolist())
            self._tell({**counts, "made": False, "when_made": about}, _said_all(counts, len(query_QD)))
            return self.shelf.search(query_QD, sink, progress)
        chosen, others = weights_N > 0, np.flatnonzero(weights_N == 0)
        drawn = sampled(others, self.wish.audited(total), self.wish.seed)
        weights_N[drawn] = len(others) / max(1, len(drawn))
        places, seen = np.flatnonzero(weights_N), _Seen(sink, len(query_QD))
        among = chosen_rows(self.shelf, kept, places.tolist())
        norms = self.shelf.search(query_QD, seen, progress, among=among)
        progress(total - len(places))
        rows = kept.row_N[places]
        self.scored.update(rows.tolist())
        values_QS = self._ranked(seen.of(self._ids(rows)), norms[rows])
        lost = self._lost(values_QS, chosen[places], weights_N[places], whole=len(places) == total)
        counts["audited"] = len(drawn)
        self._tell({**counts, **lost, "made": False, "when_made": about}, _said_used(counts, lost, about))
        return norms

    def _lost(
        self, values_QS: np.ndarray, chosen_S: np.ndarray, weights_S: np.ndarray, *, whole: bool
    ) -> dict[str, Any]:
        """The share of the exact top on either side that was among the candidates, as far as the sample can say."""
        if not whole and chosen_S.all():
            return {}
        kept_QS = np.broadcast_to(chosen_S, values_QS.shape)
        found = {side: recall(sign * values_QS, kept_QS, weights_S, top=self.wish.top) for side, sign in SIDES}
        return {side: [round(x, 4) for x in (r.value, r.low, r.high)] for side, r in found.items()}


def _is_whole(about: Mapping[str, Any]) -> bool:
    """Does it hold what is said of it later? It may come from anybody."""
    held, counts = about.get("recall_by_share"), [about.get(name) for name in ("questions", "top")]
    return (
        isinstance(held, dict)
        and list(held) == [f"{share:.0%}" for share in SHARES]
        and all(isinstance(value, (int, float)) for value in (*held.values(), *counts))
        and about.get("share") in SHARES
    )


def _said_made(about: Mapping[str, Any]) -> str:
    held = ", ".join(f"{share} of the rows hold {part:.2f}" for share, part in about["recall_by_share"].items())
    return (
        f"made of {about['rows']:,} rows, all of which were scored for this answer; of its exact top {about['top']} "
        f"({_asked(about['questions'])}) the first {held}"
    )


def _asked(questions: int) -> str:
    return "1 question" if questions == 1 else f"{questions} questions"


def _said_all(counts: Mapping[str, int], questions: int) -> str:
    rows = f"{counts['candidates']:,} of {counts['rows']:,} rows"
    return f"{rows} are candidates for {_asked(questions)}: all were scored"


def _said_used(counts: Mapping[str, int], lost: Mapping[str, Sequence[float]], made: Mapping[str, Any]) -> str:
    said = f"{counts['candidates']:,} of {counts['rows']:,} rows were candidates and scored exactly"
    said += f", {counts['audited']:,} others to see what was lost" if counts["audited"] else ""
    parts = [
        f"{value:.2f} (95 % interval {low:.2f} to {high:.2f}) of the {counts['top']} strongest {side}"
        for side, (value, low, high) in lost.items()
    ]
    said += f": candidates held {' and '.join(parts)}" if parts else "; no others were, to see what was lost"
    below = [share for share in SHARES if share * counts["rows"] <= counts["a_side"]]
    share = f"{(below or SHARES)[-1 if below else 0]:.0%}"
    return (
        f"{said}; when the cache was made, {share} of the rows held {made['recall_by_share'][share]:.2f} of the exact "
        f"top {made['top']} ({_asked(made['questions'])})"
    )


@dataclass
class _Seen:
    """Passes scores on and keeps those of the first questions."""

    sink: Receiver
    questions: int
    _ids: list[str] = field(default_factory=list)
    _blocks: list[np.ndarray] = field(default_factory=list)

    def put(self, ids: Sequence[str], block_QB: np.ndarray, layers_LQB: np.ndarray | None) -> None:
        self.sink.put(ids, block_QB, layers_LQB)
        self._ids += ids
        self._blocks.append(block_QB[: self.questions])

    def of(self, ids: Sequence[str]) -> np.ndarray:
        """Scores of these rows, in this order."""
        at = {id_: n for n, id_ in enumerate(self._ids)}
        return np.concatenate(self._blocks, axis=1)[:, [at[id_] for id_ in ids]]


@dataclass
class _Coding:
    """Codes rows while they are searched."""

    fold: Fold
    shelf: Shelf
    unit: bool
    _coder: Coder | None = None
    _parts: list[dict[str, np.ndarray]] = field(default_factory=list)

    def blocks(self) -> Iterator[Record]:
        """All blocks of the shelf."""
        for number, start, block in self.shelf.placed():
            self._code(number, start, block)
            yield block

    def _code(self, number: int, start: int, block: Record) -> None:
        usable = torch.isfinite(block[NORM]) & (block[NORM] > 0) if self.unit else torch.isfinite(block[NORM])
        for there in torch.nonzero(usable).flatten().split(CODED):
            part = {name: tensor[there] for name, tensor in block.items()}
            x_BM = self.fold.coded(self.shelf.code, {name: part[name] for name in self.shelf.code.fields})
            if self.unit:
                x_BM /= part[NORM].sqrt()[:, None]
            self._coder = self._coder or Coder(x_BM.mean(0).numpy())
            self._parts.append(
                {
                    "codes_NC": self._coder.codes(x_BM.numpy()),
                    "row_N": part[ROW].numpy(),
                    "shard_N": np.full(len(there), number, dtype=np.int32),
                    "place_N": (there + start).int().numpy(),
                    "check_N": checks(part),
                }
            )

    def finished(self) -> Kept:
        """The codes of all rows seen."""
        assert self._coder is not None
        joined = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        return Kept(center_M=self._coder.center_M, **joined)
