"""Building an index: the fit, and one more pass that keeps every row's whitened gradient in few bytes.

``asking`` answers questions from it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whence.assemble import about_of, nonfinite_rows, pictured, views_of
from whence.building import Fitting, Shelving
from whence.curvature.base import Factors, Method, Problem, get_method
from whence.curvature.fit import FitOptions
from whence.errors import OptionError, ResourceError, StoreError
from whence.gradients.ranks import Ranks
from whence.gradients.transforms import TransformedGradients, whitened
from whence.identity import model_identity, rows_identity
from whence.linalg.codes.base import Code, Layout
from whence.linalg.codes.choose import AUTO, choose
from whence.linalg.damping import Damping, parse_damping
from whence.linalg.operators import Blocks
from whence.linalg.threads import threads
from whence.loading import join_ranks
from whence.options import TraceOptions, trace_options
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.plan.meter import free_disk
from whence.scores.score import collect
from whence.scoring import blocks_of, counted
from whence.store import atomic, index_folder, index_shards, tables
from whence.store.crew import Alone, Crew, Member, clear, joined, member_of
from whence.store.index_folder import FACTORS, QUARANTINE, ROWS
from whence.store.index_journal import JOURNALS, Journal
from whence.store.provenance import peak_memory_bytes
from whence.store.run import claimed, file_record
from whence.store.shared_folder import shared
from whence.store.site import Site, site_of
from whence.store.worklist import Folder, Task
from whence.tasks.rows import Quarantined
from whence.watch import Silent, Watcher, is_first

KB = 1000
PROBES = 8
SHARD_BYTES = 32_000_000
# what an answer must share with the index; the rest of the identity is about how the index was built
OF_THE_MODEL = ("model.", "adapter.", "tokenizer.", "task.", "layers")
# options that change neither the numbers nor what they are of
TRUST = {"trust_remote_code", "allow_pickle_weights"}  # never taken from a file
INCIDENTAL = {
    "device", "top_k", "lexical", "tokens", "trust_remote_code", "allow_pickle_weights", "max_bad_rows", "query_rank",
    "candidates", "audit", "offload", "fsdp",
}  # fmt: skip
TOO_LARGE = "too_large"
NO_INDEX = ("checkpoints", "per_layer", "self_influence", "span", "generate")


@dataclass(frozen=True)
class Compression:
    """How rows are kept.

    Attributes:
        budget: KB (1,000 bytes) a row, at most.
        scheme: ``auto`` or one of ``linalg.codes.choose.SCHEMES``.
        shard_bytes: a shard is closed at this size.
    """

    budget: float = 10
    scheme: str = AUTO
    shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True)
class Wish:
    """What the passes of ``scoring`` need to know."""

    method: Method
    damping: Damping
    options: TraceOptions
    watch: Watcher
    task: None = None


def build_index(
    model: Any,
    *,
    train: Any,
    out: str | Path,
    compression: Compression | Mapping[str, Any] | None = None,
    watch: Watcher | None = None,
    options: TraceOptions | Mapping[str, Any] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Fit the curvature and keep every training row's whitened gradient, so that questions need no training rows.

    Running the same command again finishes what was interrupted and makes damaged parts again. Started by ``torchrun``,
    ``accelerate launch`` or ``srun``, or with ``shard="i/n"`` from a job array, processes share the work; the files are
    the same to the byte. With ``fsdp`` they share one model instead, which none of them could hold; the first alone
    reads and writes in the folder, and the files are still the same.

    Args:
        model: as ``whence.attribute``.
        train: training rows, likewise.
        out: folder of the index; new, empty, or begun with the same model, rows and settings.
        compression: bytes per row and scheme, such as ``{"budget": 5}``.
        watch: hears what is derived and how far the work is.
        options: a ``TraceOptions`` record or mapping; block-diagonal methods only.
        overrides: single options by name, and ``shard``.

    Returns:
        The manifest: rows, bytes per row, scheme, shards.

    Raises:
        WhenceError: as ``attribute``; StoreError when the folder is of something else (names the fields); RankError
            when another rank of the job died.
    """
    kept = Compression(**compression) if isinstance(compression, Mapping) else compression or Compression()
    shard = overrides.pop("shard", None)
    ask = _resolve(options, overrides, watch)
    member = _member(shard, ask.options)
    ranks = join_ranks(ask.options.device) if ask.options.fsdp else None
    with _held(out, member) if ranks is None else _held_by_first(out, ranks) as (place, crew):
        subject = open_subject(model, _placed(ask.options, member), ask.watch)
        trained = open_rows(subject, train, what="train")
        extra = {"threads": torch.get_num_threads(), "request": _request(ask, model, train, kept)}
        identity = _identity(ask, subject, trained, kept)
        folder = _opened(place, crew, subject, identity=identity, extra=extra)
        with threads(int(folder.plan["threads"])):  # as when it was begun: another number adds in another order
            return _Build(ask, subject, trained, site_of(folder, crew, trained.source), kept).run()


def _member(shard: str | None, options: TraceOptions) -> Member | None:
    """This process among those that share the folder. Ranks that share the model are one builder.

    Raises:
        OptionError: both, or not a shard.
    """
    if not options.fsdp:
        return member_of(shard, os.environ)
    if shard is not None:
        raise OptionError("shard with fsdp", wanted="one of the two", try_="--fsdp: the ranks share all the work")
    return None


def _opened(
    place: Path, crew: Crew, subject: Subject, *, identity: Mapping[str, Any], extra: Mapping[str, Any]
) -> Folder:
    """The folder with its plan; ranks that share a model open it through the first."""

    def opened() -> index_folder.IndexFolder:
        return index_folder.open_plan(place, identity, member=crew.name, extra=extra)

    ranks = subject.loaded.ranks
    return opened() if ranks is None else shared(opened, ranks, place, identity)


@contextmanager
def _held_by_first(out: str | Path, ranks: Ranks) -> Iterator[tuple[Path, Crew]]:
    """The folder for the first rank alone, in the name of all."""
    with ExitStack() as stack:
        ranks.agreed(lambda: str(stack.enter_context(_held(out, None))[0]))
        yield Path(out).expanduser(), Alone()


@contextmanager
def _held(out: str | Path, member: Member | None) -> Iterator[tuple[Path, Crew]]:
    """The folder for this process alone, or for it and others."""
    if member is not None:
        with joined(out, member, kind="index", after=tidy) as held:
            yield held
        return
    with claimed(out, kind="index") as place:
        clear(place)
        tidy(place)
        yield place, Alone()
        tidy(place)


def tidy(place: Path) -> None:
    """One journal of all, and of a finished index nothing that is not needed; for who holds the folder alone."""
    journal, kept = Journal(place, entries=index_folder.entries_of_manifest(place)), None
    if journal.entries:  # as told by a manifest that is whole
        body = index_folder.read_manifest(place)
        scratch = sorted(place.glob(index_folder.SCRATCH))
        if not scratch or _is_whole(place / FACTORS, body):  # else this is a new fit, in place of one that was damaged
            kept = [*body["files"], *(entry["name"] for entry in body.get("splits", ()))]
            for path in scratch:
                atomic.remove(path)
    if kept is not None or len(list(place.glob(JOURNALS))) > 1:
        journal.merged(kept)


def _is_whole(path: Path, body: Mapping[str, Any]) -> bool:
    return path.is_file() and file_record(path) == body["files"].get(path.name)


def _placed(options: TraceOptions, member: Member | None) -> TraceOptions:
    """Each rank of a machine on a GPU of its own."""
    if member is None or options.device != "auto" or not torch.cuda.is_available():
        return options
    return options.model_copy(update={"device": f"cuda:{member.local % torch.cuda.device_count()}"})


def _request(ask: Wish, model: Any, train: Any, kept: Compression) -> dict[str, Any] | None:
    """What ``whence repair`` needs to make parts again; nothing where Python objects were given."""
    told = {"model": model, "train": list(train) if isinstance(train, tuple) else train}
    if not _is_text(told):
        return None
    return {**told, "options": _plain(ask.options), "compression": asdict(kept)}


def _plain(options: TraceOptions) -> dict[str, Any]:
    """The options as they are kept: one index, whether one process made it or the ranks of a model in pieces."""
    return {**options.model_dump(exclude=TRUST), "fsdp": False}


def _is_text(value: Any) -> bool:
    """Can this be written down as it is, and read again?"""
    if isinstance(value, Mapping):
        return all(_is_text(part) for part in value.values())
    return isinstance(value, (str, Path)) or (isinstance(value, list) and all(_is_text(part) for part in value))


def _resolve(
    options: TraceOptions | Mapping[str, Any] | None, overrides: Mapping[str, Any], watch: Watcher | None
) -> Wish:
    settings = trace_options(options, **{k: v for k, v in overrides.items() if v is not None})
    default = TraceOptions()
    extra = [name for name in NO_INDEX if getattr(settings, name) != getattr(default, name)]
    if extra:
        raise OptionError(
            f"{', '.join(extra)} for an index", wanted="settings of rows and curvature", try_="whence trace"
        )
    method = get_method(settings.method)
    if settings.normalise == "none":
        settings = settings.model_copy(update={"normalise": method.normalise})
    if settings.normalise == "theta":
        raise OptionError("normalise theta for an index", wanted="none, relative or cosine", try_="whence trace")
    speaks = is_first() or not settings.fsdp
    return Wish(method, parse_damping(settings.damping), settings, (watch if speaks else None) or Silent())


def _identity(ask: Wish, subject: Subject, trained: Material, kept: Compression) -> dict[str, Any]:
    """All that the bytes of an index depend on, one field each so that a difference can be named."""
    options = ask.options.model_dump(exclude=INCIDENTAL | {"normalise"})
    return {
        **model_identity(subject),
        **rows_identity(trained),
        **{f"options.{name}": value for name, value in options.items() if name not in NO_INDEX},
        **{f"compression.{name}": value for name, value in asdict(kept).items()},
    }


@dataclass(frozen=True)
class _Build:
    """One build, everything open."""

    ask: Wish
    subject: Subject
    trained: Material
    site: Site
    kept: Compression

    @property
    def folder(self) -> Folder:
        """Where."""
        return self.site.folder

    def run(self) -> dict[str, Any]:
        """Factors, shards, rows, manifest: what is there and whole is kept."""
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        factors, places = self._factors()
        seconds["fit"], started = time.perf_counter() - started, time.perf_counter()
        code, names, made = self._shards(factors)
        seconds["index"] = time.perf_counter() - started
        tasks = [Task(name, partial(self._write_rows, name, names, code)) for name in (ROWS, QUARANTINE)]
        self.site.complete(tasks, lambda _rows: None)

        def closed() -> dict[str, Any]:
            self._history(seconds, made)
            body = self._body(factors, places, code, len(names))
            self.folder.close([FACTORS, ROWS, QUARANTINE, *names], body)
            self._say(code, len(names), made)
            self.site.crew.finish()
            return index_folder.read_manifest(self.folder.path)

        return self.folder.alone(closed)

    def _body(self, factors: Factors, places: Mapping[str, Any], code: Code, shards: int) -> dict[str, Any]:
        """The manifest: the same to the byte whoever built it, and how often it was interrupted."""
        about = about_of(self.subject, self.trained, self.trained, factors=factors, seconds={})
        about = {name: value for name, value in about.items() if name not in ("seconds", "memory")}
        model = {name: value for name, value in about["model"].items() if name != "fsdp"}
        about["model"] = model | {"device": str(model["device"]).partition(":")[0]}
        left_out = map(json.loads, (self.folder.path / QUARANTINE).read_text("utf-8").splitlines())
        lost = {entry["id"] for entry in left_out if entry["code"] == TOO_LARGE}
        # what was too large for one process may have fitted for another, who took over
        too_large = [entry for entry in self.folder.remembered("too_large") if entry["row"] in lost]
        splits = [*self.folder.remembered("split"), *too_large]
        return {
            "spec": str(self.subject.loaded.about["spec"]),
            "options": _plain(self.ask.options),
            "code": dict(code.about),
            "layout": {name: list(size) for name, size in code.layout.sizes.items()},
            "places": places,
            "shards": shards,
            "rows": len(self.trained.rows.ids),
            "n_train": len(self.trained.examples),
            "train_size": self.trained.total,
            "bytes_per_row": code.bytes_per_row + index_shards.KNOWN_BYTES,
            "fit": dict(factors.about),
            "about": about,
            "plan": dict(self.folder.plan),
            **({"splits": splits} if splits else {}),
        }

    def _history(self, seconds: Mapping[str, float], made: int) -> None:
        """Who worked, and how long: what differs from build to build."""
        peak, ranks = peak_memory_bytes(), self.site.ranks
        alone = "alone" if ranks is None else f"{ranks.world} ranks of one model"
        told = {
            "who": self.site.crew.name or alone, "host": socket.gethostname(), "shards_made": made,
            "ended": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "peak_megabytes": None if peak is None else round(peak / 1e6),
        }  # fmt: skip
        atomic.append_line(self.folder.path / index_folder.HISTORY, json.dumps(told))

    def _say(self, code: Code, shards: int, made: int) -> None:
        raw, row_bytes = 4 * code.layout.total, code.bytes_per_row + index_shards.KNOWN_BYTES
        kept = shards - made
        there = "were there" if not self.site.crew.name else "were there or made by others"
        self.ask.watch.note(
            "index",
            f"index     {len(self.trained.examples):,} rows x {row_bytes:,} bytes ({code.about['scheme']}; "
            f"{raw / row_bytes:.0f} times less than {raw:,}) in {shards} shards, {kept} of them {there}",
            rows=len(self.trained.examples), bytes_per_row=row_bytes, shards=shards, kept=kept, **code.about,
        )  # fmt: skip

    def _factors(self) -> tuple[Factors, dict[str, Any]]:
        """The fit, or what is there of it."""
        wanted = self.ask.options
        settings = FitOptions(fisher=wanted.fisher, rows=wanted.fit_rows, seed=wanted.seed, damping=self.ask.damping)
        source = self.trained.source
        total = len(self.trained.examples) * len(self.ask.method.stages)
        probe = lru_cache(maxsize=1)(lambda: collect(source.sample(PROBES)).grads)
        if self.site.ranks is not None and wanted.fit_rows == "auto" and self.folder.finished(FACTORS) is None:
            probe()  # now, while all ranks are here: the first alone judges by it
        with counted(self.ask.watch, "fit", total) as count:
            fitting = Fitting(self.site, self.ask.method, settings, probe if wanted.fit_rows == "auto" else None, count)
            factors, places = fitting.factors()
        for stage in factors.about["stages"]:
            look = f", split-half agreement {stage['agreement'][-1]['predicted']:.3f}" if stage["agreement"] else ""
            said = f"fit       {stage['name']}: {stage['rows']:,} of {len(self.trained.examples):,} rows{look}"
            self.ask.watch.note("fit", said, **stage, of=len(self.trained.examples))
        for note in factors.about["notes"]:
            self.ask.watch.note("factors", f"note      {note}")
        return factors, places

    def _require_room(self, needed: int) -> None:
        """Before the pass over the rows: is there room for what it will write?

        Raises:
            ResourceError: there is not; says how much is needed.
        """
        there = sum(p.stat().st_size for p in self.folder.path.glob("shard-*.safetensors"))
        place, free = free_disk(self.folder.path)
        self.ask.watch.note(
            "room", f"room      {needed / 1e6:,.1f} MB of rows, {free / 1e9:,.1f} GB free at {place}",
            bytes=needed, free_bytes=free,
        )  # fmt: skip
        if needed - there > free:
            raise ResourceError(
                f"the rows of this index take {needed:,} bytes, and {free:,} are free at {place}",
                wanted="room for all of them before the pass over the rows begins",
                try_=f"--budget {self.kept.budget * free / needed:.2g}, or another folder with -o",
            )

    def _shards(self, factors: Factors) -> tuple[Code, list[str], int]:
        """All shards; how many this process made."""
        source = self.trained.source
        inverse = damped_inverse(self.ask, factors, Problem(source, self.ask.options.fisher, self.ask.options.seed))
        transform = whitened(inverse, self.subject.layers.sizes)
        layout = Layout(TransformedGradients(source, (transform,)).layers.sizes)
        code = choose(layout, int(self.kept.budget * KB), self.kept.scheme)
        needed = len(self.trained.examples) * (code.bytes_per_row + index_shards.KNOWN_BYTES)
        self.folder.alone(lambda: self._require_room(needed))
        columns = {id_: n for n, id_ in enumerate(self.trained.rows.ids)}
        shelving = Shelving(self.site, transform, code, columns, self.kept.shard_bytes)
        with counted(self.ask.watch, "index", len(self.trained.examples)) as count:
            names, made = shelving.shards(count)
        return code, names, made

    def _write_rows(self, name: str, shards: list[str], code: Code) -> dict[str, Any]:
        """The table of all rows, or the list of those left out, with what turned out not to be usable."""
        ids, losses = self.trained.rows.ids, {}
        for shard in shards:
            for block in index_shards.blocks(self.folder.path / shard, code):
                values = np.where(np.isfinite(block["norm"].numpy()), block["loss"].numpy(), np.nan)
                losses |= {ids[int(n)]: float(loss) for n, loss in zip(block["row"], values, strict=True)}
        bad = nonfinite_rows(self.trained, {"losses": losses, "columns": (), "values": ()})
        rows = self.trained.by_id()
        lost = [example.id for example in self.trained.examples if example.id not in losses]
        bad += [Quarantined(rows[id_].location, TOO_LARGE, "it does not fit in memory", id_) for id_ in lost]
        quarantine = (*self.trained.quarantine, *bad)
        if name == ROWS:
            views = pictured(views_of(self.trained, quarantine), self.trained)
            tables.write_rows(self.folder.path / ROWS, views)
        else:
            atomic.write_jsonl(self.folder.path / QUARANTINE, [asdict(entry) for entry in quarantine])
        return {}


def damped_inverse(ask: Wish, factors: Factors, problem: Problem) -> Blocks:
    """The inverse, layer by layer.

    Raises:
        OptionError: a method whose curvature runs over all layers together.
        StoreError: factors of another method.
    """
    try:
        return blocks_of(ask.method.operator(factors, problem).power(-1, ask.damping), ask.method)
    except KeyError as error:
        raise StoreError(
            f"factors without {error}", wanted=f"those of {ask.method.name}", try_="build the index again"
        ) from error
