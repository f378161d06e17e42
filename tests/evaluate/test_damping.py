"""Damping by evidence: one fit re-damped equals fits anew, a planted damping is found, and stability is told apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from conftest import examples, llama
from reference.ridge import Ridge
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.errors import DataError, OptionError
from whence.evaluate.damping import (
    DAMPINGS,
    Sweep,
    evidence_from,
    parse_dampings,
    pearson,
    spearman,
    study,
    sweep,
)
from whence.evaluate.references import dense_reference, lds_reference, pbrf_reference, small_layers
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import absolute, factored, relative
from whence.scores.score import collect, pairwise, prepare_queries
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.tasks.regression import Regression

LAYERS = ("*q_proj", "*k_proj")


def source_of(model, rows, patterns=LAYERS, task=None) -> LiveGradients:
    plan = plan_batches([e.length for e in rows], token_budget=60)
    return LiveGradients(model, task or CausalLM(), rows, plan, find_layers(model, patterns))


@pytest.fixture(scope="module")
def world():
    model = llama(layers=1)
    train, query = source_of(model, examples(14, seed=1)), source_of(model, examples(3, seed=2))
    return train, query, collect(query), collect(train, "true")


def swept(world, spec: str, dampings) -> Sweep:
    train, _, asked, rows = world
    method = get_method(spec)
    operator = method.operator(fit(train, method), Problem(train))
    return sweep(operator, dampings, queries=(asked.ids, asked.grads), rows=(rows.ids, rows.grads))


@pytest.mark.parametrize("spec", ["ekfac", "kfac", "kfac:blocks=2", "diagonal", "exact"])
def test_every_damping_is_what_a_fresh_run_gives(world, spec):
    train, query, *_ = world
    dampings = [relative(1e-3), relative(0.1), relative(10.0)]
    if spec.startswith("kfac"):
        dampings.append(factored(0.1))
    found = swept(world, spec, dampings)
    method = get_method(spec)
    operator = method.operator(fit(train, method), Problem(train))
    for scores, damping in zip(found.total_DQN(), dampings, strict=True):
        fresh = pairwise(train, prepare_queries(query, operator.power(-1, damping)))
        np.testing.assert_allclose(scores, fresh, rtol=1e-7, atol=1e-7 * np.abs(fresh).max())


def test_stability_per_layer_and_overall(world):
    found = swept(world, "ekfac", DAMPINGS)
    said = study(found)
    total = found.total_DQN()
    wanted = np.mean([spearmanr(a, b)[0] for a, b in zip(total[3], total[4], strict=True)])
    assert said.neighbours[3].spearman == pytest.approx(wanted)
    assert said.neighbours[3].pearson == pytest.approx(
        np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(total[3], total[4], strict=True)])
    )
    layer = found.scores_DLQN[:, 1]
    wanted = np.mean([spearmanr(a, b)[0] for a, b in zip(layer[3], layer[4], strict=True)])
    assert said.neighbours[3].layers_spearman[1] == pytest.approx(wanted)
    assert said.to_plain[-1] > said.to_plain[0] and said.to_plain[-1] > 0.95
    assert said.recommended.basis in ("stability", "custom") and "not correctness" in said.recommended.reason
    assert json.loads(json.dumps(said.to_dict()))["recommended"]["damping"] in said.dampings
    columns, rows = said.table()
    assert len(rows) == len(DAMPINGS) and all(len(row) == len(columns) for row in rows)
    assert sum(row[-1] == "recommended" for row in rows) == 1


def test_the_reference_finds_its_own_damping_with_its_own_matrix(world):
    train, _, asked, rows = world
    found = swept(world, "exact", [relative(10.0**n) for n in range(-4, 3)])
    evidence = dense_reference(found, train, queries=asked.grads, rows=rows.grads, damping=relative(0.1))
    assert evidence is not None and evidence.kind == "reference"
    assert evidence.values[3] == pytest.approx(1.0)
    said = study(found, [evidence])
    assert said.recommended.damping == "relative:0.1" and "Gauss-Newton" in said.recommended.reason


def test_the_submodel_stays_small(world):
    layers = world[0].layers
    assert small_layers(layers, most=10) == ()
    assert small_layers(layers, most=130) == (layers.names[1],)
    assert small_layers(layers, most=10_000) == layers.names


PENALTY = 0.1


@pytest.fixture(scope="module")
def ridge():
    """Ridge regression whose directions have very different curvature, so that the damping matters."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 6)) * np.array([0.05, 0.1, 0.2, 0.5, 1.0, 2.0])
    return Ridge(x, x @ rng.standard_normal(6) * 3 + 0.5 * rng.standard_normal(80), PENALTY)


@pytest.fixture(scope="module")
def ridge_sweep(ridge):
    rng = np.random.default_rng(1)
    w = ridge.fit()
    model = nn.Linear(6, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(w)[None])
    features = rng.standard_normal((5, 6)) * 0.7
    targets = rng.standard_normal(5)
    rows = [
        Example(f"t{n}", {"features": x}, np.array([y]), 1, 1)
        for n, (x, y) in enumerate(zip(ridge.x_NF, ridge.y_N, strict=True))
    ]
    asked = [
        Example(f"q{n}", {"features": x}, np.array([y]), 1, 1)
        for n, (x, y) in enumerate(zip(features, targets, strict=True))
    ]
    train, query = (source_of(model, part, ("*",), Regression()) for part in (rows, asked))
    method = get_method("exact")
    operator = method.operator(fit(train, method), Problem(train))
    queries, gradients = collect(query), collect(train, "true")
    dampings = [absolute(PENALTY * 10.0**n) for n in range(-3, 4)]
    found = sweep(operator, dampings, queries=(queries.ids, queries.grads), rows=(gradients.ids, gradients.grads))
    return found, features, targets


def losses(ridge, features, targets, w) -> np.ndarray:
    return 0.5 * (features @ w - targets) ** 2


def test_the_penalty_of_ridge_is_found_from_leave_one_out(ridge, ridge_sweep):
    found, features, targets = ridge_sweep
    base = losses(ridge, features, targets, ridge.fit())
    truth = np.stack([losses(ridge, features, targets, ridge.leave_one_out(n)) - base for n in range(80)], axis=1)
    truth[:, 40:] = np.nan  # sampled rows only
    said = study(found, [pbrf_reference(found, truth)])
    assert said.recommended.damping == str(absolute(PENALTY)), said.recommended
    assert said.evidence[0].values[3] > 0.99


def test_the_penalty_of_ridge_is_found_from_retrained_subsets(ridge, ridge_sweep):
    found, features, targets = ridge_sweep
    rng = np.random.default_rng(2)
    kept = np.stack([rng.permutation(80) >= 8 for _ in range(60)])
    measured = np.stack([losses(ridge, features, targets, ridge.fit(mask)) for mask in kept])
    evidence = lds_reference(found, kept, measured)
    truth = evidence_from(
        found.total_DQN(), found.plain_QN, kind="reference", sentence="a weaker truth that says otherwise"
    )
    said = study(found, [truth, evidence])
    assert [e.kind for e in said.evidence] == ["lds", "reference"]
    assert said.recommended.basis == "lds" and said.recommended.damping == str(absolute(PENALTY)), said.recommended
    assert evidence.values[3] > 0.9


def test_correlations_handle_ties_and_constants():
    a, b = np.array([[1.0, 2, 2, 3], [1, 1, 1, 1]]), np.array([[1.0, 2, 3, 4], [1, 2, 3, 4]])
    assert spearman(a, b)[0] == pytest.approx(spearmanr(a[0], b[0])[0])
    assert np.isnan(spearman(a, b)[1]) and np.isnan(pearson(a, b)[1])


def test_a_sweep_needs_an_order(world):
    assert [str(d) for d in parse_dampings(["relative:1", 0.1, "relative:0.1"])] == ["relative:0.1", "relative:1"]
    for bad in (["0.1"], ["0.1", "absolute:1"], []):
        with pytest.raises(OptionError, match="one kind"):
            parse_dampings(bad)


def test_a_bank_that_does_not_fit_is_refused(ridge_sweep):
    found, *_ = ridge_sweep
    with pytest.raises(DataError, match="subsets"):
        lds_reference(found, np.ones((5, 3), bool), np.ones((5, 5)))
    with pytest.raises(DataError, match="responses"):
        pbrf_reference(found, np.ones((2, 2)))
