"""whence on the shared workload: its sources, and a fit and score whose parts are timed against the floor.

The library is driven as its own verbs do it: a fit watched by a few queries, the preconditioned queries, one scoring
pass. On a busy machine CPU seconds drift by half within a minute, so the floor is measured *between the batches* of
every pass (`Pace`), on a model of its own, and each part is judged by the floor of the same moments.

Run: python -m benchmarks.engine (fits and scores once, and prints the peak memory in MB)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.floor import one_pass, peak_megabytes
from benchmarks.workload import BATCH, WORK, Workload, load_workload
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
METHOD = get_method("ekfac")


@dataclass(frozen=True)
class Sources:
    """Training rows and queries of one model."""

    train: LiveGradients
    queries: LiveGradients


@dataclass
class Pace:
    """Measures the floor between batches: every `every`-th batch, a forward and backward of the same size."""

    model: torch.nn.Module
    rows: np.ndarray
    every: int = 2
    seconds: float = 0.0
    measured: int = 0
    batches: int = 0

    def between(self, _finished: int) -> None:
        """Called after a batch."""
        self.batches += 1
        if self.batches % self.every:
            return
        start = self.measured % max(1, len(self.rows) // BATCH * BATCH)
        self.seconds += one_pass(self.model, self.rows[start : start + BATCH])
        self.measured += BATCH


@dataclass
class Parts:
    """CPU seconds of the parts of one fit and score, in order, and the floor measured meanwhile.

    Attributes:
        pace: who measures the floor between batches, if anybody.
        seconds: part -> CPU seconds, without those of the floor.
        floor: part -> (CPU seconds, rows) of the floor measured between its batches.
        rows: stage -> rows it read.
        looks: stage -> what the split-half checks said.
    """

    pace: Pace | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    floor: dict[str, tuple[float, int]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    looks: dict[str, list] = field(default_factory=dict)
    since: float = field(default_factory=time.process_time)
    floor_since: tuple[float, int] = (0.0, 0)

    def lap(self, name: str) -> None:
        """Book the CPU seconds since the last lap."""
        now = time.process_time()
        pace = (self.pace.seconds, self.pace.measured) if self.pace else (0.0, 0)
        spent, rows = pace[0] - self.floor_since[0], pace[1] - self.floor_since[1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.since - spent
        if rows:
            self.floor[name] = (spent, rows)
        self.since, self.floor_since = now, pace

    def passes(self, rows: int) -> dict[str, float]:
        """The parts in passes over `rows` rows; parts without batches of their own take the average pace."""
        average = (sum(s for s, _ in self.floor.values()), sum(n for _, n in self.floor.values()))
        floors = {name: self.floor.get(name, average) for name in self.seconds}
        return {name: spent / (floors[name][0] / floors[name][1] * rows) for name, spent in self.seconds.items()}


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
            parts.lap(method.stages[number - 1].name if number else "probe")
            prepared = stage.prepare(tensors)
            parts.lap("eigendecomposition" if number else "probe")
            return prepared

        return replace(stage, prepare=prepare)

    return replace(method, stages=tuple(stage_timed(n, stage) for n, stage in enumerate(method.stages)))


def fit_and_score(
    sources: Sources,
    *,
    rows: int | Literal["auto", "all"],
    fisher: Literal["sampled", "empirical"] = "sampled",
    pace: Pace | None = None,
) -> tuple[np.ndarray, Parts]:
    """Q x N EK-FAC scores, and where the CPU seconds went.

    Parts: `probe` (gradients of the few queries that watch the fit), `covariance`, `eigendecomposition`,
    `eigenvalues`, `queries` (gradients, preconditioned), `scoring`.
    """
    between: Callable[[int], None] | None = pace.between if pace else None
    train = sources.train.with_progress(between)
    parts = Parts(pace, floor_since=(pace.seconds, pace.measured) if pace else (0.0, 0))
    method = METHOD
    probe = collect(sources.queries.sample(8)).grads if rows == "auto" else None
    options = FitOptions(fisher=fisher, rows=rows, damping=DAMPING)
    factors: Factors = fit(train, timed(method, parts), options, probe=probe)
    parts.lap(method.stages[-1].name)
    for stage in factors.about["stages"]:
        parts.rows[stage["name"]], parts.looks[stage["name"]] = stage["rows"], stage["agreement"]
    inverse = method.operator(factors, Problem(train)).power(-1, DAMPING)
    queries = prepare_queries(sources.queries, inverse)
    parts.lap("queries")
    scores = pairwise(train, queries)
    parts.lap("scoring")
    return scores, parts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK / "workload")
    parser.add_argument("--rows", choices=["all", "auto"], default="all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    workload = load_workload(args.work)
    fit_and_score(open_sources(workload, workload.model()), rows=args.rows)
    print(peak_megabytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
