"""A trace in small."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np

from whence.assemble import assemble, manifest
from whence.curvature.base import Factors, Problem
from whence.gradients.source import LiveGradients
from whence.linalg.operators import Blocks, Operator
from whence.pipeline import Material
from whence.plan.glimpse import Glimpse, Timed, spread
from whence.plan.laws import Cost, all_batches, total
from whence.plan.meter import Reading
from whence.planning.rehearsal import ROWS_WRITTEN, Rehearsal, bytes_of, cost_of, cut, first, part
from whence.present import page
from whence.questions import pose, posed_views
from whence.report.records import Extras
from whence.scores.score import Queries, collect
from whence.scoring import check_losses, measured, normalised, scored, top
from whence.store import atomic
from whence.store.run import claimed, save_scores
from whence.tokenwise import QUERIES_MOST, Sides, look_closer

PROBES = 8
QUESTIONS = 32  # most questions that are carried along; costs of more are drawn on from two counts
FEW_QUESTIONS = 8
PAIRED = 4  # batches that are scored with many questions and with few
WRITTEN, CELLS = 2, 400_000  # fewest questions whose result is written; most scores that are, beyond these
FEW_ROWS, NEAR = 20, 3
CLOSER = ("token_tracks", "query_tracks", "token_pairs", "heads")
PER_ROW = (".parquet", ".jsonl")  # files that grow with the rows


@dataclass
class TraceInSmall:
    """Every step of a trace.

    Attributes:
        small: what is rehearsed, with its training rows and questions.
        asked: the questions with the measurement that the method explains.
        closer: token scores of the questions that were looked into, the longest first.
        seen: scores of the rows that were tried; NaN for the others.
    """

    small: Rehearsal
    asked: Material
    closer: dict[int, dict[str, Any]] = field(default_factory=dict)
    seen: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    def run(self) -> None:
        """All steps, in order."""
        small, wish, asked = self.small, self.small.wish, self.asked
        with small.meter.reading() as found:
            check_losses(asked)
            probe = collect(asked.source.sample(PROBES))
        small.step("questions", found)
        factors = small.fit(probe)
        few = first(asked, QUESTIONS) if self._each else asked
        unseen = len(asked.examples) - len(few.examples)
        with small.meter.reading() as found:
            problem = Problem(small.trained.source, wish.options.fisher, wish.options.seed, few.source)
            operator = wish.method.operator(factors, problem)
            inverse = operator.power(-1, wish.damping)
            queries = pose(small.subject, few, inverse)
        if not isinstance(inverse, Blocks):
            small.notes.append(
                f"{wish.method.name} solves for every question, here with a rougher fit than the real one"
            )
        cost = cost_of(found).times(len(asked.examples) / len(few.examples))
        small.step("precondition", found, cost, more=self._query_bytes(unseen))
        self._score(queries, inverse, unseen)
        self._tokens(Sides(small.subject, small.trained, few, inverse, queries))
        self._write(few, factors, operator)

    @property
    def _each(self) -> bool:
        """Has every question a result of its own?"""
        return self.small.wish.options.combine == "each"

    @property
    def _results(self) -> int:
        return len(self.asked.examples) if self._each else 1

    def _query_bytes(self, count: int) -> int:
        return 4 * count * sum(outputs * inputs for outputs, inputs in self.small.subject.layers.sizes.values())

    def _score(self, queries: Queries, inverse: Operator, unseen: int) -> None:
        """The pass over the rows."""
        small, wish = self.small, self.small.wish
        source = Glimpse(small.trained.source, 0, small.meter, chosen=small.batches())
        trained = replace(small.trained, source=cast("LiveGradients", source))
        with small.meter.reading() as found:
            result = normalised(wish, scored(wish, trained, queries, inverse), queries)
        self.seen = result["values"] if result["columns"] is None else self.seen
        timed = source.taken()
        every = total(all_batches(timed, small.sizes))
        if unseen > 0:
            share = self._of_questions(timed, queries, inverse)
            owed = Cost(every.seconds * share.seconds, every.cpu_seconds * share.cpu_seconds)
            every = every + owed.times(unseen / (QUESTIONS - FEW_QUESTIONS))
        scores = 0 if wish.options.top_k else 8 * len(small.trained.rows.ids) * unseen
        more = self._query_bytes(unseen) + scores
        small.step("score", found, every, rows=len(small.trained.examples), more=more)

    def _of_questions(self, timed: Sequence[Timed], queries: Queries, inverse: Operator) -> Cost:
        """The share of a batch that is owed to having ``QUESTIONS`` of them, not ``FEW_QUESTIONS``: a median."""
        small, known = self.small, {batch.number: batch for batch in timed}
        again = [timed[n].number for n in spread(len(timed), PAIRED)]
        source = Glimpse(small.trained.source, 0, small.meter, chosen=again)
        trained = replace(small.trained, source=cast("LiveGradients", source))
        scored(small.wish, trained, _questions(queries, 0, FEW_QUESTIONS), inverse)
        pairs = [(known[batch.number], batch) for batch in source.taken()]
        walls = [1 - few.seconds / max(many.seconds, 1e-9) for many, few in pairs]
        cpus = [1 - few.cpu_seconds / max(many.cpu_seconds, 1e-9) for many, few in pairs]
        return Cost(max(0.0, median(walls)), max(0.0, median(cpus)))

    def _numbers(self, count: int) -> np.ndarray:
        """In place of scores: those that were seen, and for every other row that of a seen row of about its length.

        So the strongest rows have the usual lengths, on which the size of what is said about them depends. Only rows
        that a rehearsal writes are among them.
        """
        lengths: np.ndarray = _lengths(self.small.trained)
        drawn = np.random.default_rng(0)
        noise = drawn.lognormal(0.0, 0.1, (count, len(lengths)))  # no two rows alike
        seen: np.ndarray = self.seen[:count]
        known: np.ndarray = np.empty(0, dtype=np.int64)
        if len(seen) == count:
            known = np.flatnonzero(np.isfinite(seen).any(0) & np.isfinite(lengths))
        if len(known) < FEW_ROWS:
            values = drawn.standard_normal(noise.shape) * np.sqrt(lengths)  # independent tokens
        else:
            order = known[np.argsort(lengths[known], kind="stable")]
            near = np.searchsorted(lengths[order], lengths) + drawn.integers(-NEAR, NEAR + 1, len(lengths))
            values = seen[:, order[np.clip(near, 0, len(order) - 1)]] * np.where(np.isfinite(lengths), 1.0, np.nan)
        values[:, ROWS_WRITTEN:] *= 1e-9
        return (values * noise).astype(np.float32).astype(np.float64)  # sums in float32 pack better

    def _ranked(self, trained: Material, values: np.ndarray) -> dict[str, Any]:
        options, layers, ids = self.small.wish.options, tuple(self.small.subject.layers.names), trained.rows.ids
        per_layer = np.ones((*values.shape, len(layers)), dtype=np.float32) if options.per_layer else None
        found = {"ids": ids, "values": values, "columns": None, "per_layer": per_layer, "layers": layers}
        found["losses"] = {example.id: 1.0 for example in trained.examples}
        if options.self_influence:
            found["self_influence"] = values[0]
        return top(self.small.wish, found)

    def _tokens(self, sides: Sides) -> None:
        """Token scores of the strongest rows of a long and of a middling question; others by their length."""
        ids, values = sides.queries.ids, self._numbers(len(sides.queries.ids))
        if self.small.wish.options.tokens < 1:
            return
        costs, last = [], Reading()
        for q in self._looked(len(ids)):
            one = sides
            if len(ids) > 1:
                one = replace(sides, queries=_questions(sides.queries, q, q + 1), asked=part(sides.asked, [q]))
            with self.small.meter.reading() as found:
                self.closer[q] = look_closer(one, self._ranked(self.small.trained, values[q : q + 1]))
            costs.append(cost_of(found))
            last = found
        walls, cpus = (self._by_length([getattr(c, name) for c in costs]) for name in ("seconds", "cpu_seconds"))
        self.small.step("tokens", last, Cost(walls, cpus))

    def _looked(self, count: int) -> list[int]:
        """The longest question that is looked into, and the middle one."""
        lengths = [example.length for example in self.asked.examples[: min(count, QUERIES_MOST)]]
        order = sorted(range(len(lengths)), key=lambda q: -lengths[q])
        return list(dict.fromkeys([order[0], order[len(order) // 2]]))

    def _by_length(self, seen: list[float]) -> float:
        """The sum over the questions that are looked into, by a line through the two that were tried."""
        examples = self.asked.examples[:QUERIES_MOST]
        if not self._each:
            return seen[0]
        long, *middle = (examples[q].length for q in self.closer)
        if not middle or middle[0] == long:
            return sum(seen) / len(seen) * len(examples)
        slope = max(0.0, (seen[0] - seen[1]) / (long - middle[0]))
        return sum(max(0.0, seen[1] + slope * (example.length - middle[0])) for example in examples)

    def _write(self, asked: Material, factors: Factors, operator: Operator) -> None:
        """Tables and report of some questions and of half as many, and what tokens add to the two looked into."""
        small, each, everyone = self.small, self._each, self._results
        rows, scale = cut(small.trained)
        count = min(everyone, max(WRITTEN, min(QUESTIONS, CELLS // len(rows.rows.ids))))
        looked = list(self.closer)

        def written(asked: Material, closer: Sequence[int]) -> tuple[Counter[str], Reading]:
            with small.meter.reading() as found, tempfile.TemporaryDirectory() as place:
                self._written(Path(place) / "run", (rows, asked), factors, operator, closer=closer)
                return Counter(bytes_of(Path(place) / "run")), found

        whole, last = written(first(asked, count) if each else asked, [])
        steps = []
        if looked:
            some = {*looked, *range(min(FEW_QUESTIONS, len(asked.examples)))}  # enough for a page that is compressed
            few = part(asked, sorted(some)) if each else asked
            bare = whole if not each or len(some) == everyone else written(few, [])[0]
            steps = [bare, *(written(few, looked[: n + 1])[0] for n in range(len(looked)))]
        cost, fewer, further = cost_of(last), whole, 0.0
        if everyone > count:
            fewer, half = written(first(asked, count // 2), [])
            further = (everyone - count) / (count - count // 2)
            cost = cost + cost.without(cost_of(half)).times(further)
        for name in {**whole, **(steps[-1] if steps else {})}:
            tokens = [float(after[name] - before[name]) for before, after in pairwise(steps)]
            grown = whole[name] + further * (whole[name] - fewer[name])
            scaled = grown * (scale if name.endswith(PER_ROW) else 1)
            small.files[name] = round(scaled + (self._by_length(tokens) if tokens else 0.0))
        held = 0 if small.wish.options.top_k else 16 * len(small.trained.rows.ids) * (everyone - count)
        small.step("write", last, cost.times(scale), more=held)

    def _written(
        self,
        place: Path,
        sides: tuple[Material, Material],
        factors: Factors,
        operator: Operator,
        *,
        closer: Sequence[int],
    ) -> None:
        small, (rows, asked) = self.small, sides
        count = len(asked.examples) if self._each else 1
        found = self._ranked(rows, self._numbers(count)[:, : len(rows.rows.ids)])
        looked = [self.closer[q] for q in closer if self.closer[q]]
        if looked:
            for name in CLOSER:
                found[name] = {key: value for part in looked for key, value in part[name].items()}
        if not self._each:
            found["query_rows"] = posed_views(small.subject, asked)
        damping = small.wish.damping
        record = manifest(small.subject, rows, asked, factors=factors, operator=operator, damping=damping)
        scores = assemble(small.subject, rows, asked, found=found, factors=factors, seconds={})
        with claimed(place) as folder:
            save_scores(folder, scores, manifest=record)
            lines = Extras.max_cells * count // self._results  # as many for each as the real page has
            atomic.write_text(folder / "report.html", page(scores, Extras(max_cells=lines)))


def rehearse_trace(small: Rehearsal) -> None:
    """Every step of a trace, done on a few batches and foreseen for all."""
    assert small.asked is not None
    TraceInSmall(small, measured(small.wish, small.asked)).run()


def _lengths(trained: Material) -> np.ndarray:
    """Tokens with a loss of every row; NaN for rows that are left out."""
    tokens = {example.id: example.loss_tokens for example in trained.examples}
    return np.array([tokens.get(id_, np.nan) for id_ in trained.rows.ids], dtype=np.float64)


def _questions(queries: Queries, start: int, stop: int) -> Queries:
    """Some of them."""
    grads = {name: g.rows(start, stop) for name, g in queries.grads.items()}
    norms = None if queries.self_influence is None else queries.self_influence[start:stop]
    return Queries(queries.ids[start:stop], grads, queries.measurements[start:stop], norms)
