"""Scores from their parts: values by id, the texts behind the ids, word overlap, and where it all came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from whence.candidates.lexical import bm25_scores
from whence.curvature.base import Factors
from whence.linalg.compressed import Compressed
from whence.linalg.damping import Damping
from whence.linalg.operators import Blocks, Dense, Diagonal, Eigenbasis, Kronecker, LayerOperator, Operator
from whence.linalg.partition import SplitEigenbasis, SplitKronecker
from whence.pipeline import Material, Subject
from whence.results import SCORED, RowView, Scores
from whence.store.provenance import environment, peak_memory_bytes
from whence.tasks.images import thumbnail
from whence.tasks.rows import Quarantined, changed_files, row_view

LEXICAL_MOST = 200_000_000  # Q x N beyond which word overlap is left out: it would outweigh the scores themselves
NONFINITE = "nonfinite"
NO_CANDIDATE = "not a candidate"
PICTURED = 50  # rows at either end of a ranking whose picture is kept
CLOSER = ("token_tracks", "query_tracks", "token_pairs", "heads")  # what `tokenwise` adds to the result


def assemble(
    subject: Subject,
    trained: Material,
    asked: Material,
    *,
    found: Mapping[str, Any],
    factors: Factors,
    seconds: Mapping[str, float],
) -> Scores:
    """One result record.

    Args:
        subject: model, task and options.
        trained: training rows; N in the result are all rows read, those without a score as NaN.
        asked: the questions.
        found: ``values``, ``columns``, ``per_layer``, ``self_influence``, ``losses``, ``layers``.
        factors: the fit, for its record.
        seconds: how long each part took.
    """
    quarantine = (*trained.quarantine, *nonfinite_rows(trained, found))
    views = left_unscored(views_of(trained, quarantine), found.get("unscored", frozenset()))
    query_views = found.get("query_rows") or pictured(views_of(asked, ()), asked)
    columns = found.get("columns")
    views = pictured(views, trained, lambda: _strongest(found["values"], columns, trained.rows.ids))
    return Scores(
        values=found["values"],
        query_ids=tuple(query_views) if found.get("query_rows") else tuple(asked.source.ids),
        train_ids=tuple(trained.rows.ids),
        n_train=trained.total,
        columns=columns,
        about=_with(about_of(subject, trained, asked, factors=factors, seconds=seconds), _more(trained, found))
        | {"quarantine": [asdict(q) for q in quarantine]},
        per_layer=found.get("per_layer"),
        layer_names=tuple(found["layers"]) if found.get("per_layer") is not None else (),
        self_influence=found.get("self_influence"),
        train_rows=views,
        query_rows=query_views,
        lexical=lexical_of(subject, query_views, views, columns),
        **{name: found[name] for name in CLOSER if name in found},
    )


def _more(trained: Material, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the scoring adds, and the record of the training."""
    more = dict(found.get("about", {}))
    if trained.recorded is None:
        return more
    return {
        **more,
        "training": trained.recorded.about(),
        "warnings": [*more.get("warnings", ()), *trained.recorded.warnings],
    }


def left_unscored(views: Mapping[str, RowView], unscored: Set[str]) -> dict[str, RowView]:
    """Rows that a funnel or a cache did not let through say so."""
    return {id_: replace(view, status=NO_CANDIDATE) if id_ in unscored else view for id_, view in views.items()}


def _with(about: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """More to say; its warnings come after the others, and what is empty is left out."""
    warnings = [*about["warnings"], *more.get("warnings", ())]
    return {**about, **{name: value for name, value in more.items() if value}, "warnings": warnings}


def manifest(
    subject: Subject,
    trained: Material,
    asked: Material,
    *,
    factors: Factors,
    operator: Operator,
    damping: Damping,
) -> dict[str, Any]:
    """What ``run.json`` holds beyond the result's own ``about``: the long and the machine-made."""
    device = subject.loaded.about["model"]["device"]
    names = [torch.cuda.get_device_name(device)] if str(device).startswith("cuda") else []
    return {
        "options": subject.options.model_dump(),
        "environment": environment(threads=torch.get_num_threads(), devices=names),
        "model": dict(subject.loaded.about),
        "task": subject.task.fingerprint(),
        "layers": {name: list(size) for name, size in subject.layers.sizes.items()},
        "uncovered": dict(subject.layers.uncovered),
        "train": {**trained.about(), "read": dict(trained.rows.about)},
        "query": {**asked.about(), "read": dict(asked.rows.about)},
        "fit": dict(factors.about),
        "damping_per_layer": damping_amounts(operator, damping),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def damping_amounts(operator: Operator, damping: Damping) -> dict[str, float]:
    """What was added to the curvature of each layer, on average: the number behind a relative damping."""
    if not isinstance(operator, Blocks):
        return {}
    spectra = {name: _spectrum(layer) for name, layer in operator.layers.items()}
    return {name: damping.of(name).amount(values) for name, values in spectra.items() if values is not None}


def _spectrum(layer: LayerOperator) -> torch.Tensor | None:
    """Something with the mean of the layer's eigenvalues (of a Kronecker product: outer product of the diagonals)."""
    if isinstance(layer, (Eigenbasis, SplitEigenbasis)):
        return layer.eigenvalues_OI
    if isinstance(layer, Diagonal):
        return layer.diagonal_OI
    if isinstance(layer, Compressed):
        return layer.inner.matrix.diagonal() if isinstance(layer.inner, Dense) else None
    if isinstance(layer, Kronecker):
        return torch.outer(layer.left_OO.diagonal(), layer.right_II.diagonal())
    if isinstance(layer, SplitKronecker):
        return torch.outer(layer.left.diagonal(), layer.right.diagonal())
    return None


def about_of(
    subject: Subject, trained: Material, asked: Material, *, factors: Factors, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """What a result says of itself."""
    options, loaded = subject.options, subject.loaded
    tokenizer = loaded.about.get("tokenizer") or {}
    peak = peak_memory_bytes()
    return {
        "method": options.method,
        "damping": options.damping,
        "normalise": options.normalise,
        "fisher": factors.about.get("fisher"),
        "fit": [
            {k: stage[k] for k in ("name", "rows", "seconds") if k in stage}
            for stage in factors.about.get("stages", ())
        ],
        "seed": options.seed,
        "question": _question(subject),
        "layers": list(subject.layers.names),
        "coverage": {"share": subject.layers.covered, "layers": len(subject.layers)},
        "model": {"name": loaded.about["spec"], **_short(loaded.about["model"])},
        "adapter": (loaded.about.get("adapter") or {}).get("path"),
        "tokenizer": {k: tokenizer.get(k) for k in ("class", "checksum", "template_checksum")},
        "train": trained.about(),
        "query": asked.about(),
        "rows": _status_counts(trained),
        "versions": environment(threads=torch.get_num_threads())["versions"],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "memory": {"peak_megabytes": None if peak is None else round(peak / 1e6)},
        "warnings": [*_warnings(subject, trained), *factors.about.get("notes", ()), *_changes(trained, asked)],
    }


def _question(subject: Subject) -> dict[str, Any]:
    """What was asked beyond the loss of each whole answer; empty for the plain question."""
    options = subject.options
    said = {"span": options.span, "generate": options.generate or None}
    said["combine"] = None if options.combine == "each" else options.combine
    said["measurement"] = subject.task.fingerprint().get("measurement")
    return {name: value for name, value in said.items() if value is not None}


def _short(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's identity without its list of files: their checksums in one."""
    files = model.get("files") or {}
    weights = {name: entry["checksum"] for name, entry in files.items() if name.endswith((".safetensors", ".bin"))}
    return {k: v for k, v in model.items() if k not in ("files", "id")} | ({"weights": weights} if weights else {})


def _status_counts(trained: Material) -> dict[str, int]:
    truncated = sum(example.truncated > 0 for example in trained.examples)
    return {
        "read": len(trained.rows.ids),
        "scored": len(trained.examples),
        "truncated": truncated,
        "quarantined": len(trained.quarantine),
    }


def _warnings(subject: Subject, trained: Material) -> list[str]:
    said = list(subject.layers.notes)
    doubled = sum("double_bos" in example.notes for example in trained.examples)
    if doubled:
        said.append(f"{doubled:,} rows began with two start tokens; one was left out")
    if subject.layers.covered < 0.5:
        said.append(
            f"only {subject.layers.covered:.0%} of the parameters are followed: most of the model is out of sight"
        )
    return said


def _changes(trained: Material, asked: Material) -> list[str]:
    """The results are about the rows as read; the places named beside them may no longer hold these."""
    files = [*changed_files(trained.rows), *changed_files(asked.rows)]
    return [
        f"{place} changed while the run was using it: lines and texts are those it had at the start" for place in files
    ]


def nonfinite_rows(trained: Material, found: Mapping[str, Any]) -> list[Quarantined]:
    """Rows whose loss or gradient was not finite: found while scoring, and left out there."""
    losses = found["losses"]
    bad = {id_ for id_, loss in losses.items() if not np.isfinite(loss)}
    if found.get("columns") is None and len(found["values"]):
        column = {id_: n for n, id_ in enumerate(trained.rows.ids)}
        bad |= {id_ for id_ in losses if not np.isfinite(found["values"][:, column[id_]]).any()}
    rows = trained.by_id()
    message = "its loss or gradient is not finite"
    return [Quarantined(rows[id_].location, NONFINITE, message, id_) for id_ in losses if id_ in bad]


def views_of(material: Material, quarantine: tuple[Quarantined, ...]) -> dict[str, RowView]:
    """Texts and status by id, for all rows, also those that could not even be read."""
    rows, bad = material.by_id(), {entry.id: entry for entry in quarantine}
    cut = {example.id for example in material.examples if example.truncated}
    views = {}
    for id_ in material.rows.ids:
        status = f"quarantined:{bad[id_].code}" if id_ in bad else "truncated" if id_ in cut else SCORED
        if id_ in rows:
            views[id_] = row_view(rows[id_], status=status)
        else:
            views[id_] = RowView(id=id_, text="", location=bad[id_].location if id_ in bad else "", status=status)
    return views


def pictured(
    views: dict[str, RowView], material: Material, ids: Callable[[], Set[str]] | None = None
) -> dict[str, RowView]:
    """The views, with a small picture of all rows that are images, or of ``ids``, asked only if there are any."""
    images = {row.id: row.fields for row in material.rows.rows if "image" in row.fields}
    some = images.keys() if ids is None or not images else images.keys() & ids()
    return views | {id_: replace(views[id_], image=thumbnail(images[id_])) for id_ in some}


def _strongest(values: np.ndarray, columns: np.ndarray | None, ids: Sequence[str]) -> set[str]:
    """The rows at both ends of every ranking."""
    found: set[str] = set()
    for q, scores in enumerate(values):
        known = np.flatnonzero(np.isfinite(scores))
        order = known[np.argsort(-scores[known], kind="stable")]
        ends = np.unique(np.r_[order[:PICTURED], order[-PICTURED:]])
        places: list[int] = (ends if columns is None else columns[q][ends]).tolist()
        found |= {ids[n] for n in places}
    return found


def lexical_of(
    subject: Subject, queries: Mapping[str, RowView], rows: Mapping[str, RowView], columns: np.ndarray | None
) -> np.ndarray | None:
    """BM25 of every question against every row (or those kept); None when not wanted or too many."""
    if not subject.options.lexical or len(queries) * len(rows) > LEXICAL_MOST:
        return None
    values = bm25_scores([view.text for view in queries.values()], [view.text for view in rows.values()])
    if columns is None:
        return values
    kept = np.take_along_axis(values, np.maximum(columns, 0), axis=1)
    return np.where(columns >= 0, kept, np.float32(np.nan))
