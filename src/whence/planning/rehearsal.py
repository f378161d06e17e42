"""What the jobs in small share: a fit on a few batches, the pace of a batch, and the record of every step.

What grows with the rows is taken from batches, what grows with the questions from two of them, what is written from a
folder of its own that is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from whence.curvature.base import Factors
from whence.curvature.fit import FitOptions
from whence.gradients.source import Nobody
from whence.indexing import Wish
from whence.pipeline import Material, Subject
from whence.plan.fitting import foreseen, rehearse
from whence.plan.glimpse import Glimpse, batch_tokens, spread
from whence.plan.laws import Cost
from whence.plan.meter import Meter, Reading
from whence.plan.record import Step
from whence.scores.score import Queries

FEWEST = 6  # batches of a stage: less says nothing about the trend of a fit, or about rows of all lengths
FIT_SHARE, PASS_SHARE = 0.5, 0.3  # of the seconds given, for the fit and for the pass over the rows
ROWS_WRITTEN = 20_000


@dataclass
class Rehearsal:
    """One job in small.

    Attributes:
        wish: method, damping, options.
        subject: model, task, layers.
        trained: all training rows.
        asked: all questions; None for an index.
        meter: measures.
        seconds: about how long the rehearsal may take.
        steps: what was foreseen so far.
        files: file -> bytes that it will have.
        row_bytes: of an index: budget in bytes a row -> bytes that a row then has.
        notes: what else should be said.
        unit: seconds of a padded token, forward and backward.
        factor_bytes: of the fitted curvature.
        batch_bytes: that the largest batch needs while it runs.
    """

    wish: Wish
    subject: Subject
    trained: Material
    asked: Material | None
    meter: Meter
    seconds: float
    steps: list[Step] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    row_bytes: Callable[[int], int] | None = None
    notes: list[str] = field(default_factory=list)
    unit: float = 0.0
    factor_bytes: int = 0
    batch_bytes: int = 0

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(rows, longest row) of every batch."""
        return batch_tokens(self.trained.source.plan.batches, self.trained.source.plan.lengths)

    def warm_up(self) -> None:
        """The batch that needs most memory, unmeasured, then the pace of a middle one."""
        for number in (0, len(self.sizes) // 2):
            with self.meter.reading() as found:
                self.trained.source.visit(Nobody(), batches=[number])
            rows, longest = self.sizes[number]
            self.batch_bytes = max(self.batch_bytes, found.peak - found.before)
            self.unit = found.seconds / max(1, rows * longest)

    def fit(self, probe: Queries | None) -> Factors:
        """The curvature's steps."""
        settings = self.wish.options
        options = FitOptions(
            fisher=settings.fisher, rows=settings.fit_rows, seed=settings.seed, damping=self.wish.damping
        )
        stages = max(1, len(self.wish.method.stages))
        source = Glimpse(self.trained.source, self._count(FIT_SHARE / stages), self.meter)
        factors, seen = rehearse(self.wish.method, source, options, probe and probe.grads)
        unique = {id(t): t.numel() * t.element_size() for named in factors.tensors.values() for t in named.values()}
        self.factor_bytes = sum(unique.values())
        for number, stage in enumerate(seen):
            plan = foreseen(stage, source, options, sizes=self.sizes, number=number)
            note = "" if plan.settled else "rows by the trend of the split-half check"
            self.steps.append(Step(f"fit: {plan.name}", plan.cost, plan.rows, plan.peak, note))
        return factors

    def step(self, name: str, found: Reading, cost: Cost | None = None, *, rows: int = 0, more: int = 0) -> None:
        """A step whose peak was measured; ``more`` bytes will come on top of it."""
        self.steps.append(Step(name, cost or cost_of(found), rows, found.peak + more))

    def batches(self) -> list[int]:
        """Batches of a pass that are done for real."""
        return spread(len(self.sizes), self._count(PASS_SHARE))

    def held(self) -> dict[str, int]:
        """Bytes of what is large: the model, the fitted curvature, what the largest batch needs."""
        weights = sum(p.numel() * p.element_size() for p in self.subject.loaded.model.parameters())
        return {"model_bytes": weights, "factor_bytes": self.factor_bytes, "batch_bytes": self.batch_bytes}

    def _count(self, share: float) -> int:
        """Batches that fit into a share of the seconds; curvature and scores cost about as much as the model."""
        mean = sum(rows * longest for rows, longest in self.sizes) / len(self.sizes)
        return max(FEWEST, int(share * self.seconds / max(1e-6, 1.6 * self.unit * mean)))


def cost_of(found: Reading) -> Cost:
    """The time of a reading."""
    return Cost(found.seconds, found.cpu_seconds)


def bytes_of(folder: Path) -> dict[str, int]:
    """File -> bytes."""
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}


def first(material: Material, count: int) -> Material:
    """The first usable rows only, also in the list of rows."""
    return material if count >= len(material.examples) else part(material, range(count))


def part(material: Material, places: Iterable[int]) -> Material:
    """Some of the usable rows only, also in the list of rows."""
    examples = tuple(material.examples[n] for n in places)
    ids = {example.id for example in examples}
    rows = replace(
        material.rows,
        rows=tuple(row for row in material.rows.rows if row.id in ids),
        ids=tuple(id_ for id_ in material.rows.ids if id_ in ids),
    )
    return replace(material, rows=rows, examples=examples, source=material.source.only(ids))


def cut(material: Material) -> tuple[Material, float]:
    """As many rows as are written in a rehearsal, and by how much that is too few."""
    if len(material.rows.ids) <= ROWS_WRITTEN:
        return material, 1.0
    return replace(first(material, ROWS_WRITTEN), quarantine=()), len(material.rows.ids) / ROWS_WRITTEN
