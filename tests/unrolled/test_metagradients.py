"""Metagradients against finite differences of whole trainings, in float64; and how much is in memory meanwhile."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import examples, gpt2, llama
from whence.errors import CurvatureError, ModelError, OptionError
from whence.evaluate.trainers import BatchedTrainer, Recipe, from_checkpoint
from whence.tasks.causal_lm import CausalLM
from whence.unrolled import rules
from whence.unrolled.course import Course, course_of
from whence.unrolled.reverse import metagradients, run_forward, tree_of
from whence.unrolled.rules import Sgd, State
from whence.unrolled.training import exact_attention, training_of

ROWS, QUERIES, STEP = examples(10, longest=8), examples(2, seed=9, longest=7), 1e-5
RECIPES = {
    "adamw": Recipe(rate=3e-3, steps=50, batch=4, weight_decay=0.1, schedule="cosine", warm_up=5),
    "adamw, clipped": Recipe(rate=3e-3, steps=12, batch=4, clip=1.0, objective="row"),
    "sgd": Recipe(optimiser="sgd", rate=2e-2, steps=50, batch=4, momentum=0.8, weight_decay=0.05),
}


def trained(training, weights) -> np.ndarray:
    """Q measurements after the whole run."""
    with exact_attention(training):
        last = run_forward(training, training.start(), range(len(training.course)), weights)
    return training.measured(last.theta, QUERIES)


def difference(training, row: int, step: float = STEP) -> np.ndarray:
    """Q derivatives by a row's weight, by central differences."""

    def at(shift: float) -> np.ndarray:
        weights = np.ones(len(ROWS))
        weights[row] += shift * step
        return trained(training, weights)

    return (at(1) - at(-1)) / (2 * step)


@pytest.mark.parametrize("name", RECIPES)
def test_a_rows_weight_by_finite_differences(name):
    course = course_of(RECIPES[name], ROWS, seed=3, root=1e-8)
    training = training_of(llama(layers=1), CausalLM(), ROWS, course)
    found = metagradients(training, QUERIES)
    assert found.effects_QN.shape == (2, 10) and found.again == 0.0
    for row in (0, 7)[: 1 if "clipped" not in name else 2]:
        np.testing.assert_allclose(found.effects_QN[:, row], difference(training, row), rtol=1e-4, atol=1e-9)


def test_dropout_in_the_configuration_plays_no_part():
    """GPT-2 drops out a tenth by default: two runs and the way back agree all the same."""
    course = course_of(RECIPES["sgd"], ROWS, seed=1)
    short = replace(course, batches=course.batches[:6], rates=course.rates[:6], divisors=course.divisors[:6])
    training = training_of(gpt2(), CausalLM(), ROWS, short)
    found = metagradients(training, QUERIES)
    assert found.again == 0.0
    np.testing.assert_allclose(found.effects_QN[:, 2], difference(training, 2), rtol=1e-4, atol=1e-9)


def test_the_run_is_the_built_in_trainers():
    """All rows, same recipe and seed: the bank's trainer ends at the same losses (but for the smooth root)."""
    recipe = Recipe(rate=3e-3, steps=9, batch=4, weight_decay=0.1)
    model = llama(layers=1)
    training = training_of(model, CausalLM(), ROWS, course_of(recipe, ROWS, seed=5, root=0.0))
    theirs = BatchedTrainer(from_checkpoint(model), CausalLM(), ROWS, QUERIES, recipe, at_once=1)
    wanted = theirs.losses(np.ones((1, 10), dtype=bool), [5])[0]
    np.testing.assert_allclose(trained(training, np.ones(10)), wanted, rtol=1e-9)


def test_the_number_of_states_changes_nothing():
    course = course_of(replace(RECIPES["adamw"], steps=13), ROWS)
    training = training_of(llama(layers=1), CausalLM(), ROWS, course)
    few, many = (metagradients(training, QUERIES, states=n) for n in (tree_of(13, None).states, 13))
    least = metagradients(training, QUERIES, states=5)
    assert least.tree.states < few.tree.states < many.tree.states == 13
    np.testing.assert_array_equal(few.effects_QN, many.effects_QN)
    np.testing.assert_array_equal(few.effects_QN, least.effects_QN)


def test_several_questions_and_small_parts_are_one_by_one_in_one_piece():
    course = course_of(replace(RECIPES["adamw"], steps=5, clip=1.0), ROWS)
    whole = training_of(llama(layers=1), CausalLM(), ROWS, course)
    parts = training_of(llama(layers=1), CausalLM(), ROWS, course, tokens=9)
    together = metagradients(whole, QUERIES).effects_QN
    alone = [metagradients(parts, [query]).effects_QN[0] for query in QUERIES]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-9, atol=1e-13)
    mixed = metagradients(whole, QUERIES, mixture=np.array([[1.0, -1.0]])).effects_QN
    np.testing.assert_allclose(mixed[0], together[0] - together[1], rtol=1e-9, atol=1e-13)


class Quadratic(torch.nn.Module):
    """One number; the loss of a row is (theta - row)² / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, features):
        return self.theta.expand(len(features), 1)


@pytest.mark.parametrize("steps", [16, 100, 225])
def test_live_states_grow_with_the_square_root(steps, monkeypatch):
    """Counted from outside: every state ever made is watched, and the most alive at once is what is claimed."""
    from reference.models import number_rows
    from whence.tasks.regression import Regression

    alive, most = weakref.WeakSet(), [0]

    class Watched(State):
        def __init__(self, *parts) -> None:
            super().__init__(*parts)
            alive.add(self)
            most[0] = max(most[0], len(alive))

    rows = number_rows(4, inputs=1, outputs=1)
    course = Course(((0, 1, 2, 3),) * steps, (0.01,) * steps, (4.0,) * steps, Sgd())
    training = training_of(Quadratic(), Regression(), rows, course)
    monkeypatch.setattr(rules, "State", Watched)  # made by the rules; cotangents of the walk are one at a time
    found = metagradients(training, rows[:1])
    transient = 6  # the last state, the one being made, its predecessor, cotangents before and after
    assert found.tree.states <= most[0] <= found.tree.states + transient
    assert found.tree.states <= 2 * np.ceil(np.sqrt(steps))
    assert found.tree.forward <= 2 * steps
    few = tree_of(steps, int(np.log2(steps)) + 2)
    most[0] = 0
    metagradients(training, rows[:1], states=few.states)
    assert most[0] <= few.states + transient and few.forward <= steps * (1 + np.log2(steps))


def test_what_cannot_work_is_explained():
    course = course_of(RECIPES["sgd"], ROWS)
    frozen = llama(layers=1).requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter"):
        training_of(frozen, CausalLM(), ROWS, course)
    training = training_of(llama(layers=1), CausalLM(), ROWS, course)
    with pytest.raises(OptionError, match="2 states for 50 steps"):
        metagradients(training, QUERIES, states=2)
    with pytest.raises(OptionError, match="root"):
        course_of(RECIPES["adamw"], ROWS, root=-1.0)
    wild = course_of(replace(RECIPES["sgd"], rate=1e6), ROWS)
    with pytest.raises(CurvatureError, match="diverged"):
        metagradients(training_of(llama(layers=1), CausalLM(), ROWS, wild), QUERIES)
