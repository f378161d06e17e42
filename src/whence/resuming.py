"""A trace that was killed or stopped goes on where it was: what it keeps, when that pays, and what fits the new one.

Kept are the stages of the fit, sums of a stage whose rows are known beforehand, and blocks of the pass that scores. All
of it is a function of the fields it is kept under, so that a run that took it gives the numbers of one that did not. It
is thrown away when a field differs, and when the run is finished. A model spread over processes keeps nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from whence.curvature.base import LayerTensors, Method, Sums
from whence.curvature.keeping import Reached
from whence.errors import WhenceError
from whence.identity import machine_identity, model_identity, rows_identity
from whence.linalg.damping import Damping
from whence.linalg.operators import Gradients
from whence.options import TraceOptions
from whence.pipeline import Material, Subject
from whence.scores.score import Queries
from whence.store import unfinished
from whence.store.unfinished import Part
from whence.watch import Watcher

# Work is kept when writing it costs at most this share of what doing it took; a second's work is sooner done again.
SHARE, LEAST_SECONDS = 0.1, 1.0
WRITE_BYTES, WRITE_SECONDS = 200e6, 0.05  # per second; per file
EVERY_SECONDS = 10.0  # between blocks of scores, and between sums
SHOWN = 4  # differing fields named
# options on which no number of the pass depends
BESIDE = {
    "lexical", "tokens", "max_bad_rows", "trust_remote_code", "allow_pickle_weights", "record", "damping", "method",
    "offload", "train_size",
}  # fmt: skip
OF_FIT = ("fisher", "fit_rows", "seed", "layers")


class Ask(Protocol):
    """How a fit and its scores go about it."""

    @property
    def method(self) -> Method: ...
    @property
    def damping(self) -> Damping: ...
    @property
    def options(self) -> TraceOptions: ...


@dataclass(frozen=True)
class Resuming:
    """What a run folder holds of a run that is not finished.

    Attributes:
        run: the folder.
        watch: hears what is taken from it.
    """

    run: Path
    watch: Watcher

    def fit(
        self, ask: Ask, subject: Subject, trained: Material, *, probe: Gradients | None, name: str = "fit"
    ) -> KeptFit | None:
        """A keeper of the fit; None where nothing is kept."""
        if trained.source.ranks is not None:
            return None
        told = fit_identity(ask, subject, trained, probe)
        return KeptFit(self.watch, name, self._part(name, told), trained)

    def scores(
        self, ask: Ask, subject: Subject, trained: Material, *, queries: Queries, name: str = "score"
    ) -> KeptScores | None:
        """A keeper of the blocks of the pass over these rows; None where nothing is kept."""
        if trained.source.ranks is not None:
            return None
        told = scores_identity(ask, subject, trained, queries)
        return KeptScores(self.watch, name, self._part(name, told), trained)

    def forget(self) -> None:
        """The run is finished: nothing of this is needed any more, and none of it is in anybody's way."""
        with suppress(WhenceError):
            unfinished.forget(self.run)

    def _part(self, name: str, identity: Mapping[str, Any]) -> Part:
        part = unfinished.open_part(self.run, name, identity)
        if part.differs:
            more = f" and {len(part.differs) - SHOWN} more" if len(part.differs) > SHOWN else ""
            said = f"{', '.join(part.differs[:SHOWN])}{more}"
            note = (
                f"note      what an unfinished run left here of its {name} was of something else ({said}): begun anew"
            )
            self.watch.note("unfinished", note, part=name, differs=list(part.differs))
        return part


def resuming_of(ask: Any) -> Resuming | None:
    """Where this run keeps what it has finished; None for a run without a folder."""
    return getattr(ask, "resuming", None)


def fit_identity(ask: Ask, subject: Subject, trained: Material, probe: Gradients | None) -> dict[str, Any]:
    """All that the factors depend on; the questions only where they decide on the number of rows."""
    options = ask.options.model_dump(include=set(OF_FIT))
    decides = ask.options.fit_rows == "auto" and probe is not None
    return {
        **model_identity(subject),
        **rows_identity(trained),
        **machine_identity(subject),
        "method": ask.method.spec,
        "method.stages": [stage.name for stage in ask.method.stages],
        "offload": ask.options.keep_factors,
        "damping": _damping(ask.damping),
        **{f"options.{name}": value for name, value in options.items()},
        "questions": _lengths(probe) if decides and probe is not None else None,
    }


def scores_identity(ask: Ask, subject: Subject, trained: Material, queries: Queries) -> dict[str, Any]:
    """All that the scores depend on; of the preconditioned questions their lengths stand for the rest."""
    options = ask.options.model_dump(exclude=BESIDE)
    solved = _lengths(queries.grads) if queries.self_influence is None else _digest(queries.self_influence)
    return {
        **fit_identity(ask, subject, trained, None),
        **{f"options.{name}": value for name, value in options.items()},
        "scored": xxhash.xxh3_128_hexdigest("\n".join(trained.source.ids).encode("utf-8", "replace")),
        "scored.batches": xxhash.xxh3_128_hexdigest(str(trained.source.plan.batches).encode()),
        "questions": [*queries.ids, _digest(queries.measurements), solved],
    }


def _damping(damping: Damping) -> dict[str, Any]:
    return {"kind": damping.kind, "value": damping.value, "layers": dict(damping.layers)}


def _lengths(grads: Gradients) -> str:
    """Digest of every matrix's length: no two sets of questions have the same to the last bit."""
    return _digest(torch.stack([matrices.squared_norm().double().cpu() for matrices in grads.values()]).numpy())


def _digest(values: np.ndarray) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(values).tobytes())


@dataclass
class _Kept:
    """What both keepers share.

    Attributes:
        watch: hears what is taken.
        name: of the part, for people.
        part: where it is kept.
        rows: what is gone over.
    """

    watch: Watcher
    name: str
    part: Part
    rows: Material
    _open: bool = field(default=True, init=False)
    _since: float = field(default_factory=time.perf_counter, init=False)

    def put(self, piece: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Keep a piece; a disk that does not take it costs the run nothing but this."""
        if not self._open:
            return
        try:
            self.part.keep(piece, tensors, about)
        except WhenceError as error:
            self._open = False
            note = f"note      nothing more of the {self.name} is kept for another try: {error.got}"
            self.watch.note("unfinished", note, part=self.name)
        self._since = time.perf_counter()

    def dropped(self, piece: str) -> None:
        """A piece that another one stands for."""
        with suppress(WhenceError):
            self.part.drop(piece)

    def worth(self, tensors: Mapping[str, Tensor], seconds: float) -> bool:
        """Does writing this cost little beside what making it cost?"""
        size = sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors.values()}.values())
        return seconds >= LEAST_SECONDS and WRITE_SECONDS + size / WRITE_BYTES <= SHARE * seconds

    def take(self, what: str, **facts: Any) -> None:
        """Say what is taken."""
        today, _, clock = self.part.since.partition(" ")
        when = clock if today == time.strftime("%Y-%m-%d") else self.part.since
        note = f"{self.name:<9} {what} taken from the unfinished run of {when}"
        self.watch.note("resumed", note, part=self.name, since=self.part.since, **facts)


@dataclass
class KeptFit(_Kept):
    """Keeps the stages of a fit, and the sums of the one that is at work; see ``curvature.keeping.Keeper``."""

    def reached(self) -> Reached | None:
        """The stages that are over."""
        found = self.part.find("stages")
        if found is None:
            return None
        tensors, about = found
        said = ", ".join(stage["name"] for stage in about["stages"])
        self.take(said, stages=[stage["name"] for stage in about["stages"]])
        return Reached(_nested(tensors), about["stages"], about["notes"])

    def keep(self, reached: Reached, seconds: float) -> None:
        """What the stages so far came to, in place of what was kept before."""
        flat = _flat(reached.tensors)
        if self.worth(flat, sum(float(stage["seconds"]) for stage in reached.stages)):
            self.put("stages", flat, {"stages": list(reached.stages), "notes": list(reached.notes)})
        self.dropped("sums")

    def sums(self, stage: int) -> tuple[Sums, int] | None:
        """Sums of this stage."""
        found = self.part.find("sums")
        if found is None or found[1]["stage"] != stage:
            return None
        tensors, about = found
        self.take(f"{about['examples']:,} rows", rows=about["examples"])
        sums = Sums(_nested(tensors), dict(about["positions"]), about["examples"], about["place"])
        return sums, about["batches"]

    def keep_sums(self, stage: int, sums: Sums, batches: int) -> None:
        """The sums so far, now and then."""
        passed = time.perf_counter() - self._since
        if passed < EVERY_SECONDS:
            return
        flat = _flat(sums.tensors)
        if self.worth(flat, passed):
            counts = {"positions": sums.positions, "examples": sums.examples, "place": sums.place}
            self.put("sums", flat, {"stage": stage, "batches": batches, **counts})


@dataclass
class KeptScores(_Kept):
    """Keeps blocks of the pass that scores; see ``scores.keeping.Blocks``."""

    _taken: int = field(default=0, init=False)

    def block(self, number: int) -> tuple[dict[str, np.ndarray], int] | None:
        """A block of an earlier process."""
        found = self.part.find(f"{number:05d}")
        if found is None:
            self._told()
            return None
        tensors, about = found
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        self._taken += len(arrays["column"])
        if about["batches"] == self.rows.source.n_batches:
            self._told()
        return arrays, about["batches"]

    def due(self) -> bool:
        """Every few seconds."""
        return time.perf_counter() - self._since >= EVERY_SECONDS

    def keep(self, number: int, arrays: Mapping[str, np.ndarray], batches: int) -> None:
        """Write a block."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        self.put(f"{number:05d}", tensors, {"batches": batches})

    def _told(self) -> None:
        if self._taken:
            self.take(f"{self._taken:,} of {len(self.rows.examples):,} rows", rows=self._taken)
        self._taken = 0


SEPARATOR = "|"  # between a layer and the name of its tensor; names have none


def _flat(tensors: LayerTensors) -> dict[str, Tensor]:
    return {f"{name}{SEPARATOR}{layer}": t for layer, named in tensors.items() for name, t in named.items()}


def _nested(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        name, _, layer = key.partition(SEPARATOR)
        found.setdefault(layer, {})[name] = tensor
    return found
