"""What Adam would do with one row: the train side of LESS (Xia et al. 2024, section 3.2).

Γ(g) = m' / (√v' + ε) with m' = β₁ m + (1 - β₁) g and v' = β₂ v + (1 - β₂) g², the moments after a step on that row
alone. No bias correction, and ε outside the root as in the paper (their code has it inside). Both moments are O x I
like the gradient of a layer, its bias as the last column; the result must be formed, so any projection comes after it.

Moments are read from a Trainer's ``optimizer.pt`` by torch's restricted unpickler, which builds tensors and plain
values and nothing else; even so the file is a pickle, and is opened only where the user allowed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import ModelError
from whence.gradients.layers import Layer, Layers
from whence.linalg import draws
from whence.linalg.matrix_batch import Full, MatrixBatch

OPTIMIZER = "optimizer.pt"
# HF's Trainer puts weights that decay in a first group and these in a second (transformers 4.48 and later)
NO_DECAY = ("bias", "layernorm", "rmsnorm")


@dataclass(frozen=True, eq=False)
class Moments:
    """Adam's state by parameter name.

    Attributes:
        first, second: parameter name -> exponential means of gradients and of their squares.
        betas: (β₁, β₂).
        epsilon: ε.
    """

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    betas: tuple[float, float]
    epsilon: float


@dataclass(frozen=True, eq=False)
class AdamStep:
    """The transform Γ of every layer's gradients; forms the matrices.

    Attributes:
        first, second: layer -> [O, I] moments.
        betas, epsilon: of the optimiser.
        about: what it was made of.
    """

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    betas: tuple[float, float]
    epsilon: float
    about: Mapping[str, Any]

    def one(self, layer: str, x: MatrixBatch) -> MatrixBatch:
        """Γ of one layer's gradients."""
        grads = x.full()
        kind = torch.promote_types(grads.dtype, torch.float32)
        m, v = (side[layer].to(device=grads.device, dtype=kind) for side in (self.first, self.second))
        grads = grads.to(kind)
        first = self.betas[0] * m + (1 - self.betas[0]) * grads
        second = self.betas[1] * v + (1 - self.betas[1]) * grads.square()
        return Full(first / (second.sqrt() + self.epsilon))


def adam_step(moments: Moments, model: nn.Module, layers: Layers) -> AdamStep:
    """The moments laid out as each layer's gradient.

    Raises:
        ModelError: a followed weight that the optimiser does not know (it was frozen in training).
    """
    names = {id(p): name for name, p in model.named_parameters()}
    sides = [
        {layer.name: _laid_out(side, layer, names) for layer in layers} for side in (moments.first, moments.second)
    ]
    digest = draws.digest(*(f"{n}:{float(v.double().sum()):.9e}" for n, v in sides[1].items()))
    sizes = {name: [*size, *size] for name, size in layers.sizes.items()}
    about = {"kind": "adam_step", "betas": list(moments.betas), "epsilon": moments.epsilon, "moments": digest}
    return AdamStep(sides[0], sides[1], moments.betas, moments.epsilon, {**about, "layers": sizes})


def _laid_out(side: Mapping[str, Tensor], layer: Layer, names: Mapping[int, str]) -> Tensor:
    """One layer's moments as O x I, transposed where the module stores [in, out], the bias as last column."""
    module = layer.modules[0]
    found = _of(side, names, module.weight, layer.name)
    found = found.reshape(found.shape[0], -1)  # a convolution's kernel
    wanted = (layer.outputs, layer.inputs - layer.bias)
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        found = found.T  # Conv1D, decided by class as everywhere
    if tuple(found.shape) != wanted:
        raise ModelError(
            f"Adam's state of {layer.name} is {tuple(found.shape)}, the layer {wanted}", wanted="its state"
        )
    if not layer.bias:
        return found
    return torch.cat([found, _of(side, names, module.bias, layer.name).reshape(-1, 1)], dim=1)


def _of(side: Mapping[str, Tensor], names: Mapping[int, str], parameter: Any, layer: str) -> Tensor:
    name = names.get(id(parameter), "")
    if name not in side:
        raise ModelError(
            f"the optimiser has no state of {name or layer}",
            wanted="moments of every followed weight",
            try_="--layers with those that were trained",
        )
    return side[name]


# --- from disk -----------------------------------------------------------------------------------------------------


def read_moments(folder: Path, model: nn.Module, *, allowed: bool) -> Moments:
    """Adam's moments from the ``optimizer.pt`` of a checkpoint, by parameter name.

    Trainers number parameters group by group: those that decay, then those that do not. The numbering is rebuilt from
    the model and every shape compared; a plain ``AdamW(model.parameters())`` is recognised as well.

    Args:
        folder: the checkpoint.
        model: loaded from it, for names, order and shapes of its parameters.
        allowed: whether the user allowed the restricted unpickler to read it.

    Raises:
        ModelError: no such file, not allowed, no Adam state in it, or one of another model.
    """
    path = folder / OPTIMIZER
    if not path.is_file():
        raise ModelError(
            f"{folder} has no {OPTIMIZER}", wanted="Adam's state", try_="save_only_model=False when training"
        )
    if not allowed:
        raise ModelError(
            f"{path} is a pickle",
            wanted="your word that it may be read (by torch's restricted unpickler: tensors and plain values only)",
            try_="--allow-pickle-weights",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and end-of-file errors of half a dozen types
        raise ModelError(
            f"{path} cannot be read safely: {str(error).splitlines()[0][:200]}", wanted="tensors and plain values only"
        ) from error
    return moments_of(state, model, place=str(path))


def moments_of(state: Any, model: nn.Module, *, place: str = "the optimiser") -> Moments:
    """Moments by parameter name from an optimiser's ``state_dict()``.

    Raises:
        ModelError: no Adam state, or one whose shapes fit no known order of this model's parameters.
    """
    try:
        groups, entries = state["param_groups"], state["state"]
        numbers = [int(n) for group in groups for n in group["params"]]
        betas, epsilon = groups[0]["betas"], float(groups[0]["eps"])
        shapes = {n: tuple(entries[n]["exp_avg"].shape) for n in numbers if n in entries}
        betas = (float(betas[0]), float(betas[1]))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise ModelError(f"{place} holds no state of Adam ({error!r})", wanted="exp_avg and exp_avg_sq") from error
    for names in _orders(model):
        known = dict(model.named_parameters())
        if len(names) == len(numbers) and all(
            tuple(known[name].shape) == shapes[n] for name, n in zip(names, numbers, strict=True) if n in shapes
        ):
            first, second = (
                {name: entries[n][key] for name, n in zip(names, numbers, strict=True) if n in shapes}
                for key in ("exp_avg", "exp_avg_sq")
            )
            return Moments(first, second, betas, epsilon)
    raise ModelError(
        f"{place} has {len(numbers)} parameters that fit no order of this model's",
        wanted="the state of an AdamW of this very model (Trainer's two groups, or one)",
    )


def _orders(model: nn.Module) -> Sequence[list[str]]:
    """Orders in which trainers hand parameters to the optimiser."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    still = {name for name in names if _never_decays(model, name)}
    return [name for name in names if name not in still] + [name for name in names if name in still], names


def _never_decays(model: nn.Module, name: str) -> bool:
    """Biases, and weights of modules that are norms by class or by name."""
    parts = name.lower().split(".")
    owner = model.get_submodule(name.rpartition(".")[0])
    named = any(p == "norm" or p.endswith("_norm") or any(w in p for w in NO_DECAY) for p in parts)
    return named or isinstance(owner, nn.LayerNorm)
