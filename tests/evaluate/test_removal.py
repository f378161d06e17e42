"""Removal against worlds where what happens is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from whence.errors import DataError, OptionError
from whence.evaluate.bank import open_bank, train_members
from whence.evaluate.contenders import contenders
from whence.evaluate.converged import ConvergedTrainer
from whence.evaluate.removal import effects, foretold, plan_removals, predicted, removal_outcome, rises
from whence.evaluate.trainers import FunctionTrainer
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.store.atomic import plain
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.regression import Regression

N, Q = 30, 4
RNG = np.random.default_rng(0)
EFFECTS = RNG.standard_normal((Q, N))  # what each row is worth to each query, nats
SCORES = {"right": EFFECTS * N, "wrong": -EFFECTS * N, "random": RNG.random((Q, N))}


def additive(kept: np.ndarray, seed: int) -> np.ndarray:
    """Removing a row raises the loss by its effect; a seed shifts every model alike."""
    return 5.0 + 0.3 * seed - EFFECTS @ kept


def trained(plan, trainer) -> np.ndarray:
    names = [f"r{n}" for n in range(plan.design.kept_MN.shape[1])], [f"q{n}" for n in range(plan.member_CKQ.shape[2])]
    bank = open_bank(None, plan.design, trainer, train_ids=names[0], query_ids=names[1])
    train_members(bank, trainer)
    return rises(plan, bank.losses_MRQ)


def test_an_additive_world() -> None:
    plan = plan_removals(SCORES, (2, 5), seeds=(0, 1, 2))
    rise = trained(plan, FunctionTrainer(additive, {}))
    for k, count in enumerate((2, 5)):
        best = np.sort(EFFECTS, axis=1)
        np.testing.assert_allclose(rise[0, k], np.repeat(best[:, -count:].sum(1)[:, None], 3, axis=1), atol=1e-9)
        np.testing.assert_allclose(rise[1, k, :, 0], best[:, :count].sum(1), atol=1e-9)
        np.testing.assert_allclose(predicted(SCORES["right"], plan, "right")[k], rise[0, k, :, 0], atol=1e-9)
    found = effects(plan, rise)
    assert found["right", 5].raised == 1 and found["wrong", 5].raised == 0 and found["random", 5].above is None
    above, control = found["right", 5].above, rise[2, 1, :, 0]
    assert above is not None and above.low > 0 and above.mean == pytest.approx((rise[0, 1, :, 0] - control).mean())
    told = foretold(SCORES, plan, rise, ["right", "wrong"])
    assert told["right"].fit.slope == pytest.approx(1) and told["right"].fit.pearson == pytest.approx(1)
    assert told["wrong"].fit.slope == pytest.approx(-1)
    twice = foretold({"right": 2 * SCORES["right"]}, plan, rise, ["right"])
    assert twice["right"].fit.slope == pytest.approx(0.5)  # twice as much foretold as happens


def test_rows_without_a_score_stay_and_equal_sets_are_trained_once() -> None:
    scores = EFFECTS.copy()
    scores[:, 0] = np.nan
    same = np.tile(np.arange(float(N)), (Q, 1))
    plan = plan_removals({"holes": scores, "same": same, "again": 3 * same}, (3,), seeds=(0,))
    assert all(0 not in plan.removed["holes", 0, q] for q in range(Q))
    assert (plan.member_CKQ[1] == plan.member_CKQ[2]).all() and len(set(plan.member_CKQ[1, 0])) == 1
    assert plan.models == 1 + Q + 1
    sizes = plan.design.kept_MN.sum(1)
    assert sizes[0] == N and set(sizes[1:]) == {N - 3}


def test_ridge_removals_are_foretold_in_nats() -> None:
    """Scores in the right units on a model that is trained to its minimum: slope near 1, far above random."""
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((300, 5)), rng.standard_normal(5)
    y = x @ w + rng.standard_normal(300)
    train = [Example(f"r{n}", {"features": x[n]}, y[n : n + 1], 1, 1) for n in range(300)]
    query = [Example(f"q{n}", {"features": rng.standard_normal(5)}, rng.standard_normal(1), 1, 1) for n in range(4)]
    trainer = ConvergedTrainer(nn.Linear(5, 1, bias=False).double(), Regression(), train, query, 0.1)
    model = trainer.minimum()
    sources = [
        LiveGradients(
            model, Regression(), rows, plan_batches([1] * len(rows), token_budget=100), find_layers(model, ("*",))
        )
        for rows in (train, query)
    ]
    scores = contenders(["exact@absolute:0.1", "random"], *sources)
    plan = plan_removals(scores, (3,), seeds=(0,))
    found = removal_outcome(scores, plan, trained(plan, trainer), in_nats=["exact@absolute:0.1"])
    told = found.values["foretold"]["exact@absolute:0.1"]
    assert 0.8 < told["slope"] < 1.4 and told["pearson"] > 0.95
    assert found.rows[0][0] == "exact@absolute:0.1" and found.rows[0][2].startswith("+")
    assert [chart.kind for chart in found.charts] == ["bars", "scatter"]
    assert any("fewer than 3" in said for said in found.words) and any("slope" in said for said in found.words)
    json.dumps(plain(found.to_dict()), allow_nan=False)
    assert torch.equal(next(model.parameters()), next(trainer.minimum().parameters()))


def test_refusals() -> None:
    for counts in ((), (0,), (N,)):
        with pytest.raises(OptionError, match="removing"):
            plan_removals(SCORES, counts, (0,))
    plan = plan_removals(SCORES, (2,), (0,))
    with pytest.raises(DataError, match="as planned"):
        rises(plan, np.zeros((2, 1, Q)))
