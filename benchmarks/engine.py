"""whence on the shared workload: its sources, and a fit and score whose parts are timed.

The library is driven as its own verbs do it: gradients of the queries, fit, damped inverse, one scoring pass.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from benchmarks.workload import BATCH, Workload
from whence.curvature.base import Factors, LayerTensors, Method, Problem, Stage, get_method
from whence.curvature.fit import FitOptions, fit
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.scores.score import collect, pairwise, prepare_queries
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM

DAMPING = relative(0.1)


@dataclass(frozen=True)
class Sources:
    """Training rows and queries of one model."""

    train: LiveGradients
    queries: LiveGradients


@dataclass
class Parts:
    """CPU seconds of the parts of one fit and score, in order, and how many rows each stage of the fit read."""

    seconds: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    looks: dict[str, list] = field(default_factory=dict)
    since: float = field(default_factory=time.process_time)

    def lap(self, name: str) -> None:
        """Book the CPU seconds since the last lap."""
        now = time.process_time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.since
        self.since = now


def open_sources(workload: Workload, model: torch.nn.Module) -> Sources:
    """Both sets of rows as whence sees them, in batches of the workload's size."""
    layers = find_layers(model)

    def source(name: str, tokens: np.ndarray) -> LiveGradients:
        length = tokens.shape[1]
        examples = [
            Example(f"{name}:{i}", {"input_ids": row}, row.copy(), length, length - 1) for i, row in enumerate(tokens)
        ]
        plan = plan_batches([length] * len(tokens), token_budget=BATCH * length)
        return LiveGradients(model, CausalLM(), examples, plan, layers)

    return Sources(source("rows", workload.rows), source("queries", workload.queries))


def timed(method: Method, parts: Parts) -> Method:
    """The same method, whose stages book their time: a stage begins when it prepares its factors."""

    def stage_timed(number: int, stage: Stage) -> Stage:
        def prepare(tensors: LayerTensors) -> LayerTensors:
            parts.lap(method.stages[number - 1].name if number else "queries")
            prepared = stage.prepare(tensors)
            parts.lap("eigendecomposition" if number else "queries")
            return prepared

        return replace(stage, prepare=prepare)

    return replace(method, stages=tuple(stage_timed(n, stage) for n, stage in enumerate(method.stages)))


def fit_and_score(
    sources: Sources, *, rows: int | Literal["auto", "all"], fisher: Literal["sampled", "empirical"] = "sampled"
) -> tuple[np.ndarray, Parts]:
    """Q x N EK-FAC scores, and where the CPU seconds went.

    Parts: `queries` (their gradients), `covariance`, `eigendecomposition`, `eigenvalues`, `inverse`, `scoring`.
    """
    parts = Parts()
    method = get_method("ekfac")
    probe = collect(sources.queries.sample(8))
    options = FitOptions(fisher=fisher, rows=rows, damping=DAMPING)
    factors: Factors = fit(sources.train, timed(method, parts), options, probe=probe.grads)
    parts.lap(method.stages[-1].name)
    for stage in factors.about["stages"]:
        parts.rows[stage["name"]], parts.looks[stage["name"]] = stage["rows"], stage["agreement"]
    inverse = method.operator(factors, Problem(sources.train)).power(-1, DAMPING)
    queries = prepare_queries(sources.queries, inverse)
    parts.lap("inverse")
    scores = pairwise(sources.train, queries)
    parts.lap("scoring")
    return scores, parts
