"""K copies of a small model as one: every module with weights of its own holds K of them and works on K x B rows.

Modules without weights (attention products, activations, residual sums) treat the K x B rows as one larger batch, so
the model's own code runs unchanged. Linear maps and embeddings become batched products, other small modules (norms) a
``torch.func.vmap`` of themselves. The gradient of the sum of K losses is then each copy's own gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from whence.errors import ModelError
from whence.gradients.layers import Conv1D
from whence.tasks.base import Batch, Task


@dataclass
class Rows:
    """How many rows the forward pass under way has, all copies together: what a batch of one row spreads to."""

    copies: int
    count: int = 0


class Stacked(nn.Module):
    """A model of K copies. Inputs are the copies' rows one after the other: [K x B, ...].

    Attributes:
        inner: the model, its weights with a leading axis of K.
        names: parameter name of the single model -> stacked parameter.
    """

    def __init__(self, inner: nn.Module, names: Mapping[str, nn.Parameter], rows: Rows) -> None:
        super().__init__()
        self.inner, self.names, self.rows = inner, dict(names), rows
        self.config = getattr(inner, "config", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.rows.count = len(given[0])
        return self.inner(*args, **kwargs)

    def copy_into(self, model: nn.Module, member: int) -> nn.Module:
        """Write one copy's weights into a single model; returns it."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.names[name][member])
        return model


class _Linear(nn.Module):
    """K linear maps; ``transposed`` where the weight is stored [in, out]."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, transposed: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.transposed = weight, bias, transposed

    def forward(self, x: Tensor) -> Tensor:
        rows_KRI = x.reshape(len(self.weight), -1, x.shape[-1])
        weight_KIO = self.weight if self.transposed else self.weight.transpose(1, 2)
        out_KRO = torch.bmm(rows_KRI, weight_KIO)
        if self.bias is not None:
            out_KRO = out_KRO + self.bias[:, None]
        return out_KRO.reshape(*x.shape[:-1], out_KRO.shape[-1])


class _Embedding(nn.Module):
    """K tables. One row of numbers for everybody (positions) is looked up in each table."""

    def __init__(self, weight: nn.Parameter, rows: Rows) -> None:
        super().__init__()
        self.weight, self.rows = weight, rows

    def forward(self, numbers: Tensor) -> Tensor:
        copies, size = self.weight.shape[:2]
        numbers = numbers.expand(self.rows.count, *numbers.shape[1:]) if len(numbers) == 1 else numbers
        first = torch.arange(copies, device=numbers.device).repeat_interleave(len(numbers) // copies) * size
        return nn.functional.embedding(numbers + first.view(-1, *[1] * (numbers.dim() - 1)), self.weight.flatten(0, 1))


class _Leaf(nn.Module):
    """K copies of any other module that takes tensors with rows in front."""

    def __init__(self, module: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._module = [module]  # in a list: its own weights are not to be seen as parameters
        self._names = list(weights)
        self.weights = nn.ParameterList(weights.values())

    def forward(self, *given: Tensor) -> Tensor:
        def one(weights: dict[str, Tensor], parts: tuple[Tensor, ...]) -> Tensor:
            return functional_call(self._module[0], weights, parts)

        copies = len(self.weights[0])
        parts = tuple(x.reshape(copies, -1, *x.shape[1:]) for x in given)
        return vmap(one)(dict(zip(self._names, self.weights, strict=True)), parts).flatten(0, 1)


def stack(models: Sequence[nn.Module]) -> Stacked:
    """K models of one shape as one, on copies of their weights; what does not require gradients stays so.

    Raises:
        ModelError: a module whose weights cannot be stacked (it has both weights of its own and modules inside).
    """
    first, rows = models[0], Rows(len(models))
    modules = dict(first.named_modules(remove_duplicate=False))
    singles = [dict(m.named_parameters(remove_duplicate=False)) for m in models]
    shared: dict[int, nn.Parameter] = {}
    for name, parameter in singles[0].items():
        if id(parameter) not in shared:
            values = torch.stack([single[name].detach() for single in singles])
            shared[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    inner = deepcopy(first)
    for name, module in modules.items():
        own = {k: shared[id(p)] for k, p in module.named_parameters(recurse=False)}
        if not own:
            continue
        if next(module.children(), None) is not None or not name:
            raise ModelError(
                f"module {name or type(module).__name__} has weights of its own and modules inside",
                wanted="weights in linear maps, embeddings and norms",
                try_="retrain one model at a time",
            )
        inner.set_submodule(name, _replacement(module, own, rows))
    names = {name: shared[id(parameter)] for name, parameter in singles[0].items()}
    return Stacked(inner.eval(), names, rows)


def _replacement(module: nn.Module, own: Mapping[str, nn.Parameter], rows: Rows) -> nn.Module:
    if type(module) in (nn.Linear, Conv1D):
        return _Linear(own["weight"], own.get("bias"), isinstance(module, Conv1D))
    if type(module) is nn.Embedding:
        return _Embedding(own["weight"], rows)
    return _Leaf(deepcopy(module), own)


@torch.no_grad()
def agrees(task: Task, models: Sequence[nn.Module], batch: Batch, wide: Batch) -> bool:
    """Whether two shaken models give through their stack what each gives alone: the stack's licence.

    Args:
        task: how to run the model.
        models: two models of the shape; their weights are shaken in place.
        batch: some rows.
        wide: the same rows twice.
    """
    generator = torch.Generator().manual_seed(0)
    for model in models:
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * parameter.abs().mean() * 0.3)
    alone = torch.cat([task.measurements(task.outputs(model.eval(), batch), batch) for model in models])
    try:
        together = stack(models)
        found = task.measurements(task.outputs(together, wide), wide)
    except (ModelError, RuntimeError, TypeError, AttributeError, ValueError):
        return False
    limit = 1e-9 if alone.dtype == torch.float64 else 1e-3
    return bool(((found - alone).abs() <= limit * (1 + alone.abs())).all())
