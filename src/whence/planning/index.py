"""The building of an index in small."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from whence.assemble import views_of
from whence.curvature.base import Factors, Problem
from whence.gradients.transforms import TransformedGradients, Whitened, whitened
from whence.indexing import KB, PROBES, Compression, damped_inverse
from whence.linalg.codes.base import Layout
from whence.linalg.codes.choose import choose
from whence.plan.glimpse import Glimpse
from whence.plan.laws import all_batches, total
from whence.planning.rehearsal import Rehearsal, cost_of, cut
from whence.scores.score import collect
from whence.store import atomic, index_folder, index_shards, tables

SHARDS = "shards"  # all of them together


def rehearse_index(small: Rehearsal, kept: Compression) -> None:
    """Every step of building an index, done on a few batches and foreseen for all."""
    probe = None
    if small.wish.options.fit_rows == "auto":
        with small.meter.reading() as found:
            probe = collect(small.trained.source.sample(PROBES))
        small.step("probe", found)
    factors = small.fit(probe)
    with tempfile.TemporaryDirectory() as place:
        transform = _factors(small, factors, Path(place))
        _shards(small, transform, kept, Path(place))
        _rows(small, Path(place))


def _factors(small: Rehearsal, factors: Factors, place: Path) -> Whitened:
    """The curvature on disk, and its inverse."""
    path = place / index_folder.FACTORS
    with small.meter.reading() as found:
        index_shards.write_factors(path, factors.tensors)
        index_folder.file_record(path)
        problem = Problem(small.trained.source, small.wish.options.fisher, small.wish.options.seed)
        transform = whitened(damped_inverse(small.wish, factors, problem), small.subject.layers.sizes)
    small.files[index_folder.FACTORS] = path.stat().st_size
    small.step("factors", found)
    return transform


def _shards(small: Rehearsal, transform: Whitened, kept: Compression, place: Path) -> None:
    """The pass over the rows, and what it leaves on disk."""
    source = Glimpse(TransformedGradients(small.trained.source, (transform,)), 0, small.meter, chosen=small.batches())
    layout = Layout(source.layers.sizes)
    code = choose(layout, int(kept.budget * KB), kept.scheme)
    small.row_bytes = lambda budget: choose(layout, budget, kept.scheme).bytes_per_row + index_shards.KNOWN_BYTES
    visitor = index_shards.Encode(code, {id_: n for n, id_ in enumerate(small.trained.rows.ids)})
    path = place / index_folder.shard_name(0)
    with small.meter.reading() as found:
        source.visit(visitor)
    with small.meter.timing() as written:
        index_shards.write_tensors(path, visitor.finished())
        index_folder.file_record(path)
        list(index_shards.blocks(path, code))
    timed, everyone = source.taken(), len(small.trained.examples)
    seen = sum(small.sizes[batch.number][0] for batch in timed)
    row = code.bytes_per_row + index_shards.KNOWN_BYTES
    shards = [
        sum(small.sizes[n][0] for n in part) for part in index_shards.shard_batches(source, row, kept.shard_bytes)
    ]
    header = path.stat().st_size - seen * row
    small.files[SHARDS] = everyone * row + header * len(shards)
    cost = total(all_batches(timed, small.sizes)) + cost_of(written).times(everyone / seen)
    more = max(0, 2 * max(shards) - seen) * row  # rows of a shard, and once more while they are put together
    small.step("index", found, cost, rows=everyone, more=more)


def _rows(small: Rehearsal, place: Path) -> None:
    """The table of all rows."""
    rows, scale = cut(small.trained)
    with small.meter.reading() as found:
        tables.write_rows(place / index_folder.ROWS, views_of(rows, rows.quarantine))
        atomic.write_jsonl(place / index_folder.QUARANTINE, [asdict(q) for q in small.trained.quarantine])
    small.files[index_folder.ROWS] = round((place / index_folder.ROWS).stat().st_size * scale)
    small.files[index_folder.QUARANTINE] = (place / index_folder.QUARANTINE).stat().st_size
    small.step("rows", found, cost_of(found).times(scale))
