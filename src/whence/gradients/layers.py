"""Which linear maps are attributed, and how each kind of module shows its inputs and output gradients.

Orientation is decided by **class**, never by shape: GPT-2's ``Conv1D`` stores [in, out], and a square matrix would hide
the mistake. Every kind shows its gradient as O x I like ``nn.Linear``; a bias is one more *column* (its input is 1).
"""

from __future__ import annotations

import fnmatch
import math
import os.path
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from whence.errors import LayerError, did_you_mean
from whence.gradients.experts import ExpertMap, expert_maps, slice_of

# Share of the parameters outside embeddings and head below which layers must be asked for by name.
LEAST_SIGHT = 0.5
Tokens = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class LayerKind:
    """How to read one class of module.

    Attributes:
        size: module -> (outputs, inputs) without bias.
        inputs: (module, input tensor) -> B x ... x I token rows.
        outputs: (module, output gradient) -> B x ... x O token rows.
        shares_inputs: whether the rows are the input tensor itself, so that modules fed the same tensor share them.
        routed: whether the module is fed some of the batch's tokens, and told which (an expert).
    """

    size: Callable[[nn.Module], tuple[int, int]]
    inputs: Tokens
    outputs: Tokens
    shares_inputs: bool = True
    routed: bool = False


def _same(_module: nn.Module, tensor: Tensor) -> Tensor:
    return tensor


def _conv_inputs(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.Conv2d)
    if isinstance(module.padding, str):  # "same" or "valid": the amounts that forward itself uses, right side larger
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        low = [r // 2 if module.padding == "same" else 0 for r in reach]
        high = [r - r // 2 if module.padding == "same" else 0 for r in reach]
        x = nn.functional.pad(x, (low[1], high[1], low[0], high[0]))
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = tuple(module.padding)
    patches = nn.functional.unfold(
        x, module.kernel_size, dilation=module.dilation, padding=padding, stride=module.stride
    )
    return patches.transpose(1, 2)  # [B, positions, I*kh*kw]


def _conv_outputs(_module: nn.Module, g: Tensor) -> Tensor:
    return g.flatten(2).transpose(1, 2)


def _weight_shape(module: nn.Module) -> torch.Size:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape


KINDS: Mapping[type[nn.Module], LayerKind] = {
    # in_features rather than the weight's shape: quantised subclasses store packed weights.
    nn.Linear: LayerKind(lambda m: (int(m.out_features), int(m.in_features)), _same, _same),  # type: ignore[arg-type]
    Conv1D: LayerKind(lambda m: (_weight_shape(m)[1], _weight_shape(m)[0]), _same, _same),
    nn.Conv2d: LayerKind(
        lambda m: (_weight_shape(m)[0], _weight_shape(m)[1:].numel()), _conv_inputs, _conv_outputs, False
    ),
    ExpertMap: LayerKind(lambda m: (int(m.out_features), int(m.in_features)), _same, _same, False, True),  # type: ignore[arg-type]
}


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind that can read this module, by class and its parents; None when there is none."""
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        return None
    return next((kind for cls, kind in KINDS.items() if isinstance(module, cls)), None)


@dataclass(frozen=True)
class Layer:
    """One followed weight: its module, or the modules that share it.

    Attributes:
        name: the (first) module's name in the model.
        modules: all modules whose weight is this tensor (tied weights are one layer).
        outputs, inputs: matrix size; inputs counts the bias column when there is one.
        bias: whether the last column is the bias.
        embeddings: embedding modules that share the weight (their gradient is part of the layer's).
    """

    name: str
    modules: tuple[nn.Module, ...]
    kind: LayerKind
    outputs: int
    inputs: int
    bias: bool
    embeddings: tuple[nn.Embedding, ...] = ()

    @property
    def size(self) -> int:
        return self.outputs * self.inputs


@dataclass(frozen=True)
class Layers:
    """The followed layers of a model and what is *not* followed.

    Attributes:
        layers: name -> layer, in the model's order.
        covered: share of the model's parameters inside the followed layers (of the adapter's, for a PEFT model).
        uncovered: (name, parameter count) of what is not attributed, largest first.
        notes: things to say aloud.
    """

    layers: Mapping[str, Layer]
    covered: float
    uncovered: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __iter__(self):
        return iter(self.layers.values())

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.layers)

    @property
    def parameters(self) -> int:
        return sum(layer.size for layer in self)


def find_layers(model: nn.Module, patterns: Sequence[str] = ()) -> Layers:
    """Choose the linear maps to attribute to.

    Args:
        model: any module.
        patterns: shell-like patterns over module names (``*.mlp.*``); ``!pattern`` excludes. Without an including
            pattern the default is every linear map inside the model's blocks (a PEFT model: its adapter matrices),
            never the vocabulary head, which must be named.

    Raises:
        LayerError: a pattern that matches nothing (near matches are listed), no layer at all, or, unless patterns name
            the layers, less than half of the parameters outside embeddings and head in maps that can be followed.
    """
    candidates = _candidates(model)
    if not candidates:
        kinds = ", ".join(cls.__name__ for cls in KINDS)
        raise LayerError(f"{type(model).__name__} has no linear maps", wanted=f"at least one of: {kinds}")
    chosen = _choose(model, candidates, patterns)
    layers = _with_coverage(model, _merge_shared(model, chosen, candidates))
    if not any(not p.startswith("!") for p in patterns):
        _check_sight(model, layers)
    return layers


def _candidates(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if kind_of(module) is not None:
            found[name] = module
        for parameter, maps in expert_maps(module).items():
            found |= {f"{name}.{parameter}.{n}": expert for n, expert in enumerate(maps)}
    return found


def _choose(model: nn.Module, candidates: Mapping[str, nn.Module], patterns: Sequence[str]) -> list[str]:
    include = [p for p in patterns if not p.startswith("!")]
    exclude = [p[1:] for p in patterns if p.startswith("!")]
    for pattern in [*include, *exclude]:
        if not fnmatch.filter(candidates, pattern):
            raise LayerError(
                f"layer pattern {pattern!r} matches nothing among {len(candidates)} linear maps",
                wanted="a shell-like pattern over module names, such as '*.mlp.*'",
                try_=did_you_mean(pattern, candidates),
            )
    names = (
        [n for n in candidates if any(fnmatch.fnmatchcase(n, p) for p in include)]
        if include
        else _default(model, candidates)
    )
    names = [n for n in names if not any(fnmatch.fnmatchcase(n, p) for p in exclude)]
    if not names:
        raise LayerError(
            "no layers are left to attribute to", wanted="at least one linear map", try_=did_you_mean("", candidates)
        )
    return names


def _default(model: nn.Module, candidates: Mapping[str, nn.Module]) -> list[str]:
    adapter = [n for n in candidates if _is_adapter(n)]
    if adapter:
        return _in_use(model, adapter)
    blocks = [n for n in candidates if _inside_blocks(model, n)]
    if blocks:
        return blocks
    head = _head(model)
    plain = [n for n, m in candidates.items() if m is not head]
    return plain or list(candidates)


def _is_adapter(name: str) -> bool:
    """PEFT keeps its matrices in ModuleDicts named lora_A / lora_B, keyed by the adapter's name."""
    return any(part in ("lora_A", "lora_B") for part in name.split("."))


def _in_use(model: nn.Module, adapter: list[str]) -> list[str]:
    """The matrices of the adapters that are switched on: the others take no part in the answer, nor in its gradient."""
    active: Any = getattr(model, "active_adapters", None)
    active = active() if callable(active) else active
    chosen = [n for n in adapter if n.rpartition(".")[2] in active] if isinstance(active, list) else []
    return chosen or adapter


def _inside_blocks(model: nn.Module, name: str) -> bool:
    """Whether some ancestor is an entry of an ``nn.ModuleList``: how every transformer stacks its blocks."""
    module: Any = model
    for part in name.split(".")[:-1]:
        module = getattr(module, part)
        if isinstance(module, nn.ModuleList):
            return True
    return False


def _head(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if callable(getter) else None  # type: ignore[return-value]


def _merge_shared(model: nn.Module, names: Iterable[str], candidates: Mapping[str, nn.Module]) -> dict[str, Layer]:
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    layers: dict[str, Layer] = {}
    seen: set[int] = set()
    for name in names:
        module = candidates[name]
        if isinstance(module, ExpertMap):
            layers[name] = _layer(name, (module,), ())
            continue
        weight = module.weight
        if id(weight) in seen:
            continue
        seen.add(id(weight))
        sharing = tuple(m for m in candidates.values() if not isinstance(m, ExpertMap) and m.weight is weight)
        layers[name] = _layer(name, sharing, tuple(e for e in embeddings if e.weight is weight))
    return layers


def _layer(name: str, modules: tuple[nn.Module, ...], embeddings: tuple[nn.Embedding, ...]) -> Layer:
    kind = kind_of(modules[0])
    assert kind is not None
    biases = {id(getattr(m, "bias", None)) for m in modules}
    if len(biases) > 1:
        raise LayerError(
            f"{name} shares its weight with modules that have other biases",
            wanted="tied modules with the same bias or none",
            try_=f"--layers '!{name}'",
        )
    bias = getattr(modules[0], "bias", None) is not None
    if bias and embeddings:
        raise LayerError(
            f"{name} is tied to an embedding and has a bias",
            wanted="a tied map without bias",
            try_=f"--layers '!{name}'",
        )
    outputs, inputs = kind.size(modules[0])
    return Layer(name, modules, kind, outputs, inputs + bias, bias, embeddings)


def numbers_in(parameter: Tensor) -> int:
    """How many weights a parameter stands for; 4-bit ones are packed two to a byte."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return parameter.numel() if shape is None else math.prod(shape)


def _check_sight(model: nn.Module, layers: Layers) -> None:
    """Refuse to speak for a model most of whose parameters cannot be seen (experts of an unknown kind, say).

    Embeddings and the vocabulary head do not count: they are left out by choice, and said so.

    Raises:
        LayerError: names what is not followed.
    """
    outside = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    outside |= {id(p) for p in getattr(_head(model), "parameters", tuple)()}
    inside = {name: p.numel() for name, p in model.named_parameters() if id(p) not in outside}
    unseen = [(name, count) for name, count in layers.uncovered if name in inside]
    share = 1 - sum(count for _, count in unseen) / max(1, sum(inside.values()))
    if share < LEAST_SIGHT and not any(_is_adapter(name) for name in layers.names):
        stem = os.path.commonpath([name.replace(".", "/") for name in layers.names]).replace("/", ".")
        raise LayerError(
            f"only {share:.1%} of this {type(model).__name__} can be followed (embeddings and head aside); not: "
            + ", ".join(f"{name} ({count:,})" for name, count in unseen[:3]),
            wanted=f"at least {LEAST_SIGHT:.0%}, or layers that you name",
            try_=f"--layers '{f'{stem}.*' if stem else '*'}' to attribute to what can be followed",
        )


def parameters_of(layer: Layer) -> list[nn.Parameter]:
    """The parameters whose gradients ``matrix_of`` makes the layer's matrix from; an expert's are its block's."""
    module = layer.modules[0]
    if isinstance(module, ExpertMap):
        return module.fused
    names = ("weight", "bias") if layer.bias else ("weight",)
    return [cast("nn.Parameter", getattr(module, name)) for name in names]


def matrix_of(layer: Layer, grads: Sequence[Tensor]) -> Tensor:
    """O x I from gradients of ``parameters_of``, oriented by class. The bias is the last column."""
    module = layer.modules[0]
    parts = slice_of(module, list(grads)) if isinstance(module, ExpertMap) else list(grads)
    weight = parts[0].T if isinstance(module, Conv1D) else parts[0].flatten(1)
    return torch.cat([weight, parts[1][:, None]], dim=1) if layer.bias else weight


def _with_coverage(model: nn.Module, layers: dict[str, Layer]) -> Layers:
    adapter = any(_is_adapter(n) for n in layers)
    followed: dict[int, int] = {}  # id of a parameter -> how many of its numbers are followed
    for layer in layers.values():
        module = layer.modules[0]
        shared = len(module.fused[0]) if isinstance(module, ExpertMap) else 1
        own = module.fused if isinstance(module, ExpertMap) else module.parameters(recurse=False)
        for p in own:
            followed[id(p)] = followed.get(id(p), 0) + p.numel() // shared
    rest: dict[str, int] = {}
    total, base, kinds = 0, 0, set()
    for name, parameter in model.named_parameters():
        if adapter and not parameter.requires_grad and "lora_" not in name:
            base += numbers_in(parameter)  # the frozen base of an adapter was not trained
            kinds |= {str(parameter.dtype).removeprefix("torch.")} if not parameter.is_floating_point() else set()
            continue
        total += parameter.numel()
        if left := parameter.numel() - followed.get(id(parameter), 0):
            rest[name] = left
    covered = 1 - sum(rest.values()) / max(1, total)
    largest = tuple(sorted(rest.items(), key=lambda item: -item[1]))
    notes = (
        (f"{len(rest)} parameter tensors outside the followed layers (embeddings, norms, heads) are not attributed",)
        if rest
        else ()
    )
    if base:
        stored = f", some of it stored as {' and '.join(sorted(kinds))}" if kinds else ""
        notes += (f"the adapter's base ({base:,} frozen parameters{stored}) is not attributed: it was not trained",)
    return Layers(layers, covered, largest, notes, {n: (lay.outputs, lay.inputs) for n, lay in layers.items()})
