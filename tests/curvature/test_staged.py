"""Two-stage influence against finite differences of two trainings, each run to its minimum in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from reference.twins import modules_of, per_example_gradients
from whence.curvature.staged import Staged, implied_alpha, shared_layers, through_tuning, tuned_inverse
from whence.errors import LayerError, OptionError
from whence.gradients.layers import find_layers
from whence.linalg.damping import Damping, absolute
from whence.linalg.matrix_batch import Full
from whence.linalg.packing import Layout
from whence.results import Scores
from whence.stages import joined
from whence.tasks.base import Example
from whence.tasks.regression import Regression

ALPHA, RIDGE, STEP = 0.3, 0.05, 1e-5
S_TUNE, S_PRE = slice(0, 9), slice(9, 21)


MIX = torch.randn(2, 3, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


class Tuned(nn.Module):
    """A shared map and a head of its own, linear in both: losses are quadratic, and minima have a closed form."""

    def __init__(self, outputs: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.outputs = outputs
        self.body, self.head = nn.Linear(4, 3).double(), nn.Linear(4, outputs).double()

    def forward(self, x):
        return self.body(x) @ MIX[: self.outputs].T + self.head(x)

    def jacobian(self, x: torch.Tensor) -> torch.Tensor:
        """Derivative of the outputs by the flat parameters, written out by hand."""
        x1 = torch.cat([x, torch.ones(1, dtype=torch.float64)])[None]
        eye = torch.eye(self.outputs, dtype=torch.float64)
        return torch.cat([torch.kron(MIX[: self.outputs], x1), torch.kron(eye, x1)], dim=1)


def rows(count: int, outputs: int, seed: int) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(f"r{n}", {"features": rng.standard_normal(4)}, rng.standard_normal(outputs), 1, 1) for n in range(count)
    ]


class Whole:
    """A dense matrix over all layers together, with the operator's verbs."""

    def __init__(self, matrix: torch.Tensor, layout: Layout) -> None:
        self.matrix, self.layout = matrix, layout

    def apply(self, x):
        flat = self.layout.pack({name: grads.full() for name, grads in x.items()}) @ self.matrix
        return {name: Full(part) for name, part in self.layout.unpack(flat).items()}

    def power(self, exponent: float, damping: Damping) -> Whole:
        assert exponent == -1 and damping.kind == "absolute"
        shifted = self.matrix + damping.value * torch.eye(len(self.matrix), dtype=torch.float64)
        return Whole(torch.linalg.inv(shifted), self.layout)


def modules(model: nn.Module) -> list[nn.Module]:
    return modules_of(model, ["body", "head"])


def flat(model: nn.Module) -> torch.Tensor:
    parts = [torch.cat([m.weight, m.bias[:, None]], 1).flatten() for m in modules(model)]
    return torch.cat(parts).detach().clone()


def curvature(model: Tuned, data, weights) -> torch.Tensor:
    jacobians = [model.jacobian(torch.as_tensor(row.inputs["features"])) for row in data]
    return sum(w * j.T @ j for w, j in zip(weights, jacobians, strict=True))


def minimise(model: Tuned, data, weights, *, towards: torch.Tensor, pull: float) -> None:
    """The minimum of Σ weight x loss + pull/2 |θ - towards|²."""
    right = pull * towards
    for w, row in zip(weights, data, strict=True):
        right = right + w * model.jacobian(torch.as_tensor(row.inputs["features"])).T @ torch.as_tensor(row.labels)
    move(
        model,
        torch.linalg.solve(curvature(model, data, weights) + pull * torch.eye(len(right), dtype=torch.float64), right),
    )


def move(model, theta: torch.Tensor) -> None:
    at = 0
    with torch.no_grad():
        for module in modules(model):
            n = module.weight.shape[0] * (module.weight.shape[1] + 1)
            block = theta[at : at + n].view(module.weight.shape[0], -1)
            module.weight.copy_(block[:, :-1])
            module.bias.copy_(block[:, -1])
            at += n


class World:
    """Pre-training with one head, fine-tuning with another, both to their minimum."""

    def __init__(self) -> None:
        self.pre_rows, self.tune_rows, self.query = rows(12, 2, 0), rows(9, 1, 1), rows(1, 1, 2)
        self.base, self.model = Tuned(2, 3), Tuned(1, 4)
        self.body = 3 * 5
        self.weights = torch.full((12,), 1 / 12, dtype=torch.float64)
        self.tune_weights = torch.full((9,), 1 / 9, dtype=torch.float64)
        self.start = torch.zeros_like(flat(self.base))
        self.head = flat(self.model)[self.body :]  # where the new head is pulled to

    def train(self, weights: torch.Tensor, tune_weights: torch.Tensor) -> float:
        """Both stages to their minima; the query's loss."""
        minimise(self.base, self.pre_rows, weights, towards=self.start, pull=RIDGE)
        towards = torch.cat([flat(self.base)[: self.body], self.head])
        minimise(self.model, self.tune_rows, tune_weights, towards=towards, pull=ALPHA)
        batch = Regression().collate(self.query)
        return float(Regression().losses(self.model(batch.inputs["features"]), batch).detach())


@pytest.fixture(scope="module")
def world():
    world = World()
    world.train(world.weights, world.tune_weights)
    return world


def gradients(model, data) -> dict[str, Full]:
    layout = Layout.of(find_layers(model, ("*",)).sizes)
    found = per_example_gradients(model, Regression(), data, modules(model))
    return {name: Full(part) for name, part in layout.unpack(found).items()}


def staged(world: World) -> Staged:
    tuned, base = find_layers(world.model, ("*",)), find_layers(world.base, ("*",))
    h_ft = Whole(curvature(world.model, world.tune_rows, world.tune_weights), Layout.of(tuned.sizes))
    hessian = curvature(world.base, world.pre_rows, world.weights)
    h_pt = Whole(hessian, Layout.of(base.sizes)).power(-1, absolute(RIDGE))
    shared = shared_layers(tuned, base)
    assert shared == {"body": "body"}  # the heads differ in size
    return Staged(tuned_inverse(h_ft, ALPHA), OnBody(h_pt), ALPHA, shared)


class OnBody:
    """The inverse over all pre-trained layers, for queries that live on the body only."""

    def __init__(self, whole: Whole) -> None:
        self.whole = whole

    def apply(self, x):
        count = len(x["body"])
        zeros = {name: torch.zeros(count, *shape, dtype=torch.float64) for name, shape in self.whole.layout.shapes}
        return self.whole.apply({name: x[name] if name in x else Full(zeros[name]) for name in zeros})

    def power(self, exponent, damping):
        raise NotImplementedError


def dots(queries, grads) -> np.ndarray:
    return sum(queries[name].dot(grads[name]) for name in queries)[0].numpy()


def test_derivative_by_a_pretraining_row(world):
    queries = staged(world).to_pretraining_rows(gradients(world.model, world.query))
    scores = dots(queries, gradients(world.base, world.pre_rows))
    for m in (0, 5):
        bump = torch.zeros(12, dtype=torch.float64)
        bump[m] = STEP
        up = world.train(world.weights + bump, world.tune_weights)
        down = world.train(world.weights - bump, world.tune_weights)
        measured = (up - down) / (2 * STEP)
        assert abs(measured) > 1e-4
        assert -scores[m] == pytest.approx(measured, rel=1e-6, abs=1e-8)
    world.train(world.weights, world.tune_weights)


def test_derivative_by_a_fine_tuning_row(world):
    queries = staged(world).to_tuning_rows(gradients(world.model, world.query))
    scores = dots(queries, gradients(world.model, world.tune_rows))
    bump = torch.zeros(9, dtype=torch.float64)
    bump[3] = STEP
    up, down = (world.train(world.weights, world.tune_weights + sign * bump) for sign in (1, -1))
    assert -scores[3] == pytest.approx((up - down) / (2 * STEP), rel=1e-6, abs=1e-8)
    world.train(world.weights, world.tune_weights)


def test_a_strong_pull_is_ordinary_influence_on_the_pretrained_weights(world):
    """Alpha without bound: fine-tuning moves nothing, and the first stage passes the query through."""
    tuned = find_layers(world.model, ("*",))
    h_ft = Whole(curvature(world.model, world.tune_rows, world.tune_weights), Layout.of(tuned.sizes))
    query = gradients(world.model, world.query)
    solved = tuned_inverse(h_ft, 1e9).apply(query)
    passed = through_tuning(solved, 1e9, {"body": "theirs"})
    torch.testing.assert_close(passed["theirs"].full(), query["body"].full(), rtol=1e-7, atol=1e-9)


def test_layers_pair_by_name_or_by_a_unique_ending():
    wrapped = nn.ModuleDict({"backbone": nn.ModuleDict({"body": nn.Linear(4, 3), "head": nn.Linear(3, 5)})})
    tuned, base = find_layers(Tuned(2, 0), ("*",)), find_layers(wrapped, ("*",))
    assert shared_layers(tuned, base) == {"body": "backbone.body"}
    with pytest.raises(LayerError, match="none of the 2 layers"):
        shared_layers(tuned, find_layers(nn.ModuleDict({"other": nn.Linear(2, 2)}), ("*",)))


def test_alpha_is_the_inverse_of_the_distance_travelled():
    assert implied_alpha([1e-2] * 50) == pytest.approx(2.0)
    assert implied_alpha([1e-2] * 50, loss_tokens=30.0) == pytest.approx(60.0)
    with pytest.raises(OptionError, match="sum to 0"):
        implied_alpha([])
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="alpha"):
            tuned_inverse(Whole(torch.eye(2), Layout(())), bad)


def joint(world: World) -> Scores:
    """Both stages as one result, as ``stages`` joins them."""
    whole, query = staged(world), gradients(world.model, world.query)
    tuning = dots(whole.to_tuning_rows(query), gradients(world.model, world.tune_rows))
    pretraining = dots(whole.to_pretraining_rows(query), gradients(world.base, world.pre_rows))
    parts = [
        Scores(values[None], ("q",), tuple(f"{name}{n}" for n in range(len(values))), len(values))
        for name, values in (("tune", tuning), ("pre", pretraining))
    ]
    return joined(parts)


def test_effects_of_both_stages_in_the_same_nats(world):
    """Every row of either stage a little lighter and heavier, both stages trained anew each time: equal to 1e-6."""
    found, measured = joint(world).removal_effect(0), []
    for n in range(9):
        bump = torch.zeros(9, dtype=torch.float64)
        bump[n] = STEP / 9
        lighter, heavier = (world.train(world.weights, world.tune_weights + sign * bump) for sign in (-1, 1))
        measured.append((lighter - heavier) / (2 * STEP))
    for n in range(12):
        bump = torch.zeros(12, dtype=torch.float64)
        bump[n] = STEP / 12
        lighter, heavier = (world.train(world.weights + sign * bump, world.tune_weights) for sign in (-1, 1))
        measured.append((lighter - heavier) / (2 * STEP))
    world.train(world.weights, world.tune_weights)
    np.testing.assert_allclose(found, measured, rtol=1e-6, atol=1e-9)


def test_rows_left_out_altogether_do_as_foretold(world):
    """Not infinitesimal any more: a row left out takes its leverage with it, 1 / (1 - h), in either stage alike."""
    found, before, measured = joint(world).removal_effect(0), world.train(world.weights, world.tune_weights), []
    for n in range(9):
        without = world.tune_weights.clone()
        without[n] = 0.0
        measured.append(world.train(world.weights, without) - before)
    for n in range(12):
        without = world.weights.clone()
        without[n] = 0.0
        measured.append(world.train(without, world.tune_weights) - before)
    world.train(world.weights, world.tune_weights)
    assert np.corrcoef(found[:9], measured[:9])[0, 1] > 0.9 and np.corrcoef(found[9:], measured[9:])[0, 1] > 0.9
    slopes = [float(found[part] @ np.array(measured)[part] / (found[part] @ found[part])) for part in (S_TUNE, S_PRE)]
    assert all(slope > 1.0 for slope in slopes) and 0.5 < slopes[0] / slopes[1] < 2.0, slopes
