"""The proximal Bregman response: its derivative is the damped Gauss-Newton score, its sign that of whence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import examples, gpt2
from whence.curvature.base import Factors, Problem, get_method
from whence.errors import CurvatureError, DataError, OptionError
from whence.evaluate.pbrf import PbrfSettings, pbrf
from whence.evaluate.proximal import Proximal, anchors_of
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import absolute, factored, relative
from whence.scores.score import pairwise, prepare_queries
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.tasks.regression import Regression

N, SAMPLED = 24, ("r3", "r0", "r17")


def rows(count: int, *, prefix: str = "r", seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(f"{prefix}{n}", {"features": rng.standard_normal(3)}, rng.standard_normal(2), 1, 1)
        for n in range(count)
    ]


def regression(model: nn.Module, chosen: list[Example]) -> LiveGradients:
    return LiveGradients(
        model, Regression(), chosen, plan_batches([1] * len(chosen), token_budget=10), find_layers(model)
    )


@pytest.fixture
def linear() -> tuple[LiveGradients, LiveGradients]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2)).double()
    return regression(model, rows(N)), regression(model, rows(4, prefix="q", seed=1))


def exact(train: LiveGradients, query: LiveGradients, damping: Any) -> np.ndarray:
    """Exact damped Gauss-Newton scores of the sampled rows."""
    inverse = get_method("exact").operator(Factors({}), Problem(train)).power(-1, damping)
    columns = [train.ids.index(id_) for id_ in SAMPLED]
    return pairwise(train, prepare_queries(query, inverse))[:, columns]


@pytest.mark.parametrize("damping", [absolute(1e-2), relative(0.1)])
def test_the_derivative_is_the_exact_score(linear, damping) -> None:
    train, query = linear
    settings = PbrfSettings(direction="both", share=1e-3, tolerance=1e-9)
    found = pbrf(train, query, SAMPLED, damping=damping, settings=settings)
    scores = exact(train, query, damping)
    np.testing.assert_allclose(found.change_QM * N / settings.share, scores, rtol=1e-6, atol=1e-6 * abs(scores).max())
    assert found.converged and found.query_ids == query.ids and found.train_ids == SAMPLED
    assert all(value > 0 for value in found.damping_per_layer.values())


def test_the_derivative_of_a_network_is_the_exact_score() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    train, query = regression(model, rows(N)), regression(model, rows(4, prefix="q", seed=1))
    settings = PbrfSettings(direction="both", share=1e-3, tolerance=1e-10)
    found = pbrf(train, query, SAMPLED, damping=absolute(1e-1), settings=settings)
    scores = exact(train, query, absolute(1e-1))
    np.testing.assert_allclose(found.change_QM * N / settings.share, scores, atol=1e-4 * abs(scores).max())


def test_a_language_model_by_conjugate_gradients_alone(monkeypatch) -> None:
    monkeypatch.setattr("whence.evaluate.pbrf.DENSE", 0)
    model = gpt2()
    layers = find_layers(model, ("*h.0.mlp.c_proj",))

    def source(given: list[Example]) -> LiveGradients:
        return LiveGradients(
            model, CausalLM(None), given, plan_batches([e.length for e in given], token_budget=40), layers
        )

    train, query = source(examples(9)), source([replace(e, id=f"q{e.id}") for e in examples(3, seed=1)])
    settings = PbrfSettings(share=1e-4, tolerance=1e-6)
    found = pbrf(train, query, ["row-4"], damping=absolute(1.0), settings=settings)
    inverse = get_method("exact").operator(Factors({}), Problem(train)).power(-1, absolute(1.0))
    scores = pairwise(train, prepare_queries(query, inverse))[:, [4]]
    np.testing.assert_allclose(found.change_QM * 9 / settings.share, scores, atol=1e-3 * abs(scores).max())


@pytest.mark.parametrize("direction", ["remove", "add"])
def test_sign(linear, direction) -> None:
    """A question that is a training row itself: less of that row is bad for it, whichever way the weight goes."""
    train, _ = linear
    twin = regression(train.model, [replace(train.examples[3], id="twin")])
    settings = PbrfSettings(direction=direction)
    assert pbrf(train, twin, ["r3"], damping=absolute(1e-2), settings=settings).change_QM[0, 0] > 0


def test_it_is_the_minimum_written_out(linear) -> None:
    """Removal of a whole row from a linear model: the quadratic objective solved by normal equations."""
    train, query = linear
    found = pbrf(train, query, SAMPLED, damping=absolute(1e-2), settings=PbrfSettings(tolerance=1e-12))
    layer: Any = next(iter(train.layers)).modules[0]
    start = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()

    def designed(source: LiveGradients) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.from_numpy(np.stack([e.inputs["features"] for e in source.examples]))
        return torch.cat([x, torch.ones(len(x), 1)], 1), torch.from_numpy(np.stack([e.labels for e in source.examples]))

    (a, y), (aq, yq) = designed(train), designed(query)
    for column, id_ in enumerate(SAMPLED):
        m = train.ids.index(id_)
        wanted = a @ start.T
        kept = torch.arange(N) != m  # D_m - L_m is linear in the outputs: no curvature, the residual as a force
        left = a[kept].T @ a[kept] / N + 1e-2 * torch.eye(a.shape[1])
        force = a[m][:, None] * (wanted[m] - y[m])[None] / N
        moved = start.T + torch.linalg.solve(left, force)
        rise = 0.5 * ((aq @ moved - yq).square() - (aq @ start.T - yq).square()).sum(1)
        np.testing.assert_allclose(found.change_QM[:, column], rise.detach().numpy(), rtol=1e-8, atol=1e-12)


def test_softmax_is_held_by_the_kl_divergence() -> None:
    model = gpt2()
    given = examples(3)
    plan = plan_batches([e.length for e in given], token_budget=100)
    source = LiveGradients(model, CausalLM(None), given, plan, find_layers(model))
    anchors = anchors_of(source)
    batch = source.task.collate([source.examples[i] for i in source.plan.batches[0]])
    there = anchors[batch.ids].outputs
    outputs = there + torch.randn(there.shape, generator=torch.Generator().manual_seed(0), dtype=there.dtype)
    kl = (there.softmax(-1) * (there.log_softmax(-1) - outputs.log_softmax(-1))).sum(-1)[:, :-1]
    supervised = (batch.labels != -100)[:, 1:]
    proximal = Proximal(source.task, anchors, "", 0.0)
    torch.testing.assert_close(proximal.losses(outputs, batch), (kl * supervised).sum(1))
    assert proximal.losses(there, batch).abs().max() < 1e-12


def test_the_model_is_left_alone(linear) -> None:
    train, query = linear
    before = {n: p.clone() for n, p in train.model.state_dict().items()}
    ticks: list[int] = []
    found = pbrf(train, query, SAMPLED, damping=absolute(1e-2), progress=ticks.append)
    assert all(torch.equal(before[n], p) for n, p in train.model.state_dict().items())
    assert all(p.requires_grad for p in train.model.parameters()) and sum(ticks) == len(SAMPLED)
    spread = found.over(train.ids)
    assert spread.shape == (4, N) and np.isfinite(spread).sum() == 4 * len(SAMPLED)
    np.testing.assert_array_equal(spread[:, 17], found.change_QM[:, 2])


def test_mistakes(linear) -> None:
    train, query = linear
    with pytest.raises(DataError, match="nobody"):
        pbrf(train, query, ["nobody"], damping=absolute(1e-2))
    with pytest.raises(DataError, match="no rows"):
        pbrf(train, query, [], damping=absolute(1e-2))
    with pytest.raises(CurvatureError, match="factored"):
        pbrf(train, query, ["r1"], damping=factored(0.1))
    with pytest.raises(OptionError, match="share"):
        PbrfSettings(share=1.5)
    with pytest.raises(OptionError, match="direction"):
        PbrfSettings(direction="sideways")  # type: ignore[arg-type]
