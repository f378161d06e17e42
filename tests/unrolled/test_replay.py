"""Banks that repeat the very same run; and what three trainings say of its smoothness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from conftest import examples, llama
from whence.evaluate.bank import Plan, open_bank, train_members
from whence.evaluate.trainers import Recipe
from whence.tasks.causal_lm import CausalLM
from whence.unrolled.course import course_of
from whence.unrolled.replay import ReplayTrainer
from whence.unrolled.reverse import metagradients, run_forward
from whence.unrolled.smoothness import metasmoothness
from whence.unrolled.training import exact_attention, training_of

ROWS, QUERIES = examples(8, longest=7), examples(3, seed=9, longest=7)
RECIPE = Recipe(rate=1e-3, steps=6, batch=4, weight_decay=0.1, clip=2.0)


def trainer(at_once: int, recipe: Recipe = RECIPE) -> ReplayTrainer:
    return ReplayTrainer(
        llama(layers=1), CausalLM(), ROWS, QUERIES, lambda seed: course_of(recipe, ROWS, seed=seed), at_once
    )


def test_members_are_the_run_with_empty_places():
    kept = np.random.default_rng(0).random((3, 8)) > 0.3
    seeds = [0, 1, 0]
    together, alone = trainer(4), trainer(1)
    assert together.stacks and not alone.stacks
    found = together.losses(kept, seeds)
    np.testing.assert_allclose(found, alone.losses(kept, seeds), rtol=1e-9)
    training = training_of(llama(layers=1), CausalLM(), ROWS, course_of(RECIPE, ROWS, seed=1))
    with exact_attention(training):
        last = run_forward(training, training.start(), range(6), kept[1].astype(float))
    np.testing.assert_allclose(found[1], training.measured(last.theta, QUERIES), rtol=1e-9)


def test_a_bank_of_replays_knows_its_course(tmp_path):
    plan = Plan(8, 3, repeats=1, kind="drop", amount=1)
    ids = [e.id for e in ROWS], [e.id for e in QUERIES]
    bank = open_bank(tmp_path / "bank", plan, trainer(2), train_ids=ids[0], query_ids=ids[1])
    assert train_members(bank, trainer(2)) == 3 and np.isfinite(bank.losses_MRQ).all()
    other = trainer(2, replace(RECIPE, rate=2e-3))
    with pytest.raises(Exception, match="does not match"):
        open_bank(tmp_path / "bank", plan, other, train_ids=ids[0], query_ids=ids[1])


def test_a_smooth_run_is_told_from_a_rough_one():
    def judged(recipe: Recipe):
        training = training_of(llama(layers=1), CausalLM(), ROWS, course_of(recipe, ROWS))
        found = metagradients(training, QUERIES)
        return metasmoothness(training, QUERIES, found, width=0.01)

    smooth = judged(Recipe(optimiser="sgd", rate=1e-3, steps=8, batch=4))
    assert smooth.parameters > 0.99 and smooth.usable and smooth.bend < 0.02 and smooth.rows == 4
    np.testing.assert_allclose(smooth.measured, smooth.foretold, rtol=0.02)
    assert smooth.slope == pytest.approx(1.0, rel=0.01) and smooth.left_slope == pytest.approx(1.0, rel=0.05)
    assert not replace(smooth, left_measured=tuple(0.02 * x for x in smooth.left_foretold)).usable
    rough = judged(Recipe(optimiser="sgd", rate=0.2, steps=24, batch=4, objective="row"))
    assert rough.parameters < 0.9 and rough.bend > 0.5
    assert not replace(rough, parameters=0.49).usable
