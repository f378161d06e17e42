"""The damping that a training implies, where it is known exactly: quadratic losses pulled towards their start."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from reference import models
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.curvature.implied import implied_damping
from whence.errors import CurvatureError, ModelError, OptionError
from whence.linalg.damping import absolute, implied, parse_damping, relative
from whence.scores.score import collect

PULLS = {"left": 0.7, "right": 3.0}


class Two(nn.Module):
    """Two linear maps of the same features, added: the loss is quadratic in both together."""

    def __init__(self, inputs: int = 4, outputs: int = 2) -> None:
        super().__init__()
        self.left = nn.Linear(inputs, outputs)
        self.right = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x.tanh())


def pulls_of(model: nn.Module) -> Tensor:
    named = [(name.split(".")[0], p) for name, p in model.named_parameters()]
    return torch.cat([torch.full((p.numel(),), PULLS[layer], dtype=torch.float64) for layer, p in named])


def trained(start: nn.Module, rows, weights: Tensor | None = None) -> nn.Module:
    """The minimum of the (weighted) mean loss with the pull towards ``start``: one step, the loss is quadratic."""
    source = models.source(copy.deepcopy(start), rows)
    model, batch = source.model, source.task.collate(rows)
    weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64) if weights is None else weights
    at = parameters_to_vector(model.parameters()).detach()

    def loss(w: Tensor) -> Tensor:
        names = [(n, p.shape) for n, p in model.named_parameters()]
        parts = w.split([shape.numel() for _, shape in names])
        weights_of = {name: part.view(shape) for (name, shape), part in zip(names, parts, strict=True)}
        outputs = torch.func.functional_call(model, weights_of, (batch.inputs["features"],))
        return weights @ source.task.losses(outputs, batch)

    hessian = torch.func.hessian(loss)(at) + torch.diag(pulls_of(model))
    vector_to_parameters(at - torch.linalg.solve(hessian, torch.func.grad(loss)(at)), model.parameters())
    return model


@pytest.fixture
def world():
    torch.manual_seed(4)
    start, rows = Two().double(), models.number_rows(12)
    return start, rows, models.source(trained(start, rows), rows, budget=5)


def test_the_pull_is_found(world) -> None:
    start, _, source = world
    found = implied_damping(source, start)
    assert dict(found.layers) == pytest.approx(PULLS, rel=1e-9)
    assert min(PULLS.values()) < found.value < max(PULLS.values())


def test_solving_with_it_is_the_response_of_this_training(world) -> None:
    """Train again, with the same pull, with one row counting more: the change is what the damped inverse says."""
    start, rows, source = world
    step, row = 1e-6, 5
    weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    weights[row] += step
    more = trained(start, rows, weights)
    before = dict(source.model.named_parameters())
    moved = {n: (p - before[n]).detach() / step for n, p in more.named_parameters()}
    method = get_method("exact")
    inverse = method.operator(fit(source, method), Problem(source)).power(-1, implied_damping(source, start))
    grads = collect(source.only((rows[row].id,))).grads
    wanted = {name: -grad.full()[0] for name, grad in inverse.apply(grads).items()}
    torch.testing.assert_close(moved["right.weight"], wanted["right"], rtol=1e-4, atol=1e-8)
    left = torch.cat([moved["left.weight"], moved["left.bias"][:, None]], dim=1)
    torch.testing.assert_close(left, wanted["left"], rtol=1e-4, atol=1e-8)
    other = method.operator(fit(source, method), Problem(source)).power(-1, relative(0.1)).apply(grads)
    assert (other["right"].full()[0] + moved["right.weight"]).abs().max() > 0.1 * wanted["right"].abs().max()


def test_what_cannot_be_told_is_floored() -> None:
    """A layer that was pushed back, or not at all, has the customary damping; amounts never fall below it."""
    found = implied({"a": -2.0, "b": 5.0, "c": 0.01}, 1.0)
    eigenvalues = torch.full((2, 3), 4.0, dtype=torch.float64)
    for layer, amount in (("a", 0.4), ("b", 5.0), ("c", 0.4)):
        torch.testing.assert_close(found.of(layer).shift(eigenvalues), eigenvalues + amount)
        assert found.of(layer).amount(eigenvalues) == pytest.approx(amount)
    assert not torch.isfinite(found.of("b").shift(torch.zeros(2, 3))).any()  # no curvature at all: nothing to invert
    with pytest.raises(CurvatureError, match="no damping for layer d"):
        found.of("d")
    assert absolute(0.2).of("anything") == absolute(0.2)


def test_refusals(world) -> None:
    _, _, source = world
    with pytest.raises(ModelError, match="the very weights of the trained one"):
        implied_damping(source, source.model)
    with pytest.raises(ModelError, match="no layer left of this size"):
        implied_damping(source, Two(outputs=5).double())
    with pytest.raises(ModelError, match="no layer left"):
        implied_damping(source, nn.Linear(4, 2))
    with pytest.raises(OptionError, match="implied:MODEL is measured by trace"):
        parse_damping("implied:./base")
