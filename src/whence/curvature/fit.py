"""A fit is a function: (source, method) -> factors. One pass over the rows per stage, over as many rows as it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from whence.curvature.agreement import predicted_agreement
from whence.curvature.base import Factors, Fisher, LayerTensors, Memo, Method, Stage, Sums
from whence.curvature.keeping import Keep, Keeper, Reached, mapped
from whence.errors import CurvatureError
from whence.gradients.ranks import Ranks, ranks_of
from whence.gradients.source import Closed, GradientSource
from whence.linalg import eigen
from whence.linalg.damping import Damping, factored, relative
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import Gradients

# Batches before the first look, and how much further the next look is.
FIRST_LOOK = 4
LOOK_GROWTH = 1.25
KRONECKER_STAGES = ("covariance", "moments")  # whose operator is a Kronecker product, of K-FAC or of Shampoo
# Token positions per direction of the widest side below which a caution is given: scores of two seeds differ visibly.
POSITIONS_PER_WIDTH = 4
# Where "auto" stops. On the benchmark's 1,000 rows this is about 380 rows for the basis and 130 for the eigenvalues,
# and scores rank as those of the full fit do (Spearman above 0.99 for every query): ``make bench`` measures it.
AGREEMENT = 0.9925


@dataclass(frozen=True)
class FitOptions:
    """How a fit uses the rows.

    Attributes:
        fisher: labels sampled from the model (the true Fisher = Gauss-Newton) or the data's own (empirical).
        rows: "auto" stops when the split-half check is satisfied, "all" uses every row, a number that many at least.
        seed: of the row order and the sampled labels.
        agreement: predicted cosine of preconditioned queries with those from endless rows at which "auto" ends a
            stage.
        damping: what the check inverts with: the value that scoring will use.
        keep: where sums and factors are: with the model, in main memory, or, once fitted, in memory-mapped files.
            Whatever works with them fetches them layer by layer.
    """

    fisher: Fisher = "sampled"
    rows: int | Literal["auto", "all"] = "all"
    seed: int = 0
    agreement: float = AGREEMENT
    damping: Damping = field(default_factory=relative)
    keep: Keep = "model"


def fit(
    source: GradientSource,
    method: Method,
    options: FitOptions | None = None,
    *,
    probe: Gradients | None = None,
    keeper: Keeper | None = None,
) -> Factors:
    """One pass per stage over the training rows.

    Args:
        source: the training rows' gradients.
        method: what to fit; without stages nothing is read.
        options: see ``FitOptions``.
        probe: a few query gradients that the check of ``rows="auto"`` preconditions; without them "auto" means "all".
        keeper: keeps what is finished, and knows what an earlier process had finished of the very same fit.

    Raises:
        CurvatureError: no usable row, or sums that are not finite (names the layer).
    """
    options = options or FitOptions()
    before = None if keeper is None else keeper.reached()
    begun = before or Reached(method.begin(source.layers.sizes), notes=method.notes(source.layers.sizes))
    tensors, stages, notes = begun.tensors, list(begun.stages), list(begun.notes)
    tensors = mapped(tensors, options.keep) if before is not None else tensors
    for number, stage in list(enumerate(method.stages))[len(stages) :]:
        started = time.perf_counter()
        with _decomposing(source, options) as rescues:
            tensors = mapped(stage.prepare(tensors), options.keep)
        # Each stage draws fresh labels: the corrected eigenvalues must not reuse the noise the basis was fitted to.
        run = _Run(source, stage, tensors, replace(options, seed=options.seed + number), probe)
        sums, trail = run.sums(keeper, number)
        check_sums(sums, stage)
        tensors = mapped(stage.finish(sums, tensors), options.keep)
        seconds = round(time.perf_counter() - started, 3)
        stages.append({**stage_record(stage, sums), "agreement": trail, "seconds": seconds})
        notes += rescues
        if keeper is not None:
            keeper.keep(Reached(tensors, stages, notes), seconds)
    notes += scarce(stages, source.layers.sizes)
    return Factors(tensors, {"fisher": options.fisher if stages else None, "stages": stages, "notes": notes})


def stage_record(stage: Stage, sums: Sums) -> dict[str, Any]:
    """What a finished stage says of itself: its name, and how many examples and token positions it saw."""
    return {"name": stage.name, "rows": sums.examples, "positions": min(sums.positions.values(), default=0)}


def scarce(stages: Sequence[Mapping[str, Any]], sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """A caution where covariances of W x W numbers come from hardly more than W positions."""
    width = max((max(size) for size in sizes.values()), default=0)
    seen = next((stage.get("positions") for stage in stages if stage["name"] in KRONECKER_STAGES), None)
    if seen is None or seen >= POSITIONS_PER_WIDTH * width:
        return []
    return [
        f"the curvature was fitted on {seen:,} tokens for layers up to {width:,} wide: with so few, damping and the "
        "draw of labels decide much of the order (more rows help; another --seed shows how far)"
    ]


@contextmanager
def _decomposing(source: GradientSource, options: FitOptions) -> Iterator[list[str]]:
    """Eigendecompositions shared out among ranks, on the model's device wherever factors are kept; what was needed."""
    device = None if options.keep == "model" else getattr(source, "device", None)
    with eigen.spread_over(ranks_of(source)), eigen.computing_on(device), eigen.recorded() as rescues:
        yield rescues


@dataclass
class Accumulate:
    """The visitor of a fit: sums of a stage."""

    stage: Stage
    tensors: LayerTensors
    sums: Sums
    memo: Memo = field(default_factory=Memo)
    closed: Callable[[Sums], None] | None = None  # told the sums after every batch

    def see(self, layer: str, grads: MatrixBatch) -> None:
        positions = int(getattr(grads, "count", len(grads)))
        self.sums.add(layer, self.stage.terms(layer, grads, self.tensors, self.memo), positions)

    def close(self, closed: Closed) -> None:
        self.memo.forget()
        self.sums.examples += int(closed.finite.sum())
        if self.closed is not None:
            self.closed(self.sums)

    def share(self, ranks: Ranks) -> None:
        """Add what other ranks saw."""
        self.sums = self.sums.shared(ranks)


@dataclass(frozen=True)
class _Run:
    """One stage over the rows."""

    source: GradientSource
    stage: Stage
    tensors: LayerTensors
    options: FitOptions
    probe: Gradients | None

    def sums(self, keeper: Keeper | None = None, number: int = 0) -> tuple[Sums, list[dict[str, float]]]:
        """The sums over as many rows as asked for or needed, and what each look at the halves said.

        Args:
            keeper: keeps the sums of a stage whose rows are known beforehand, batch by batch.
            number: of the stage.
        """
        if self.options.rows != "auto" or self.probe is None:
            return self._all(keeper, number), []
        order = self.source.shuffled(self.options.seed)
        halves, trail, done = (self._empty(), self._empty()), [], 0
        for stop in looks(len(order)):
            for half in (0, 1):
                self._accumulated(halves[half], [order[i] for i in range(done, stop) if i % 2 == half])
            done = stop
            if done == len(order):
                break  # nothing left to decide
            mean = judged(self.stage, self.tensors, halves, probe=self.probe, damping=self.options.damping)
            trail.append({"rows": halves[0].examples + halves[1].examples, "predicted": round(mean, 5)})
            if mean >= self.options.agreement:
                break
        return halves[0].merged(halves[1]), trail

    def _empty(self) -> Sums:
        return Sums(place=None if self.options.keep == "model" else "cpu")

    def _all(self, keeper: Keeper | None, number: int) -> Sums:
        wanted = wanted_batches(self.source, self.options)
        if keeper is None:
            return self._accumulated(self._empty(), wanted)
        sums, done = keeper.sums(number) or (self._empty(), 0)
        count = iter(range(done + 1, len(wanted) + 1))
        return self._accumulated(sums, wanted[done:], lambda s: keeper.keep_sums(number, s, next(count)))

    def _accumulated(self, sums: Sums, batches: Sequence[int], closed: Callable[[Sums], None] | None = None) -> Sums:
        labels = "sampled" if self.options.fisher == "sampled" else "true"
        # What ranks share are the sums of this visit alone; those of earlier visits every rank has already.
        visitor = Accumulate(
            self.stage, self.tensors, sums if ranks_of(self.source) is None else self._empty(), closed=closed
        )
        self.source.visit(visitor, labels=labels, seed=self.options.seed, batches=batches)
        if visitor.sums is not sums:
            sums.take(visitor.sums)
        return sums


def judged(
    stage: Stage, tensors: LayerTensors, halves: tuple[Sums, Sums], *, probe: Gradients, damping: Damping
) -> float:
    """Predicted cosine of the probe preconditioned with these rows and with endless ones, from two halves of them."""
    if stage.name in KRONECKER_STAGES and damping.kind != "factored":
        # Factored damping inverts by Cholesky: a look costs a tenth of an eigendecomposition.
        damping = factored(damping.value if damping.kind == "relative" else 0.1)
    if not all(half.examples for half in halves):
        return 0.0
    left, right = (stage.operator(stage.finish(half, tensors)).power(-1, damping) for half in halves)
    return float(predicted_agreement(left, right, probe).mean())


def wanted_batches(source: GradientSource, options: FitOptions) -> list[int]:
    """Batches of a fit that does not judge: all of them, or some in random order until there are enough rows."""
    if not isinstance(options.rows, int):
        return list(range(source.n_batches))
    order, rows = source.shuffled(options.seed), 0
    for count, number in enumerate(order, start=1):
        rows += source.batch_size(number)
        if rows >= options.rows:
            return order[:count]
    return order


def looks(batches: int) -> list[int]:
    """After how many batches to look; the last entry is all of them."""
    points, n = [], float(FIRST_LOOK)
    while n < batches:
        points.append(int(n))
        n *= LOOK_GROWTH
    return [*points, batches]


def check_sums(sums: Sums, stage: Stage) -> None:
    if sums.examples == 0:
        raise CurvatureError(
            f"the {stage.name} pass saw no usable row",
            wanted="at least one row with a finite loss",
            try_="whence check",
        )
    for layer, terms in sums.tensors.items():
        for name, value in terms.items():
            if not bool(torch.isfinite(value).all()):
                raise CurvatureError(
                    f"layer {layer}: the {name} sum of the {stage.name} pass is not finite",
                    wanted="finite activations and gradients",
                    try_="run whence check; load the model with dtype=float32",
                )
