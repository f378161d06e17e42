"""Leave-one-out: ridge to 1e-8, logistic regression by convergence, and a network by retraining."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from reference.classes import Classes
from reference.ridge import Ridge
from whence.curvature.base import Factors, Problem, get_method
from whence.errors import CurvatureError, DataError, OptionError
from whence.evaluate.bank import open_bank, train_members
from whence.evaluate.contenders import contenders
from whence.evaluate.converged import ConvergedTrainer
from whence.evaluate.loo import agreement, changes, left_out, leverage, loo_outcome, reliability, ridge_changes
from whence.evaluate.trainers import BatchedTrainer, Recipe, Trainer, from_checkpoint
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import absolute
from whence.scores.score import SelfInfluence, pairwise, prepare_queries
from whence.store.atomic import plain
from whence.tasks.base import Example, Task
from whence.tasks.batches import plan_batches
from whence.tasks.regression import Regression

PENALTY = 0.02


def source(model: nn.Module, rows: list[Example], task: Task) -> LiveGradients:
    return LiveGradients(model, task, rows, plan_batches([1] * len(rows), token_budget=64), find_layers(model, ("*",)))


def measured(trainer: Trainer, train: list[Example], queries: list[Example], rows, seeds=(0,)) -> np.ndarray:
    design = left_out(len(train), rows, seeds)
    bank = open_bank(None, design, trainer, train_ids=[e.id for e in train], query_ids=[e.id for e in queries])
    train_members(bank, trainer)
    return changes(bank.losses_MRQ)


@pytest.fixture(scope="module")
def ridge():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((40, 4)), rng.standard_normal(4)
    x[5] *= 6.0  # a row of high leverage
    y = x @ w + 0.5 * rng.standard_normal(40)
    train = [Example(f"r{n}", {"features": x[n]}, y[n : n + 1], 1, 1) for n in range(40)]
    queries = [Example(f"q{n}", {"features": rng.standard_normal(4)}, rng.standard_normal(1), 1, 1) for n in range(6)]
    trainer = ConvergedTrainer(nn.Linear(4, 1, bias=False).double(), Regression(), train, queries, PENALTY)
    return trainer, Ridge(x, y, PENALTY)


def exact_scores(trainer: ConvergedTrainer) -> tuple[np.ndarray, np.ndarray, LiveGradients, LiveGradients]:
    model = trainer.minimum()
    train, query = (source(model, list(rows), trainer.task) for rows in (trainer.rows, trainer.queries))
    inverse = get_method("exact_block").operator(Factors({}), Problem(train)).power(-1, absolute(PENALTY))
    own = SelfInfluence(inverse)  # type: ignore[arg-type]
    train.visit(own)
    scores = pairwise(train, prepare_queries(query, inverse))
    return scores, np.array([own.values[i] for i in train.ids]), train, query


def test_the_converged_model_is_the_closed_form(ridge) -> None:
    trainer, known = ridge
    for kept in (None, np.arange(40) != 5):
        weights = next(trainer.minimum(kept).parameters()).detach().numpy()[0]
        np.testing.assert_allclose(weights, known.fit(kept), atol=1e-8)


def test_ridge_with_leverage_is_refitting(ridge) -> None:
    trainer, known = ridge
    scores, own, train, query = exact_scores(trainer)
    losses_N, losses_Q = (np.array([s.losses()[i] for i in s.ids]) for s in (train, query))
    np.testing.assert_allclose(leverage(own, losses_N), known.leverage(), atol=1e-8)
    found = ridge_changes(scores, own, losses_N, losses_Q)
    xq = np.stack([e.inputs["features"] for e in trainer.queries])
    yq = np.concatenate([e.labels for e in trainer.queries])
    refit = np.stack([0.5 * (xq @ known.leave_one_out(n) - yq) ** 2 for n in range(40)], axis=1)
    np.testing.assert_allclose(found, refit - losses_Q[:, None], atol=1e-8)
    np.testing.assert_allclose(measured(trainer, trainer.rows, trainer.queries, range(40))[:, 0], found, atol=1e-8)
    assert abs(scores / 40 - found).max() > 1e-3  # without the correction it is not
    with pytest.raises(DataError, match="without any loss"):
        ridge_changes(scores, own, losses_N, np.zeros(6))


def test_exact_influence_correlates_with_leaving_out_of_ridge(ridge) -> None:
    trainer, _ = ridge
    model, rows = trainer.minimum(), list(range(0, 40, 2))
    task, train = trainer.task, source(trainer.minimum(), list(trainer.rows), trainer.task)
    query = source(train.model, list(trainer.queries), task)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), train.model.parameters(), strict=True))
    scores = contenders([f"exact@absolute:{PENALTY}", "random"], train, query)
    found = loo_outcome(scores, rows, measured(trainer, trainer.rows, trainer.queries, rows))
    values = found.values["agreement"]
    assert values[f"exact@absolute:{PENALTY}"]["pearson"]["mean"] >= 0.99
    assert 0.8 < values[f"exact@absolute:{PENALTY}"]["slope"] < 1.6
    assert abs(values["random"]["pearson"]["mean"]) < 0.6
    assert found.rows[0][0].startswith("exact") and found.charts[0].kind == "scatter"
    json.dumps(plain(found.to_dict()), allow_nan=False)


def blobs(rng: np.random.Generator, count: int, name: str) -> list[Example]:
    """Ten classes in twenty dimensions that overlap, as digits do."""
    centres = np.random.default_rng(7).standard_normal((10, 20))
    labels = rng.integers(0, 10, count)
    x = centres[labels] + 0.9 * rng.standard_normal((count, 20))
    return [Example(f"{name}{n}", {"features": x[n]}, np.asarray(labels[n]), 1, 1) for n in range(count)]


def test_exact_influence_correlates_with_leaving_out_of_logistic_regression() -> None:
    rng = np.random.default_rng(1)
    train, queries = blobs(rng, 200, "r"), blobs(rng, 10, "q")
    trainer = ConvergedTrainer(nn.Linear(20, 10).double(), Classes(), train, queries, 1e-3)
    model, rows = trainer.minimum(), list(range(0, 200, 8))
    ours = [source(model, given, trainer.task) for given in (train, queries)]
    scores = contenders(["exact@absolute:0.001", "dot"], *ours)
    found = loo_outcome(scores, rows, measured(trainer, train, queries, rows)).values["agreement"]
    assert found["exact@absolute:0.001"]["pearson"]["mean"] >= 0.95
    assert found["exact@absolute:0.001"]["pearson"]["mean"] > found["dot"]["pearson"]["mean"] + 0.05


def test_a_network_by_retraining() -> None:
    """Changes are those of training twice by hand; two seeds, and how well they agree."""
    torch.manual_seed(0)
    rng = np.random.default_rng(2)
    train = [Example(f"r{n}", {"features": rng.standard_normal(3)}, rng.standard_normal(1), 1, 1) for n in range(12)]
    base = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    trainer = BatchedTrainer(from_checkpoint(base), Regression(), train, train[:2], Recipe(rate=0.05, batch=4))
    found = measured(trainer, train, train[:2], [0, 1, 5], seeds=(0, 1))
    assert found.shape == (2, 2, 3)
    kept = np.ones((2, 12), dtype=bool)
    kept[1, 5] = False
    whole, without = trainer.losses(kept, [1, 1])
    np.testing.assert_allclose(found[:, 1, 2], without - whole, atol=1e-12)
    assert found[0, :, 0].mean() > 0 < found[1, :, 1].mean()  # each question is a row; without it, it does worse
    assert -1 <= reliability(found) <= 1 and np.isnan(reliability(found[:, :1]))
    told = loo_outcome({"random": rng.random((2, 12))}, [0, 1, 5], found).words
    assert any("Two seeds agree" in said for said in told)


def test_refusals() -> None:
    rng = np.random.default_rng(2)
    rows = [Example(f"r{n}", {"features": rng.standard_normal(3)}, rng.standard_normal(1), 1, 1) for n in range(5)]
    make = lambda **more: ConvergedTrainer(nn.Linear(3, 1).double(), Regression(), rows, rows, **more)  # noqa: E731
    with pytest.raises(OptionError, match="penalty 0"):
        make(penalty=0.0).minimum()
    with pytest.raises(CurvatureError, match="did not converge"):
        make(penalty=0.1, tolerance=1e-300, most=50).minimum()
    with pytest.raises(DataError, match="at least 3 rows"):
        agreement(np.zeros((2, 2)), np.zeros((2, 2)), 10)
