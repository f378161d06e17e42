"""A bank of retrained models: which rows each saw, and what the queries cost afterwards. The truth for many methods.

A bank is a folder::

    bank/
    ├── bank.json           the plan, the rows, the queries and how members are trained: all that must match
    └── members/            one small file per (rows kept, seed): the Q losses, written whole or not at all
        └── 3f2a...-s0.npz

Members are named by what they are, not by when they were trained: running the same command again trains what is
missing, asking for more subsets or seeds adds to the bank, and any method is judged on it without retraining.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import xxhash

from whence.errors import DataError, OptionError, StoreError
from whence.evaluate.trainers import Trainer
from whence.store import atomic

FORMAT, MANIFEST, MEMBERS = "whence bank 1", "bank.json", "members"
SHOWN = 4  # differing fields named in a refusal


class Design(Protocol):
    """Which members a bank should have."""

    @property
    def kept_MN(self) -> np.ndarray: ...

    @property
    def seeds(self) -> tuple[int, ...]: ...

    def about(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Plan:
    """Random subsets times seeds.

    Subset m depends on (seed, m) only, so that a plan of more subsets begins with those of a smaller one.

    Attributes:
        n_rows: N.
        subsets: M.
        repeats: R trainings of every subset, with seeds 0 to R - 1.
        kind: ``keep`` a share of the rows (a half is customary), or ``drop`` that many.
        amount: the share kept, or the number of rows dropped.
        seed: of the draws.
    """

    n_rows: int
    subsets: int
    repeats: int = 2
    kind: Literal["keep", "drop"] = "keep"
    amount: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("keep", "drop"):
            raise OptionError(f"subsets of kind {self.kind!r}", wanted="keep (a share) or drop (a number of rows)")
        if self.subsets < 1 or self.repeats < 1 or not 1 <= self.size < self.n_rows:
            raise OptionError(
                f"{self.subsets} subsets x {self.repeats} seeds that {self.kind} {self.amount:g} of {self.n_rows} rows",
                wanted="at least 1 subset and seed, and between 1 and all but one of the rows kept",
                try_="keep:0.5, or drop:10",
            )

    @property
    def size(self) -> int:
        """Rows that a member keeps."""
        if self.kind == "drop":
            return self.n_rows - int(self.amount)
        return round(self.amount * self.n_rows)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.repeats))

    @property
    def kept_MN(self) -> np.ndarray:
        """M x N booleans."""
        kept = np.zeros((self.subsets, self.n_rows), dtype=bool)
        for m in range(self.subsets):
            kept[m, np.random.default_rng([self.seed, m]).permutation(self.n_rows)[: self.size]] = True
        return kept

    def about(self) -> dict[str, Any]:
        return {"kind": self.kind, "amount": self.amount, "seed": self.seed}


def parse_subsets(text: str) -> tuple[Literal["keep", "drop"], float]:
    """``half``, ``keep:0.5`` or ``drop:10`` as (kind, amount).

    Raises:
        OptionError: none of these.
    """
    kind, _, amount = ("keep:0.5" if text == "half" else text).partition(":")
    try:
        return {"keep": "keep", "drop": "drop"}[kind], float(amount)  # type: ignore[return-value]
    except (KeyError, ValueError) as error:
        raise OptionError(f"subsets {text!r}", wanted="half, keep:SHARE or drop:ROWS", try_="half") from error


@dataclass(frozen=True, eq=False)
class Given:
    """Subsets that were chosen, each trained with every seed."""

    kept_MN: np.ndarray
    seeds: tuple[int, ...]

    def about(self) -> dict[str, Any]:
        return {"kind": "given"}


@dataclass(frozen=True)
class Bank:
    """A folder of trained members, or (without a folder) members kept in memory.

    Attributes:
        folder: None = in memory only.
        design: which members there should be.
        train_ids, query_ids: N rows and Q queries, in the order of the arrays.
        recipe: the trainer's fingerprint.
    """

    folder: Path | None
    design: Design
    train_ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    recipe: Mapping[str, Any]
    memory: dict[str, np.ndarray]

    @property
    def losses_MRQ(self) -> np.ndarray:
        """Measurements in nats; NaN = not trained yet, or diverged."""
        kept_MN, seeds = self.design.kept_MN, self.design.seeds
        found = np.full((len(kept_MN), len(seeds), len(self.query_ids)), np.nan)
        for m, kept in enumerate(kept_MN):
            for r, seed in enumerate(seeds):
                losses = self.read(member_name(kept, seed))
                if losses is not None:
                    found[m, r] = losses
        return found

    def read(self, name: str) -> np.ndarray | None:
        """Q losses of a member; None when it is not there.

        Raises:
            StoreError: a damaged file.
        """
        if self.folder is None:
            return self.memory.get(name)
        return _read_member(self.folder / MEMBERS / f"{name}.npz", self.query_ids)

    def write(self, kept_N: np.ndarray, seed: int, losses_Q: np.ndarray) -> None:
        """Add a member: whole or not at all."""
        name = member_name(kept_N, seed)
        losses = np.asarray(losses_Q, dtype=np.float64)
        if losses.shape != (len(self.query_ids),):
            raise DataError(f"a trainer gave losses {losses.shape}", wanted=f"{len(self.query_ids)}: one per query")
        if self.folder is None:
            self.memory[name] = losses
            return
        packed = io.BytesIO()
        np.savez(packed, losses=losses, kept=np.packbits(kept_N), rows=len(kept_N), seed=seed)
        atomic.write_bytes(self.folder / MEMBERS / f"{name}.npz", packed.getvalue())

    def missing(self) -> list[tuple[int, int]]:
        """(subset, place of the seed) of members not trained yet, seed by seed."""
        kept_MN, seeds = self.design.kept_MN, self.design.seeds
        return [
            (m, r)
            for r, seed in enumerate(seeds)
            for m, kept in enumerate(kept_MN)
            if not self._has(member_name(kept, seed))
        ]

    def _has(self, name: str) -> bool:
        if self.folder is None:
            return name in self.memory
        return (self.folder / MEMBERS / f"{name}.npz").is_file()


def member_name(kept_N: np.ndarray, seed: int) -> str:
    """A member's file name: rows kept and seed."""
    return _name(np.packbits(kept_N), seed)


def _name(packed: np.ndarray, seed: int) -> str:
    return f"{xxhash.xxh3_128_hexdigest(packed.tobytes())[:20]}-s{seed}"


def open_bank(
    folder: str | Path | None,
    design: Design,
    trainer: Trainer,
    *,
    train_ids: Sequence[str],
    query_ids: Sequence[str],
) -> Bank:
    """Open a bank, or begin one.

    Args:
        folder: where; None = in memory.
        design: members wanted. More subsets or seeds than the folder has are welcome.
        trainer: who trains them.
        train_ids: N rows.
        query_ids: Q queries.

    Raises:
        StoreError: the folder is no bank, or one of other rows, queries, subsets or training; names the differences.
    """
    train, query, recipe = tuple(train_ids), tuple(query_ids), atomic.plain(dict(trainer.fingerprint()))
    if design.kept_MN.shape[1] != len(train):
        raise DataError(f"subsets of {design.kept_MN.shape[1]} rows", wanted=f"{len(train)}: the training rows")
    place = None if folder is None else Path(folder).expanduser()
    if place is not None:
        wanted = {"plan": design.about(), "recipe": recipe, "train_ids": list(train), "query_ids": list(query)}
        _settle(place, atomic.plain(wanted))
    return Bank(place, design, train, query, recipe, {})


def train_members(bank: Bank, trainer: Trainer, progress: Callable[[int, int], None] | None = None) -> int:
    """Train what is missing; each group of members is kept as soon as it is finished.

    Args:
        bank: see ``open_bank``.
        trainer: who trains.
        progress: told (members there, members wanted) at the start and after every group.

    Returns:
        How many were trained.
    """
    kept_MN, seeds, missing = bank.design.kept_MN, bank.design.seeds, bank.missing()
    total = len(kept_MN) * len(seeds)
    tell = progress or (lambda done, total: None)
    tell(total - len(missing), total)
    for start in range(0, len(missing), trainer.at_once):
        group = missing[start : start + trainer.at_once]
        kept_KN, given = kept_MN[[m for m, _ in group]], [seeds[r] for _, r in group]
        losses_KQ = trainer.losses(kept_KN, given)
        for kept, seed, losses in zip(kept_KN, given, losses_KQ, strict=True):
            bank.write(kept, seed, losses)
        tell(total - len(missing) + start + len(group), total)
    return len(missing)


def read_bank(folder: str | Path) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray, np.ndarray]:
    """All members of a bank on disk, whoever asked for them.

    Returns:
        (train ids, query ids, kept M x N, losses M x Q averaged over the seeds of each subset).

    Raises:
        StoreError: no bank, damaged, or empty.
    """
    place = Path(folder).expanduser()
    about = _manifest(place)
    query_ids, count = tuple(about["query_ids"]), len(about["train_ids"])
    found: dict[bytes, list[np.ndarray]] = {}
    for path in sorted((place / MEMBERS).glob("*.npz")):
        losses = _read_member(path, query_ids)
        with np.load(path, allow_pickle=False) as file:
            found.setdefault(file["kept"].tobytes(), []).append(losses)  # type: ignore[arg-type]
    if not found:
        raise StoreError(f"bank {place} has no trained member yet", wanted="at least one", try_="whence evaluate lds")
    kept = [np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool) for bits in found]
    losses_MQ = np.stack([np.mean(each, axis=0) for each in found.values()])
    return tuple(about["train_ids"]), query_ids, np.stack(kept), losses_MQ


def _read_member(path: Path, query_ids: Sequence[str]) -> np.ndarray | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            losses = np.asarray(file["losses"], dtype=np.float64)
            named = _name(file["kept"], int(file["seed"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is damaged: {error}", wanted="a member of a bank", try_=f"rm {path}") from error
    if losses.shape != (len(query_ids),) or named != path.stem:
        raise StoreError(f"{path} is another member than its name says", wanted="a member", try_=f"rm {path}")
    return losses


def _settle(place: Path, wanted: dict[str, Any]) -> None:
    """Write the manifest of a new bank; compare with that of an old one."""
    if not (place / MANIFEST).exists():
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise StoreError(f"{place} is no bank and not empty", wanted="a bank or a new folder")
        atomic.write_json(place / MANIFEST, {"format": FORMAT, **wanted})
        return
    there = _manifest(place)
    differing = _differences({key: there.get(key) for key in wanted}, wanted)
    if differing:
        more = f", and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise StoreError(
            f"bank {place} does not match: " + "; ".join(differing[:SHOWN]) + more,
            wanted="the rows, queries, subsets and training that it was made with",
            try_="another --bank folder, or the settings it has",
        )


def _manifest(place: Path) -> dict[str, Any]:
    try:
        found = json.loads((place / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{place} is no bank: {error}", wanted=f"a folder with {MANIFEST}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not {"train_ids", "query_ids"} <= set(found):
        raise StoreError(f"{place / MANIFEST} is of another format", wanted=FORMAT)
    return found


def _differences(there: Any, wanted: Any, path: str = "") -> list[str]:
    """Fields that differ, in words."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(key for key in there if key not in wanted)]
        return [d for k in keys for d in _differences(there.get(k), wanted.get(k), f"{path}.{k}" if path else k)]
    if there == wanted:
        return []
    if isinstance(there, list) and isinstance(wanted, list) and path.endswith("_ids"):
        first = next((n for n, (a, b) in enumerate(zip(there, wanted, strict=False)) if a != b), None)
        said = f"{len(there)}, now {len(wanted)}"
        return [f"{path}: {said}" + (f", first other one {wanted[first]!r}" if first is not None else "")]
    return [f"{path}: {there!r}, now {wanted!r}"]
