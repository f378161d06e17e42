"""The course of a training: which rows at which step, at what rate, divided by what. Randomness is spent here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from whence.errors import OptionError
from whence.evaluate.trainers import Recipe, reading_order
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


def rule_of(recipe: Recipe, root: float = ROOT) -> Rule:
    """The recipe's optimiser, smooth."""
    if recipe.optimiser == "sgd":
        return Sgd(recipe.momentum, recipe.weight_decay)
    return AdamW(betas=recipe.betas, root=root, weight_decay=recipe.weight_decay)
