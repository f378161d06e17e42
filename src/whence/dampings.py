"""Choosing a damping for a model and its rows: one fit, one pass of gradients, then every value of the sweep.

What comes out is a plain ``DampingStudy``; written as JSON it can be given to ``trace`` as its damping.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.curvature.implied import implied_damping
from whence.errors import DataError, OptionError, ResourceError, WhenceError
from whence.evaluate import bank
from whence.evaluate.damping import DAMPINGS, DampingStudy, Evidence, Sweep, parse_dampings, study, sweep
from whence.evaluate.pbrf import PbrfSettings, pbrf
from whence.evaluate.references import dense_reference, lds_reference, pbrf_reference
from whence.linalg.damping import Damping, parse_damping
from whence.linalg.matrix_batch import Full, MatrixBatch
from whence.options import SweepOptions, TraceOptions
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.report.damping import STUDY_FORMAT, render_damping
from whence.scores.score import Queries, collect
from whence.scoring import counted
from whence.stages import Ask
from whence.store import atomic
from whence.watch import Silent, Watcher

MOST_NUMBERS = 1 << 28  # gradient entries kept at once: 1 GB in float32
IMPLIED = "implied:"  # followed by the model that training started from
ROUGH = PbrfSettings(steps=4, tolerance=1e-3)  # enough for a rank correlation
MOST_BYTES = 64 << 20  # of a study file


def choose_damping(
    model: Any,
    *,
    train: Any,
    query: Any,
    options: TraceOptions | None = None,
    tried: SweepOptions | None = None,
    watch: Watcher | None = None,
) -> DampingStudy:
    """How much the scores depend on the damping, and which value the evidence is for.

    Args:
        model: as ``whence.attribute``.
        train: its training rows.
        query: the questions.
        options: method, layers, rows to fit on; the method's own damping plays no part.
        tried: the sweep.
        watch: hears what is derived and how far the work is.

    Raises:
        OptionError: a method without damping, or values that cannot be swept.
        WhenceError: as ``whence.attribute``.
    """
    options, tried, watch = options or TraceOptions(), tried or SweepOptions(), watch or Silent()
    dampings = parse_dampings(tried.values) if tried.values else DAMPINGS
    method = get_method(options.method)
    if method.name == "identity":
        raise OptionError("damping of the method identity", wanted="a method with a curvature", try_="--method ekfac")
    subject = open_subject(model, options, watch)
    trained, asked = open_rows(subject, train, what="train"), open_rows(subject, query, what="query")
    queries = collect(asked.source.sample(tried.questions))
    rows = _kept_rows(trained, queries, tried, watch)
    settings = FitOptions(options.fisher, options.fit_rows, options.seed, damping=_middle(dampings))
    factors = fit(trained.source, method, settings, probe=queries.grads)
    operator = method.operator(factors, Problem(trained.source, options.fisher, options.seed))
    swept = sweep(operator, dampings, queries=(queries.ids, queries.grads), rows=(rows.ids, rows.grads))
    watch.note("sweep", f"sweep     {len(dampings)} dampings of one fit on {len(rows.ids)} rows")
    evidence = _evidence(swept, (trained, asked), queries=queries, rows=rows, tried=tried, watch=watch)
    about = {"method": options.method, "fisher": options.fisher, "fit": dict(factors.about), "model": str(model)[:200]}
    return study(swept, evidence, about)


def settled(ask: Ask, subject: Subject, trained: Material) -> Damping:
    """The damping that was asked for; ``implied:MODEL`` is measured now, with one pass over the rows.

    Raises:
        ModelError: a starting model that cannot be loaded, of another shape, or the very same weights.
    """
    place = ask.options.damping.removeprefix(IMPLIED)
    if ask.damping.layers or place == ask.options.damping:
        if place == ask.method.damping:
            said = f"{place}, for want of evidence; implied:MODEL measures it from the model that training started from"
            ask.watch.note("damping", f"damping   {said}")
        return ask.damping
    start = open_subject(place, ask.options, Silent(), task=subject.task)
    with counted(ask.watch, "damping", len(trained.examples)) as count:
        found = implied_damping(trained.source.with_progress(count), start.loaded.model)
    amounts = [amount for _, amount in found.layers]
    said = f"{found.value:.3g}, by layer {min(amounts):.3g} to {max(amounts):.3g}"
    ask.watch.note("damping", f"damping   implied by the training from {place}: {said}", layers=dict(found.layers))
    return found


def _kept_rows(trained: Material, queries: Queries, tried: SweepOptions, watch: Watcher) -> Queries:
    """Gradients of the sample, taken once; with a bank, of all rows.

    Raises:
        ResourceError: a bank needs every row's gradient, and they do not fit.
    """
    size = sum(outputs * inputs for outputs, inputs in trained.source.layers.sizes.values())
    fitting = max(3, MOST_NUMBERS // max(1, size))
    if tried.bank is not None and len(trained.examples) > fitting:
        raise ResourceError(
            f"gradients of {len(trained.examples):,} rows x {size:,} parameters",
            wanted=f"at most {fitting:,} rows when scoring against retrained models",
            try_="fewer --layers",
        )
    count = len(trained.examples) if tried.bank is not None else min(tried.sample, fitting)
    if count < min(tried.sample, len(trained.examples)):
        watch.note("sample", f"sample    {count} rows: more gradients of {size:,} numbers would not fit in memory")
    sampled = trained.source.sample(count)
    found = collect(sampled, "true")
    good = np.isfinite(found.measurements)
    if good.all():
        return found
    keep = torch.from_numpy(np.flatnonzero(good))
    grads: dict[str, MatrixBatch] = {n: Full(g.full()[keep.to(g.device)]) for n, g in found.grads.items()}
    return Queries(tuple(np.array(found.ids)[good].tolist()), grads, found.measurements[good])


def _evidence(
    swept: Sweep,
    sides: tuple[Material, Material],
    *,
    queries: Queries,
    rows: Queries,
    tried: SweepOptions,
    watch: Watcher,
) -> list[Evidence]:
    """Every truth at hand; a reference that cannot be had is said, not fatal."""
    found: list[Evidence] = []
    trained = sides[0]
    if tried.bank is not None:
        found.append(lds_reference(swept, *read_bank(tried.bank, swept)))
    if tried.reference == "none":
        return found
    damping = parse_damping(tried.reference_damping)
    if tried.reference == "pbrf":
        found.append(_retrained(swept, sides, count=tried.retrained, damping=damping, watch=watch))
    try:
        dense = dense_reference(swept, trained.source, queries=queries.grads, rows=rows.grads, damping=damping)
    except WhenceError as error:
        watch.note("reference", f"reference none: {error.got}")
        return found
    if dense is None:
        watch.note("reference", "reference none: every layer is too large for an exact matrix")
        return found
    return [*found, dense]


def _retrained(
    swept: Sweep, sides: tuple[Material, Material], *, count: int, damping: Damping, watch: Watcher
) -> Evidence:
    """Proximal Bregman responses of some rows of the sample, spread evenly over it."""
    trained, asked = sides
    chosen = swept.train_ids[:: max(1, len(swept.train_ids) // count)][:count]
    with counted(watch, "pbrf", len(chosen)) as step:
        found = pbrf(
            trained.source,
            asked.source.only(swept.query_ids),
            chosen,
            damping=damping,
            settings=ROUGH,
            progress=step,
        )
    if not found.converged:
        watch.note("pbrf", "pbrf      some proximal retrainings did not converge; the evidence is rougher for it")
    order = [found.query_ids.index(id_) for id_ in swept.query_ids]
    return pbrf_reference(swept, found.over(swept.train_ids)[order])


def read_bank(path: str, swept: Sweep) -> tuple[np.ndarray, np.ndarray]:
    """(kept M x N, losses M x Q) in the order of the sweep, from a bank's folder or an .npz.

    The rows and queries are found by their ids: those of the bank, or ``train_ids`` and ``query_ids`` in the file.

    Raises:
        DataError: no such file, one without these arrays, or without some row or query of the sweep.
        StoreError: a folder that is no bank, or a damaged one.
    """
    if Path(path).expanduser().is_dir():
        train_ids, query_ids, kept, losses = bank.read_bank(path)
        columns = _places(train_ids, swept.train_ids, f"bank {path}")
        return kept[:, columns], losses[:, _places(query_ids, swept.query_ids, f"bank {path}")]
    try:
        with np.load(path, allow_pickle=False) as file:
            kept, losses = file["kept"].astype(bool), file["losses"].astype(np.float64)
            columns = _order(file, "train_ids", swept.train_ids)
            questions = _order(file, "query_ids", swept.query_ids)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"bank {path}: {error}", wanted="an .npz with kept (M x rows) and losses (M x questions)"
        ) from error
    return kept[:, columns], losses[:, questions]


def _order(file: Any, name: str, wanted: tuple[str, ...]) -> Any:
    if name not in file:
        return slice(None)
    return _places([str(id_) for id_ in file[name]], wanted, name)


def _places(known: Sequence[str], wanted: Sequence[str], what: str) -> list[int]:
    position = {id_: n for n, id_ in enumerate(known)}
    missing = [id_ for id_ in wanted if id_ not in position]
    if missing:
        raise DataError(f"{what} knows no {missing[0]!r}", wanted="the rows and queries that models were retrained on")
    return [position[id_] for id_ in wanted]


def _middle(dampings: tuple[Damping, ...]) -> Damping:
    return dampings[len(dampings) // 2]


def write_study(found: DampingStudy, path: str | Path) -> Path:
    """As JSON, or as a page with the curves when the name ends in .html.

    Raises:
        StoreError: the place cannot be written to.
    """
    path = Path(path).expanduser()
    data = atomic.plain(found.to_dict())
    page = path.suffix.lower() in (".html", ".htm")
    atomic.write_text(path, render_damping(data) if page else json.dumps(data, indent=1, allow_nan=False))
    return path


def read_study(path: str | Path) -> dict[str, Any]:
    """A study written as JSON.

    Raises:
        OptionError: not such a file.
    """
    place = Path(path).expanduser()
    try:
        if place.stat().st_size > MOST_BYTES:
            raise ValueError("too large")
        found = json.loads(place.read_text("utf-8"))
        if not isinstance(found, Mapping) or found.get("format") != STUDY_FORMAT:
            raise ValueError("another kind of file")
        parse_damping(found["recommended"]["damping"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"damping {path}: {error}", wanted="a file of `whence damping -o`, or kind:number", try_="relative:0.1"
        ) from error
    return dict(found)
