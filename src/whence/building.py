"""How an index is built: the fit and the shards as files, each a function of the plan, made by whoever is there.

``indexing`` opens everything and says what an index is of; here is the work. A process that dies loses at most the file
it was making.

Ranks that share one model take all these steps together. What runs the model they do ``together``: units of the fit
side by side, one on each rank, and the batches of a shard in turn. The rest the first does alone. Divided like that,
every sum is added in the order in which one process adds it, and the files are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from whence.curvature.apart import parts_of
from whence.curvature.base import Factors, LayerTensors, Method, Stage, Sums
from whence.curvature.fit import FitOptions, check_sums, judged, scarce, stage_record
from whence.curvature.rounds import Round, Unit, rounds, unit_sums
from whence.gradients.backoff import Pass
from whence.gradients.transforms import TransformedGradients, Whitened
from whence.linalg import eigen
from whence.linalg.codes.base import Code
from whence.linalg.operators import Gradients
from whence.store.index_folder import FACTORS, damaged, shard_name
from whence.store.index_shards import KNOWN_BYTES, Encode, shard_batches, write_tensors
from whence.store.site import Progress, Site
from whence.store.worklist import Task

# --- the fit ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitting:
    """A fit whose stages, and the sums over parts of the rows, are files.

    Attributes:
        site: where.
        method: what is fitted.
        options: see ``FitOptions``.
        probe: makes the gradients by which ``rows="auto"`` judges; called by whoever judges.
        progress: told rows.
    """

    site: Site
    method: Method
    options: FitOptions
    probe: Callable[[], Gradients] | None
    progress: Progress

    def factors(self) -> tuple[Factors, dict[str, Any]]:
        """The factors, and their places in ``factors.safetensors``."""
        for number, stage in enumerate(self.method.stages):
            if self.site.folder.finished(FACTORS) is not None:
                break
            options = replace(self.options, seed=self.options.seed + number)  # every stage draws fresh labels
            one = StageFit(self, number, stage, options, self.names[number])
            self.site.complete(one.tasks(), self.progress)
        if not self.method.stages:
            self.site.complete([Task(FACTORS, self._unfitted)], self.progress)
        entry = self.site.entry(FACTORS)
        return Factors(self.site.known(FACTORS), entry["about"]), entry["places"]

    @cached_property
    def names(self) -> list[str]:
        """The file that each stage comes to."""
        return [*(f"fit-{number}.safetensors" for number in range(len(self.method.stages) - 1)), FACTORS]

    def before(self, number: int, layers: Iterable[str] | None = None) -> LayerTensors:
        """What the stages before this one came to, for all layers or some."""
        sizes = self.site.source.layers.sizes
        if number:
            return self.site.known(self.names[number - 1], layers)
        return self.method.begin(sizes if layers is None else {layer: sizes[layer] for layer in layers})

    def about(self, stages: list[dict[str, Any]]) -> dict[str, Any]:
        """What the factors say of themselves."""
        sizes = self.site.source.layers.sizes
        notes = [*self.method.notes(sizes), *scarce(stages, sizes)]
        return {"fisher": self.options.fisher if stages else None, "stages": stages, "notes": notes}

    def _unfitted(self) -> dict[str, Any]:
        return {**self.site.write(FACTORS, self.method.begin(self.site.source.layers.sizes)), "about": self.about([])}


@dataclass(frozen=True)
class StageFit:
    """One stage: prepared factors, sums of units, rounds, and what they come to."""

    fitting: Fitting
    number: int
    stage: Stage
    options: FitOptions
    name: str
    _loaded: dict[str, LayerTensors] = field(default_factory=dict)
    _ahead: dict[str, tuple[int, Sums]] = field(default_factory=dict)  # unit -> rank that made it, and its sums there

    def tasks(self) -> list[Task]:
        """Everything up to the finished stage, in order."""
        end = Task(
            self.name,
            self._finish,
            ready=lambda: self._decided() is not None,
            needless=self._superseded,
            uses=self._used,
        )
        return [*self._prepared_tasks(), *self._round_tasks(), end]

    def _prepared_tasks(self) -> Iterable[Task]:
        """Eigendecompositions, shared out where they take long, and the file of all of them."""
        whole, parts = self._file("prepared"), parts_of(self.site.source.layers.sizes) if self.stage.apart else []
        if len(parts) < 2:
            yield Task(whole, self._prepare, needless=self._over, together=True)
            return
        names = [self._file(f"prepared-part-{n}") for n in range(len(parts))]
        for name, layers in zip(names, parts, strict=True):
            yield Task(
                name,
                partial(self._prepare_part, name, layers),
                needless=lambda: self._over() or self._finished(whole),
                together=True,
            )
        yield Task(
            whole,
            partial(self._join, names),
            ready=lambda: all(self._finished(name) for name in names),
            needless=self._over,
            uses=lambda: names,
        )

    def _used(self) -> list[str]:
        before = [self.fitting.names[self.number - 1]] if self.number else []
        return [*before, self._file("prepared"), *(self._round(at) for at in range(len(self._rounds)))]

    def _round_tasks(self) -> Iterable[Task]:
        for at, each in enumerate(self._rounds):
            for n, unit in enumerate(each.units):
                yield Task(
                    self._unit(at, n),
                    partial(self._sum, at, n),
                    ready=partial(self._finished, self._file("prepared")),
                    needless=partial(self._past, at, at),
                    rows=sum(self.site.source.batch_size(b) for b in unit.batches),
                    together=True,
                )
            used = [self._unit(at, n) for n in range(len(each.units))] + ([self._round(at - 1)] if at else [])
            yield Task(
                self._round(at),
                partial(self._add, at),
                ready=partial(self._addable, at),
                needless=partial(self._past, at, at + 1),
                uses=partial(list, used),
            )

    @property
    def site(self) -> Site:
        """Where."""
        return self.fitting.site

    @cached_property
    def _rounds(self) -> list[Round]:
        sums_bytes = 4 * sum(o * o + i * i + o * i for o, i in self.site.source.layers.sizes.values())
        decides = self.options.rows == "auto" and self.fitting.probe is not None
        return rounds(self.site.source, self.options, sums_bytes=sums_bytes, judged=decides)

    # names

    def _file(self, what: str) -> str:
        return f"fit-{self.number}-{what}.safetensors"

    def _unit(self, at: int, n: int) -> str:
        return self._file(f"{at:03d}-unit-{n}")

    def _round(self, at: int) -> str:
        return self._file(f"{at:03d}-sums")

    # what is there

    def _finished(self, name: str) -> bool:
        return self.site.folder.finished(name) is not None

    def _over(self) -> bool:
        return self._finished(self.name) or self._superseded()

    def _superseded(self) -> bool:
        """A later stage is finished, so that nobody keeps this one: others may be that far between two looks."""
        return any(self._finished(later) for later in self.fitting.names[self.number + 1 :])

    def _addable(self, at: int) -> bool:
        units = all(self._finished(self._unit(at, n)) for n in range(len(self._rounds[at].units)))
        return units and (at == 0 or self._finished(self._round(at - 1)))

    def _past(self, at: int, first: int) -> bool:
        """Nobody needs it: the stage is over, or decided before round ``at``, or a round from ``first`` on is added."""
        decided = self._decided()
        later = (self._finished(self._round(n)) for n in range(first, len(self._rounds)))
        return self._over() or (decided is not None and at > decided) or any(later)

    def _decided(self) -> int | None:
        """The round after which the stage ends, once that is known."""
        for at in reversed(range(len(self._rounds))):
            entry = self.site.folder.finished(self._round(at))
            if entry is not None:
                return at if entry["enough"] else None
        return None

    # what is made

    def _prepare(self) -> dict[str, Any]:
        return self._prepare_part(self._file("prepared"))

    def _prepare_part(self, name: str, layers: tuple[str, ...] | None = None) -> dict[str, Any]:
        with eigen.spread_over(self.site.ranks):
            return self.site.write_known(name, self.stage.prepare(self.fitting.before(self.number, layers)))

    def _join(self, names: list[str]) -> dict[str, Any]:
        parts = {layer: tensors for name in names for layer, tensors in self.site.read(name).items()}
        ordered = {layer: parts[layer] for layer in self.site.source.layers.sizes if layer in parts}
        return self.site.write(self._file("prepared"), ordered)

    def _tensors(self) -> LayerTensors:
        """The prepared factors, read back so that their memory layout is the same for everybody."""
        if "prepared" not in self._loaded:
            self._loaded["prepared"] = self.site.read(self._file("prepared"))
        return self._loaded["prepared"]

    def _known_tensors(self) -> LayerTensors:
        """The same on all ranks, which call this at the same time; read before or not."""
        if "known" not in self._loaded:
            self._loaded["known"] = self._loaded["prepared"] = self.site.known(self._file("prepared"))
        return self._loaded["known"]

    def _sum(self, at: int, n: int) -> dict[str, Any]:
        """The sums of a unit. Ranks of one model make several at once and hand them over one by one."""
        name, ranks = self._unit(at, n), self.site.ranks
        if ranks is None:
            sums = self._unit_sums(self._rounds[at].units[n])
            return {**self.site.write(name, sums.tensors), **_counts(sums)}
        if name not in self._ahead:
            units = {self._unit(at, m): unit for m, unit in enumerate(self._rounds[at].units) if m >= n}
            missing = [other for other in units if not self._finished(other)][: ranks.world]
            mine = missing[ranks.rank] if ranks.rank < len(missing) else None
            made = self._unit_sums(units[mine] if mine else Unit(0, ()))
            self._ahead.update({other: (owner, made) for owner, other in enumerate(missing)})
        owner, sums = self._ahead.pop(name)
        counts = ranks.everyone(_counts(sums))[owner]
        return {**self.site.write_known(name, sums.tensors, owner=owner), **counts}

    def _unit_sums(self, unit: Unit) -> Sums:
        source = self.site.source.with_progress(self.fitting.progress)
        return unit_sums(
            replace(source, abreast=self.site.ranks is not None),
            self.stage,
            self._known_tensors(),
            unit=unit,
            options=self.options,
            splits=self.site.splits,
        )

    def _read_sums(self, name: str) -> Sums:
        entry = self.site.entry(name)
        return Sums(self.site.read(name), dict(entry["positions"]), entry["examples"])

    def _add(self, at: int) -> dict[str, Any]:
        """The sums so far, and whether they are enough."""
        halves = list(self._read_halves(at - 1)) if at else [Sums(), Sums()]
        for n, unit in enumerate(self._rounds[at].units):
            halves[unit.half] = halves[unit.half].merged(self._read_sums(self._unit(at, n)))
        trail = list(self.site.entry(self._round(at - 1))["trail"]) if at else []
        enough = at == len(self._rounds) - 1
        if self._rounds[at].judged and self.fitting.probe is not None:
            probe, damping = self.fitting.probe(), self.options.damping
            mean = judged(self.stage, self._tensors(), (halves[0], halves[1]), probe=probe, damping=damping)
            trail.append({"rows": halves[0].examples + halves[1].examples, "predicted": round(mean, 5)})
            enough = mean >= self.options.agreement
        both = {f"{half}|{layer}": t for half in (0, 1) for layer, t in halves[half].tensors.items()}
        counts = {"halves": [_counts(half) for half in halves], "trail": trail, "enough": enough}
        return {**self.site.write(self._round(at), both), **counts}

    def _read_halves(self, at: int) -> tuple[Sums, Sums]:
        """To be merged, never added to: what is equal in a file is one tensor."""
        tensors = self.site.read(self._round(at))
        halves = []
        for half, counts in enumerate(self.site.entry(self._round(at))["halves"]):
            mine = {k.partition("|")[2]: t for k, t in tensors.items() if k.startswith(f"{half}|")}
            halves.append(Sums(mine, dict(counts["positions"]), counts["examples"]))
        return halves[0], halves[1]

    def _finish(self) -> dict[str, Any]:
        at = self._decided()
        if at is None:
            raise damaged(self.site.folder.path / self._round(0), "it is gone")
        halves = self._read_halves(at)
        sums = halves[0].merged(halves[1])
        check_sums(sums, self.stage)
        trail = self.site.entry(self._round(at))["trail"]
        before = self.site.entry(self.fitting.names[self.number - 1])["about"]["stages"] if self.number else []
        stages = [*before, {**stage_record(self.stage, sums), "agreement": trail}]
        made = self.site.write(self.name, self.stage.finish(sums, self._tensors()))
        return {**made, "about": self.fitting.about(stages)}


def _counts(sums: Sums) -> dict[str, Any]:
    return {"positions": sums.positions, "examples": sums.examples}


# --- the shards ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shelving:
    """The pass that codes every row.

    Attributes:
        site: where.
        transform: whitening.
        code: how rows are kept.
        columns: row id -> its number.
        shard_bytes: a shard is closed at this size.
    """

    site: Site
    transform: Whitened
    code: Code
    columns: Mapping[str, int]
    shard_bytes: int

    @cached_property
    def batches(self) -> dict[str, range]:
        """Shard -> its batches."""
        row_bytes = self.code.bytes_per_row + KNOWN_BYTES
        parts = shard_batches(self.site.source, row_bytes, self.shard_bytes)
        return {shard_name(number): part for number, part in enumerate(parts)}

    def shards(self, progress: Progress) -> tuple[list[str], int]:
        """All shards; how many this process made."""
        source = self.site.source
        tasks = [
            Task(
                name,
                partial(self._make, name, progress),
                rows=sum(source.batch_size(n) for n in part),
                together=True,
            )
            for name, part in self.batches.items()
        ]
        return list(self.batches), self.site.complete(tasks, progress)

    def _make(self, name: str, progress: Progress) -> dict[str, Any]:
        one = Pass(
            self.site.source.with_progress(progress),
            lambda: Encode(self.code, self.columns),
            seen_as=lambda source: TransformedGradients(source, (self.transform,)),
        )
        rows = one.over(self.batches[name], self.site.splits).finished()
        if self.site.made_by_others(name) is None:
            self.site.folder.alone(lambda: write_tensors(self.site.folder.path / name, rows))
        return {}
