"""The course of a training: which rows at which step, at what rate, divided by what. Randomness is spent here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from whence.errors import OptionError
from whence.evaluate.trainers import Recipe, reading_order
from whence.recorded import Record
from whence.report.characters import visible
from whence.tasks.base import Example
from whence.unrolled.options import ROOT
from whence.unrolled.rules import AdamW, Rule, Sgd


@dataclass(frozen=True)
class Course:
    """A deterministic training, apart from model and rows.

    The objective of a step is the sum over its rows of weight x loss (summed over tokens, nats), divided by the step's
    divisor. Divisors do not move with the weights: a row of weight 0 leaves its place empty.

    Attributes:
        batches: positions of the rows of each step.
        rates: learning rate of each step.
        divisors: of each step.
        rule: the optimiser.
        clip: longest gradient; 0 = any.
        undecayed: names of parameters without weight decay.
    """

    batches: tuple[tuple[int, ...], ...]
    rates: tuple[float, ...]
    divisors: tuple[float, ...]
    rule: Rule
    clip: float = 0.0
    undecayed: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.batches)

    def about(self) -> dict[str, Any]:
        """Everything that decides the outcome, the order as a digest."""
        digest = xxhash.xxh3_128()
        for batch in self.batches:
            digest.update(np.asarray([len(batch), *batch], dtype="<i8").tobytes())
        for values in (self.rates, self.divisors):
            digest.update(np.asarray(values, dtype="<f8").tobytes())
        return {
            **self.rule.about(),
            "steps": len(self),
            "peak_rate": max(self.rates),
            "clip": self.clip,
            "undecayed": len(self.undecayed),
            "course": digest.hexdigest(),
        }


def course_of(recipe: Recipe, rows: Sequence[Example], *, seed: int = 0, root: float = ROOT) -> Course:
    """The course that a recipe takes with all rows.

    Args:
        recipe: as of the built-in trainer, whose order of rows this is too.
        rows: N training rows.
        seed: of the order.
        root: see ``AdamW``.

    Raises:
        OptionError: a root below 0.
    """
    if root < 0:
        raise OptionError(f"root = {root}", wanted="0 or more, inside Adam's square root", try_=f"{ROOT}")
    steps = recipe.count(len(rows))
    order = reading_order(np.ones(len(rows), dtype=bool), seed, steps * recipe.batch).reshape(steps, -1)
    batches = tuple(tuple(batch) for batch in order.tolist())
    if recipe.objective == "row":
        divisors = [float(recipe.batch)] * steps
    else:
        divisors = [float(sum(rows[n].loss_tokens for n in batch)) for batch in batches]
    rates = tuple(recipe.rate * recipe.rate_at(step, steps) for step in range(steps))
    return Course(batches, rates, tuple(divisors), rule_of(recipe, root), recipe.clip)


def course_of_record(record: Record, places: Sequence[int], rows: Sequence[Example], *, root: float = 0.0) -> Course:
    """The course of a recorded training.

    Args:
        record: what happened.
        places: recorded row number -> position in ``rows``.
        rows: N training rows.
        root: see ``AdamW``; 0 is the optimiser that ran.

    Raises:
        OptionError: something in it cannot be repeated; names it.
    """
    _check_repeatable(record)
    assert record.steps is not None
    batches = tuple(tuple(places[n] for n in step) for step in record.steps)
    divisors = tuple(float(sum(rows[n].loss_tokens for n in batch)) for batch in batches)
    settings = record.optimiser
    decay, free = float(settings.get("weight_decay") or 0.0), frozenset(settings.get("undecayed") or ())
    if settings.get("class") == "SGD":
        rule: Rule = Sgd(float(settings.get("momentum") or 0.0), decay)
    else:
        one, two = settings.get("betas") or (0.9, 0.999)
        rule = AdamW((float(one), float(two)), float(settings.get("eps") or 1e-8), root, decay)
    rates = tuple(record.rates[: len(batches)])
    return Course(batches, rates, divisors, rule, float(settings.get("clip") or 0.0), free)


REPEATABLE = ("AdamW", "SGD")


def _check_repeatable(record: Record) -> None:
    settings, batch = record.optimiser, record.batch
    parts = int(batch.get("accumulation", 1)) * int(batch.get("world", 1))
    odd = [name for name in ("nesterov", "amsgrad") if settings.get(name)]
    problems = [
        (not record.steps or len(record.rates) < len(record.steps), f"the order of its rows: {record.order}"),
        (bool(record.rows.packed), "rows that were packed into others"),
        (bool(record.dropout), f"dropout ({', '.join(record.dropout)}): its masks are not known"),
        (settings.get("class") not in REPEATABLE, f"the optimiser {settings.get('class')}"),
        (bool(odd), f"an optimiser with {', '.join(odd)}"),
        (settings.get("one_rate") is False, "several learning rates at once"),
        (not (record.objective == "step_tokens" or (record.objective == "batch_means" and parts == 1)),
         f"the objective {record.objective!r} over {parts} batches a step"),
        (record.precision in ("bf16", "fp16"), f"mixed precision ({record.precision})"),
    ]  # fmt: skip
    wrong = [visible(said)[:200] for problem, said in problems if problem]
    if wrong:
        raise OptionError(
            f"the recorded training cannot be repeated: {'; '.join(wrong)}",
            wanted="AdamW or SGD, a recorded order, no dropout, one rate, full precision",
            try_="a recipe (--recipe) close to it",
        )


def rule_of(recipe: Recipe, root: float = ROOT) -> Rule:
    """The recipe's optimiser, smooth."""
    if recipe.optimiser == "sgd":
        return Sgd(recipe.momentum, recipe.weight_decay)
    return AdamW(betas=recipe.betas, root=root, weight_decay=recipe.weight_decay)
