"""Building an index: the fit, and one more pass that keeps every row's whitened gradient in few bytes.

``asking`` answers questions from it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whence.assemble import about_of, nonfinite_rows, views_of
from whence.curvature.base import Factors, Method, Problem, get_method
from whence.errors import OptionError
from whence.gradients.transforms import TransformedGradients, whitened
from whence.linalg.codes.base import Code, Layout
from whence.linalg.codes.choose import AUTO, choose
from whence.linalg.damping import Damping, parse_damping
from whence.linalg.operators import Blocks
from whence.options import TraceOptions, trace_options
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.results import RowView
from whence.scores.score import collect
from whence.scoring import blocks_of, counted, fitted
from whence.store import atomic, index_folder, index_shards, tables
from whence.store.index_folder import FACTORS, QUARANTINE, ROWS, IndexFolder, shard_name
from whence.store.run import claimed
from whence.watch import Silent, Watcher

KB = 1000
PROBES = 8
SHARD_BYTES = 32_000_000
# what an answer must share with the index; the rest of the identity is about how the index was built
OF_THE_MODEL = ("model.", "adapter.", "tokenizer.", "task.", "layers")
# options that change neither the numbers nor what they are of
INCIDENTAL = {"device", "top_k", "lexical", "tokens", "trust_remote_code", "allow_pickle_weights", "max_bad_rows"}
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

    Running the same command again finishes what was interrupted and makes damaged parts again.

    Args:
        model: as ``whence.attribute``.
        train: training rows, likewise.
        out: folder of the index; new, empty, or begun with the same model, rows and settings.
        compression: bytes per row and scheme, such as ``{"budget": 5}``.
        watch: hears what is derived and how far the work is.
        options: a ``TraceOptions`` record or mapping; block-diagonal methods only.
        overrides: single options by name.

    Returns:
        The manifest: rows, bytes per row, scheme, shards.

    Raises:
        WhenceError: as ``attribute``; StoreError when the folder is of something else (names the fields).
    """
    kept = Compression(**compression) if isinstance(compression, Mapping) else compression or Compression()
    ask = _resolve(options, overrides, watch)
    with claimed(out, kind="index") as place:
        subject = open_subject(model, ask.options, ask.watch)
        trained = open_rows(subject, train, what="train")
        folder = index_folder.open_plan(place, _identity(ask, subject, trained, kept))
        return _Build(ask, subject, trained, folder, kept).run()


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
    return Wish(method, parse_damping(settings.damping), settings, watch or Silent())


def _identity(ask: Wish, subject: Subject, trained: Material, kept: Compression) -> dict[str, Any]:
    """All that the bytes of an index depend on, one field each so that a difference can be named."""
    options = ask.options.model_dump(exclude=INCIDENTAL | {"normalise"})
    return {
        **model_identity(subject),
        "data": trained.rows.fingerprint,
        "data.used": len(trained.examples),
        "data.batch_plan": trained.source.plan.digest,
        **{f"options.{name}": value for name, value in options.items() if name not in NO_INDEX},
        **{f"compression.{name}": value for name, value in asdict(kept).items()},
    }


def model_identity(subject: Subject) -> dict[str, Any]:
    """The model, its tokenizer and the task: what a question must have in common with the index."""
    about = subject.loaded.about
    found: dict[str, Any] = {"layers": {name: list(size) for name, size in subject.layers.sizes.items()}}
    for part in ("model", "adapter"):
        record = about.get(part) or {}
        files = {name: entry["checksum"] for name, entry in (record.get("files") or {}).items()}
        found |= {f"{part}.{name}": checksum for name, checksum in files.items() if not name.startswith("tokenizer")}
    model = about["model"]
    found |= {f"model.{name}": model.get(name) for name in ("class", "parameters", "dtype", "attention", "digest")}
    if not model.get("files"):
        found |= {"model.commit": model.get("commit"), "model.id": model.get("id")}
    tokenizer = about.get("tokenizer") or {}
    found |= {f"tokenizer.{name}": tokenizer.get(name) for name in ("class", "checksum", "template_checksum")}
    return found | {f"task.{name}": value for name, value in subject.task.fingerprint().items()}


@dataclass(frozen=True)
class _Build:
    """One build, everything open."""

    ask: Wish
    subject: Subject
    trained: Material
    folder: IndexFolder
    kept: Compression

    def run(self) -> dict[str, Any]:
        """Factors, shards, rows, manifest: what is there and whole is kept."""
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        factors, places = self._factors()
        seconds["fit"], started = time.perf_counter() - started, time.perf_counter()
        code, names, kept = self._shards(factors)
        seconds["index"] = time.perf_counter() - started
        views = self._rows(names, code)
        row_bytes = code.bytes_per_row + index_shards.KNOWN_BYTES
        body = {
            "spec": str(self.subject.loaded.about["spec"]),
            "options": self.ask.options.model_dump(),
            "code": dict(code.about),
            "layout": {name: list(size) for name, size in code.layout.sizes.items()},
            "places": places,
            "shards": len(names),
            "rows": len(views),
            "n_train": len(self.trained.examples),
            "bytes_per_row": row_bytes,
            "fit": dict(factors.about),
            "about": about_of(self.subject, self.trained, self.trained, factors=factors, seconds=seconds),
        }
        self.folder.close([FACTORS, ROWS, QUARANTINE, *names], body)
        self._say(code, row_bytes, len(names), kept)
        return index_folder.read_manifest(self.folder.path)

    def _say(self, code: Code, row_bytes: int, shards: int, kept: int) -> None:
        raw = 4 * code.layout.total
        self.ask.watch.note(
            "index",
            f"index     {len(self.trained.examples):,} rows x {row_bytes:,} bytes ({code.about['scheme']}; "
            f"{raw / row_bytes:.0f} times less than {raw:,}) in {shards} shards, {kept} of them were there",
            rows=len(self.trained.examples), bytes_per_row=row_bytes, shards=shards, kept=kept, **code.about,
        )  # fmt: skip

    def _factors(self) -> tuple[Factors, dict[str, Any]]:
        """The fit, or what an interrupted run left of it."""
        path, entry = self.folder.path / FACTORS, self.folder.finished(FACTORS)
        if entry is not None:
            return Factors(index_shards.read_factors(path, entry["places"]), entry["about"]), entry["places"]
        probe = collect(self.trained.source.sample(PROBES)) if self.ask.options.fit_rows == "auto" else None
        factors, _ = fitted(self.ask, self.trained, probe)
        places = index_shards.write_factors(path, factors.tensors)
        self.folder.enter(FACTORS, places=places, about=dict(factors.about))
        stored = self.folder.finished(FACTORS)  # as a resumed run will read it: the same record in both
        assert stored is not None
        return Factors(index_shards.read_factors(path, places), stored["about"]), places

    def _shards(self, factors: Factors) -> tuple[Code, list[str], int]:
        """All shards; those in the journal and undamaged are kept."""
        problem = Problem(self.trained.source, self.ask.options.fisher, self.ask.options.seed)
        inverse = damped_inverse(self.ask, factors, problem)
        transform = whitened(inverse, self.subject.layers.sizes)
        with counted(self.ask.watch, "index", len(self.trained.examples)) as count:
            source = TransformedGradients(self.trained.source.with_progress(count), (transform,))
            code = choose(Layout(source.layers.sizes), int(self.kept.budget * KB), self.kept.scheme)
            row_bytes = code.bytes_per_row + index_shards.KNOWN_BYTES
            columns = {id_: n for n, id_ in enumerate(self.trained.rows.ids)}
            names, kept = [], 0
            for number, batches in enumerate(index_shards.shard_batches(source, row_bytes, self.kept.shard_bytes)):
                name = shard_name(number)
                names.append(name)
                if self.folder.finished(name) is not None:
                    kept += 1
                    count(sum(source.batch_size(n) for n in batches))
                    continue
                visitor = index_shards.Encode(code, columns)
                source.visit(visitor, batches=batches)
                index_shards.write_tensors(self.folder.path / name, visitor.finished())
                self.folder.enter(name, number=number, batches=[batches.start, batches.stop])
        return code, names, kept

    def _rows(self, names: list[str], code: Code) -> dict[str, RowView]:
        """The table of all rows, with what turned out not to be finite."""
        ids, losses = self.trained.rows.ids, {}
        for name in names:
            for block in index_shards.blocks(self.folder.path / name, code):
                values = np.where(np.isfinite(block["norm"].numpy()), block["loss"].numpy(), np.nan)
                losses |= {ids[int(n)]: float(loss) for n, loss in zip(block["row"], values, strict=True)}
        bad = nonfinite_rows(self.trained, {"losses": losses, "columns": (), "values": ()})
        quarantine = (*self.trained.quarantine, *bad)
        views = views_of(self.trained, quarantine)
        tables.write_rows(self.folder.path / ROWS, views)
        atomic.write_jsonl(self.folder.path / QUARANTINE, [asdict(entry) for entry in quarantine])
        return views


def damped_inverse(ask: Wish, factors: Factors, problem: Problem) -> Blocks:
    """The inverse, layer by layer.

    Raises:
        OptionError: a method whose curvature runs over all layers together.
    """
    return blocks_of(ask.method.operator(factors, problem).power(-1, ask.damping), ask.method)
