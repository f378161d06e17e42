"""Laws that every task keeps: captured gradients are autograd's, neighbours and padding change nothing, drawn labels
belong to their row, and the Fisher of drawn labels is the Gauss-Newton matrix of the loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reference.task_models import CASES
from whence.gradients.attention import twice_differentiable
from whence.gradients.layers import find_layers
from whence.gradients.products import Products
from whence.gradients.source import LiveGradients
from whence.scores.score import collect
from whence.tasks.base import Task, task_names
from whence.tasks.batches import plan_batches

EXACT = {"rtol": 1e-9, "atol": 1e-11}
DRAWS = 1000


@dataclass(frozen=True)
class Made:
    model: nn.Module
    task: Task
    examples: list[Any]
    patterns: tuple[str, ...]

    def source(self, *, together: int = 8, examples: list[Any] | None = None) -> LiveGradients:
        chosen = self.examples if examples is None else examples
        longest = max(e.length for e in chosen)
        plan = plan_batches([e.length for e in chosen], token_budget=together * longest, max_rows=together)
        return LiveGradients(self.model, self.task, chosen, plan, find_layers(self.model, self.patterns))

    def gradients(self, **how: Any) -> dict[str, dict[str, torch.Tensor]]:
        """Row id -> layer -> O x I."""
        found = collect(self.source(**how), labels=how.pop("labels", "true"))
        full = {name: grads.full() for name, grads in found.grads.items()}
        return {id_: {name: full[name][b] for name in full} for b, id_ in enumerate(found.ids)}


@cache
def made(name: str) -> Made:
    model, task, examples, patterns = CASES[name]()
    return Made(model.eval(), task, examples, patterns)


every = pytest.mark.parametrize("name", CASES)


def test_every_task_has_a_case() -> None:
    assert {made(name).task.name for name in CASES} == set(task_names())


def alone(case: Made, example: Any) -> tuple[dict[str, torch.Tensor], float]:
    """The slow truth: one example, one autograd call, plain parameters."""
    for parameter in case.model.parameters():
        parameter.requires_grad_(True)
    batch = case.task.collate([example])
    loss = case.task.losses(case.task.outputs(case.model, batch), batch).sum()
    found = {}
    for layer in find_layers(case.model, case.patterns):
        module = layer.modules[0]
        wanted = [module.weight, *([module.bias] if layer.bias else [])]
        grads = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        weight, *bias = [torch.zeros_like(w) if g is None else g for g, w in zip(grads, wanted, strict=True)]
        weight = weight.T if type(module).__name__ == "Conv1D" else weight.flatten(1)
        found[layer.name] = torch.cat([weight, bias[0][:, None]], 1) if bias else weight
    return found, float(loss.detach())


@every
def test_captured_gradients_are_autograds(name: str) -> None:
    case = made(name)
    captured = case.gradients()
    assert len(captured) == len(case.examples)
    size = 0.0
    for example in case.examples:
        wanted, _ = alone(case, example)
        for layer, matrix in wanted.items():
            torch.testing.assert_close(captured[example.id][layer], matrix, **EXACT)
            size += float(matrix.abs().sum())
    assert size > 0


@every
def test_neighbours_and_padding_change_nothing(name: str) -> None:
    case = made(name)
    together, single = case.source(together=8), case.source(together=1)
    assert len({e.length for e in case.examples}) > 1 or together.task.collate(case.examples).mask is None
    one, other = together.losses(), single.losses()
    assert [one[i] for i in sorted(one)] == pytest.approx([other[i] for i in sorted(other)], rel=1e-9)
    grads, lone = case.gradients(together=8), case.gradients(together=1)
    backwards = case.gradients(together=3, examples=case.examples[::-1])
    for id_ in grads:
        for layer in grads[id_]:
            torch.testing.assert_close(grads[id_][layer], lone[id_][layer], **EXACT)
            torch.testing.assert_close(grads[id_][layer], backwards[id_][layer], **EXACT)


@every
def test_padding_stays_out_of_the_covariances(name: str) -> None:
    """Real positions and the sums of inputs over them: alone and padded. Padding would not show in any gradient."""
    case = made(name)
    sums: list[dict[str, torch.Tensor]] = []
    for together in (1, 8):
        seen: dict[str, torch.Tensor] = {}

        class Sum:
            def see(self, layer: str, grads: Any, seen: dict[str, torch.Tensor] = seen) -> None:
                a = grads.a_BTI
                seen[layer] = seen.get(layer, 0) + torch.einsum("bti,btj->ij", a, a)

            def close(self, closed: Any) -> None:
                pass

        case.source(together=together).visit(Sum())
        sums.append(seen)
    for layer in sums[0]:
        torch.testing.assert_close(sums[0][layer], sums[1][layer], **EXACT)


@every
def test_drawn_labels_belong_to_the_row(name: str) -> None:
    case = made(name)
    task, model = case.task, case.model

    def drawn(examples: list[Any], seed: int = 0) -> list[float]:
        batch = task.collate(examples)
        with torch.no_grad():
            outputs = task.outputs(model, batch)
            again = task.sample(outputs, batch, seed)
            return task.losses(outputs, again).tolist()

    whole = drawn(case.examples)
    assert whole == pytest.approx([drawn([e])[0] for e in case.examples], rel=1e-9)
    assert whole == pytest.approx(drawn(case.examples[::-1])[::-1], rel=1e-9)
    assert any(drawn(case.examples, seed) != whole for seed in range(1, 6))


@every
def test_drawn_labels_have_the_gradients_that_the_model_believes_in(name: str) -> None:
    """E g g' over drawn labels is the Gauss-Newton matrix of the loss (products never draw), along one direction."""
    case = made(name)
    example = min(case.examples, key=lambda e: e.length)
    layers = find_layers(case.model, case.patterns)
    layer = list(layers)[-1]
    lone = replace(layers, layers={layer.name: layer}, sizes={layer.name: layers.sizes[layer.name]})
    x = alone(case, example)[0][layer.name].flatten()
    x = x / x.norm()
    source = replace(case.source(examples=[example]), layers=lone)
    wanted = float(Products(source).apply(x[None])[0] @ x)
    slopes = _slopes(case, example, layer, x=x)
    squares, root = np.square(slopes), len(slopes) ** 0.5
    assert wanted > 0
    assert abs(float(squares.mean()) - wanted) < 4 * float(squares.std()) / root
    assert abs(float(slopes.mean())) < 4 * float(slopes.std()) / root


def _slopes(case: Made, example: Any, layer: Any, *, x: torch.Tensor) -> np.ndarray:
    """g'x for many drawn labels of one row, through the outputs' own slopes: one forward pass serves all draws."""
    task, module = case.task, layer.modules[0]
    wanted = [module.weight, *([module.bias] if layer.bias else [])]
    for parameter in case.model.parameters():
        parameter.requires_grad_(True)
    with twice_differentiable(case.model):
        outputs = task.outputs(case.model, task.collate([example]))
        dual = torch.zeros_like(outputs, requires_grad=True)
        weight, *bias = torch.autograd.grad(outputs, wanted, dual, create_graph=True)
        weight = weight.T if type(module).__name__ == "Conv1D" else weight.flatten(1)
        matrix = torch.cat([weight, bias[0][:, None]], 1) if bias else weight
        (pushed,) = torch.autograd.grad((matrix.flatten() * x).sum(), dual)
    many = task.collate([replace(example, id=f"draw {n}") for n in range(DRAWS)])
    free = outputs.detach().repeat(DRAWS, *(1 for _ in outputs.shape[1:])).requires_grad_(True)
    losses = task.losses(free, task.sample(free.detach(), many, 0))
    (slopes,) = torch.autograd.grad(losses.sum(), free)
    return (slopes * pushed).flatten(1).sum(1).numpy()


@every
def test_the_fingerprint_is_plain_data(name: str) -> None:
    found = made(name).task.fingerprint()
    assert found["task"] == made(name).task.name
    assert all(isinstance(value, (str, int, float, dict, type(None))) for value in found.values())
