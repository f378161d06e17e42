"""The three passes of an attribution, for whoever asks: fit the curvature, score the rows, normalise and rank.

``whence.attribute`` makes them once, ``checkpointed`` once for every checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from whence.curvature.base import Factors, Method
from whence.curvature.fit import FitOptions, fit
from whence.curvature.keeping import Keeper
from whence.errors import DataError, OptionError
from whence.linalg.operators import Blocks, Operator
from whence.pipeline import Material
from whence.scores.keeping import Blocks as KeptBlocks
from whence.scores.keeping import Pass
from whence.scores.lengths import Lengths
from whence.scores.relative import Movement, cosine_scores, relative_scores, theta_relative_scores
from whence.scores.score import Pairwise, Queries, SelfInfluence
from whence.scores.sinks import AllScores, TopK
from whence.stages import Ask
from whence.watch import Watcher


def measured(ask: Ask, asked: Material) -> Material:
    """The questions with the measurement that the method explains (the loss, but for TRAK)."""
    task = ask.method.measure(asked.source.task)
    return asked if task is asked.source.task else replace(asked, source=replace(asked.source, task=task))


def check_losses(asked: Material) -> None:
    """A question whose loss is not finite is found before time is spent on a fit.

    Raises:
        DataError: names the question.
    """
    for id_, value in asked.source.losses().items():
        if not np.isfinite(value):
            raise DataError(
                f"question {id_} has a loss that is not finite",
                wanted="a finite loss",
                try_="dtype: float32, or a shorter question",
            )


def fitted(ask: Ask, trained: Material, probe: Queries | None, keeper: Keeper | None = None) -> tuple[Factors, float]:
    """Fit the curvature on as many rows as the options say; factors and seconds."""
    started = time.perf_counter()
    settings = FitOptions(
        fisher=ask.options.fisher, rows=ask.options.fit_rows, seed=ask.options.seed, damping=ask.damping,
        keep=ask.options.keep_factors,
    )  # fmt: skip
    total = len(trained.examples) * len(ask.method.stages)
    with counted(ask.watch, "fit", total) as count:
        source = trained.source.with_progress(count)
        factors = fit(source, ask.method, settings, probe=probe and probe.grads, keeper=keeper)
    for stage in factors.about.get("stages", ()):
        look = f", split-half agreement {stage['agreement'][-1]['predicted']:.3f}" if stage["agreement"] else ""
        said = f"fit       {stage['name']}: {stage['rows']:,} of {len(trained.examples):,} rows{look}"
        ask.watch.note("fit", f"{said} · {stage['seconds']:.1f} s", **stage, of=len(trained.examples))
    for note in factors.about.get("notes", ()):
        ask.watch.note("factors", f"note      {note}")
    return factors, time.perf_counter() - started


def scored(
    ask: Ask, trained: Material, queries: Queries, inverse: Operator, *, blocks: KeptBlocks | None = None
) -> dict[str, Any]:
    """One pass over the training rows: every query against every row, and what else was asked for.

    Args:
        ask: what.
        trained: rows.
        queries: preconditioned.
        inverse: the damped inverse.
        blocks: keeps what is finished of the pass, and knows what an earlier process had finished.
    """
    options, ids = ask.options, trained.rows.ids
    sink = _sink(ask, queries, ids)
    scoring = Pairwise(queries, sink, keep_layers=options.per_layer)
    visitors: dict[str, Lengths] = {}
    if options.self_influence or options.normalise in ("cosine", "relative"):
        visitors["self_influence"] = SelfInfluence(blocks_of(inverse, ask.method))
    if options.normalise == "theta":
        visitors["movement"] = Movement(blocks_of(inverse, ask.method))
    whole = Pass(scoring, {name: v.values for name, v in visitors.items()}, [scoring, *visitors.values()])
    with counted(ask.watch, "score", len(trained.examples)) as count:
        whole.over(trained.source.with_progress(count), blocks)
    found: dict[str, Any] = {"losses": scoring.losses, "sink": sink, "layers": tuple(queries.grads)}
    return found | {name: np.array([v.values.get(id_, np.nan) for id_ in ids]) for name, v in visitors.items()}


def _sink(ask: Ask, queries: Queries, ids: tuple[str, ...]) -> AllScores | TopK:
    """The streaming top-k where nothing needs the other scores."""
    options = ask.options
    if options.top_k is not None and options.normalise == "none" and not options.per_layer:
        return TopK({id_: n for n, id_ in enumerate(ids)}, options.top_k, len(queries.ids))
    return AllScores.empty(len(queries.ids), ids, len(queries.grads) if options.per_layer else None)


def normalised(ask: Ask, found: dict[str, Any], queries: Queries) -> dict[str, Any]:
    """``normalise`` applied to what was collected: ``values`` (and ``columns`` of a streaming top-k)."""
    sink = found.pop("sink")
    if isinstance(sink, TopK):
        values, columns = sink.finish()
        return {**found, "values": values, "columns": columns}
    values, how = sink.values, ask.options.normalise
    if how == "relative":
        values = relative_scores(values, found["self_influence"])
    elif how == "theta":
        values = theta_relative_scores(values, found.pop("movement"))
    elif how == "cosine":
        assert queries.self_influence is not None
        values = cosine_scores(values, found["self_influence"], queries.self_influence)
    return {**found, "ids": tuple(sink.columns), "values": values, "columns": None, "per_layer": sink.per_layer}


def top(ask: Ask, found: dict[str, Any]) -> dict[str, Any]:
    """The ``top_k`` strongest on both sides, where all scores were kept until now."""
    ids = found.pop("ids", None)
    if ask.options.top_k is None or ids is None:
        return found
    best = TopK({id_: n for n, id_ in enumerate(ids)}, ask.options.top_k, len(found["values"]))
    best.put(ids, found["values"], None)
    kept, columns = best.finish()
    layered = None
    if found["per_layer"] is not None:
        layered = np.take_along_axis(found["per_layer"], np.maximum(columns, 0)[:, :, None], axis=1)
        layered[columns < 0] = np.nan
    return {**found, "values": kept, "columns": columns, "per_layer": layered}


def blocks_of(inverse: Operator, method: Method) -> Blocks:
    """The inverse layer by layer.

    Raises:
        OptionError: a method whose curvature runs over all layers together.
    """
    if not isinstance(inverse, Blocks):
        raise OptionError(
            f"method {method.name} has no per-layer inverse",
            wanted="a block-diagonal method for self-influence, cosine, relative and theta scores",
            try_="--method ekfac",
        )
    return inverse


@contextmanager
def counted(watch: Watcher, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Count examples as batches finish; a stage that stops early (a converged fit) is complete all the same."""
    done = 0

    def count(examples: int) -> None:
        nonlocal done
        done += examples
        watch.step(name, min(done, total), total)

    watch.step(name, 0, total)
    yield count
    watch.step(name, total, total)
