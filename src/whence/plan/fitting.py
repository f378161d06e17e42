"""A fit in small: the real stages on a few batches, taken apart into what grows with the rows and what does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from whence.curvature.base import Factors, Method, Stage
from whence.curvature.fit import FitOptions, fit, looks
from whence.linalg.operators import Gradients
from whence.plan.glimpse import Glimpse, Timed
from whence.plan.laws import Cost, all_batches, batches_for, rows_needed, total
from whence.plan.meter import Reading

Value = TypeVar("Value")


@dataclass(frozen=True)
class StageSeen:
    """One stage on a few batches.

    Attributes:
        name: of the stage.
        whole: all that was done.
        prepare: before the first batch (an eigendecomposition, say).
        finish: after the last.
        batches: each batch's time.
        trail: what the looks at the halves said.
        peak: most bytes in use.
    """

    name: str
    whole: Cost
    prepare: Cost
    finish: Cost
    batches: Sequence[Timed]
    trail: Sequence[Mapping[str, float]]
    peak: int

    @property
    def look(self) -> Cost:
        """One look at the two halves."""
        count = max(1, len(self.trail))
        seen = Cost(sum(b.seconds for b in self.batches), sum(b.cpu_seconds for b in self.batches))
        return self.whole.without(seen + self.prepare + self.finish).times(1 / count)


@dataclass(frozen=True)
class StagePlan:
    """One stage as it will be.

    Attributes:
        name: of the stage.
        rows: rows it will read.
        cost: all of it.
        fixed: of that, what does not depend on the rows.
        peak: most bytes in use.
        settled: was the check satisfied already, or are ``rows`` known?
    """

    name: str
    rows: int
    cost: Cost
    fixed: Cost
    peak: int
    settled: bool


@dataclass
class _Laps:
    """Times of the steps between batches, by stage."""

    source: Glimpse
    prepare: dict[str, Reading] = field(default_factory=dict)
    finish: dict[str, Reading] = field(default_factory=dict)
    batches: dict[str, list[Timed]] = field(default_factory=dict)
    began: dict[str, tuple[Any, Reading]] = field(default_factory=dict)
    open: str = ""

    def timed(self, name: str, into: dict[str, Reading], work: Callable[[], Value]) -> Value:
        with self.source.meter.timing() as found:
            value = work()
        into[name] = found
        return value

    def stage(self, stage: Stage) -> Stage:
        """The stage, watched."""

        def prepare(tensors: Any) -> Any:
            self.close()
            reading = self.source.meter.reading()
            self.began[stage.name] = (reading, reading.__enter__())
            self.open = stage.name
            return self.timed(stage.name, self.prepare, lambda: stage.prepare(tensors))

        def finish(sums: Any, tensors: Any) -> Any:  # the last call is the fit's own, earlier ones are of looks
            return self.timed(stage.name, self.finish, lambda: stage.finish(sums, tensors))

        return replace(stage, prepare=prepare, finish=finish)

    def close(self) -> None:
        """The stage that was open has ended."""
        if self.open:
            self.began[self.open][0].__exit__(None, None, None)
            self.batches[self.open] = self.source.taken()
            self.open = ""


def rehearse(
    method: Method, source: Glimpse, options: FitOptions, probe: Gradients | None
) -> tuple[Factors, list[StageSeen]]:
    """Fit on what the glimpse shows.

    Returns:
        Factors of those few rows (right in shape and cost, not in value), and what each stage took.

    Raises:
        CurvatureError: as ``fit``.
    """
    laps = _Laps(source)
    rows = options.rows if options.rows == "auto" and probe is not None else len(source.ids)
    watched = replace(method, stages=tuple(laps.stage(stage) for stage in method.stages))
    factors = fit(source, watched, replace(options, rows=rows), probe=probe)
    laps.close()
    trails = {stage["name"]: stage["agreement"] for stage in factors.about.get("stages", ())}
    return factors, [_seen(laps, stage.name, trails[stage.name]) for stage in method.stages]


def _seen(laps: _Laps, name: str, trail: Sequence[Mapping[str, float]]) -> StageSeen:
    whole, prepare, finish = laps.began[name][1], laps.prepare[name], laps.finish[name]
    costs = [Cost(r.seconds, r.cpu_seconds) for r in (whole, prepare, finish)]
    return StageSeen(name, *costs, batches=laps.batches[name], trail=trail, peak=whole.peak)


def foreseen(
    seen: StageSeen, source: Glimpse, options: FitOptions, *, sizes: Sequence[tuple[int, int]], number: int
) -> StagePlan:
    """The stage over as many rows as the real fit will read.

    Args:
        seen: the stage in small.
        source: what it was fed with.
        options: of the real fit.
        sizes: (rows, longest row) of every batch.
        number: which stage; its seed follows from it.
    """
    everyone = sum(rows for rows, _ in sizes)
    order = source.inner.shuffled(options.seed + number)
    if options.rows == "auto" and len(order) > looks(len(order))[0]:
        rows, settled = rows_needed(seen.trail, options.agreement, everyone)
        stops = looks(len(order))
    else:
        rows, settled, stops = (min(options.rows, everyone) if isinstance(options.rows, int) else everyone), True, []
    count = batches_for(rows, order, sizes, stops) if rows < everyone else len(order)
    costs = all_batches(seen.batches, sizes)
    fixed = seen.prepare + seen.finish
    looked = seen.look.times(sum(stop <= count for stop in stops[:-1])) if seen.trail else Cost()
    cost = total([costs[n] for n in order[:count]]) + looked + fixed
    return StagePlan(seen.name, sum(sizes[n][0] for n in order[:count]), cost, fixed, seen.peak, settled)
