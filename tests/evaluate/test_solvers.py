"""The board of solvers: the exact score is at the top where responses are linear, and rows once solved stay solved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import nn

from whence.errors import DataError
from whence.evaluate import solvers
from whence.evaluate.contenders import Contest, contenders
from whence.evaluate.journal import Journal
from whence.evaluate.pbrf import PbrfSettings, pbrf
from whence.evaluate.solvers import ceiling_of, sample_rows, sampled_responses, solver_board
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.regression import Regression
from whence.watch import Silent

SETTINGS = PbrfSettings(direction="both", share=0.01, tolerance=1e-8)
DAMPING = relative(0.1)


def source_of(model: nn.Module, count: int, prefix: str, seed: int) -> LiveGradients:
    rng = np.random.default_rng(seed)
    rows = [
        Example(f"{prefix}{n}", {"features": rng.standard_normal(3)}, rng.standard_normal(2), 1, 1)
        for n in range(count)
    ]
    plan = plan_batches([1] * count, token_budget=10)
    return LiveGradients(model, Regression(), rows, plan, find_layers(model))


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return source_of(model, 24, "r", 0), source_of(model, 4, "q", 1)


@pytest.fixture(scope="module")
def board(world):
    train, queries = world
    rows = sample_rows(train.ids, 12)
    truth = sampled_responses(train, queries, rows, damping=DAMPING, settings=SETTINGS)
    names = ("exact", "ekfac", "kfac", "relative:ekfac", "random")
    scores = contenders(names, train, queries, Contest(damping=str(DAMPING)))
    return scores, truth, solver_board(scores, truth, train_ids=train.ids, ceiling="exact", about={})


def test_the_exact_score_is_the_ceiling(board) -> None:
    _, _, found = board
    first = found.rows[0]
    assert first[0] == "exact (ceiling)" and first[1] > 0.9999 and first[4] == pytest.approx(1.0, abs=1e-2)
    assert all(row[1] <= first[1] for row in found.rows)
    assert "r = 1.000" in found.words[0]


def test_numbers_are_those_of_scipy(board, world) -> None:
    scores, truth, found = board
    train, _ = world
    columns = [train.ids.index(id_) for id_ in truth.train_ids]
    cells = {row[0]: row for row in found.rows}
    for name in ("ekfac", "random"):
        values = scores[name][:, columns]
        linear = [pearsonr(a, b)[0] for a, b in zip(values, truth.change_QM, strict=True)]
        ranks = [spearmanr(a, b)[0] for a, b in zip(values, truth.change_QM, strict=True)]
        assert cells[name][1] == pytest.approx(np.mean(linear)) and cells[name][3] == pytest.approx(np.mean(ranks))
    assert cells["random"][4] is None and cells["relative:ekfac"][4] is None and cells["kfac"][4] is not None


def test_row_by_row_is_all_at_once(board, world) -> None:
    _, truth, _ = board
    train, queries = world
    wanted = pbrf(train, queries, truth.train_ids, damping=DAMPING, settings=SETTINGS)
    np.testing.assert_allclose(truth.change_QM, wanted.change_QM, rtol=1e-9)
    assert truth.steps == wanted.steps and truth.converged


def test_rows_once_solved_stay_solved(board, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, truth, _ = board
    train, queries = world
    rows = truth.train_ids

    def solved(chosen):
        listening = (Journal.open(tmp_path, {"a": 1}), Silent())
        return sampled_responses(train, queries, chosen, damping=DAMPING, settings=SETTINGS, listening=listening)

    solved(rows[:5])
    asked = []
    real = solvers.responder

    def counting(*given, **more):
        made = real(*given, **more)
        response = made.response
        object.__setattr__(made, "response", lambda row: asked.append(row) or response(row))
        return made

    monkeypatch.setattr(solvers, "responder", counting)
    np.testing.assert_allclose(solved(rows).change_QM, truth.change_QM, rtol=1e-9)
    assert asked == list(rows[5:])
    solved(rows)
    assert asked == list(rows[5:])


def test_unsolved_responses_are_said(world) -> None:
    train, queries = world
    loose = PbrfSettings(steps=1, tolerance=1e-12)
    truth = sampled_responses(train, queries, train.ids[:4], damping=DAMPING, settings=loose)
    scores = contenders(("dot", "random"), train, queries)
    found = solver_board(scores, truth, train_ids=train.ids, ceiling="exact", about={})
    assert any("did not reach the tolerance" in sentence for sentence in found.words)


def test_what_cannot_be(world) -> None:
    train, queries = world
    for rows in ((), ("r99",)):
        with pytest.raises(DataError):
            sampled_responses(train, queries, rows, damping=DAMPING, settings=SETTINGS)
    truth = sampled_responses(train, queries, ("r0",), damping=DAMPING, settings=SETTINGS)
    with pytest.raises(DataError):
        solver_board({}, truth, train_ids=train.ids, ceiling="exact", about={})
    assert ceiling_of(train) == "exact"
    assert sample_rows(train.ids, 5) == sample_rows(train.ids, 5) != sample_rows(train.ids, 5, seed=1)
    assert len(set(sample_rows(train.ids, 99))) == 24


def test_a_large_model_is_solved_iteratively(world, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "DENSE", 3)
    assert ceiling_of(world[0]) == "cg"
