"""Mixtures of experts whose weights are one 3-D parameter: every expert's maps seen as linear layers of their own.

Transformers stores the experts of a block as E x O x I tensors and multiplies them in one grouped product, so that no
module shows an expert's inputs and output gradients. ``unfused`` runs the same arithmetic expert by expert through
``ExpertMap`` modules, on which hooks see what they see on ``nn.Linear`` — except that the rows are the tokens routed to
this expert, in the order of the batch; the second argument says which tokens those are (``grouped`` sorts them by
example). An expert that no token chose has gradient 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

GATED, PLAIN, DOWN = "gate_up_proj", "up_proj", "down_proj"


class ExpertMap(nn.Module):
    """One linear map of one expert: a view of the fused parameter, looked up at every call.

    Attributes:
        owner: the module that holds the parameter (not registered here: it is not ours).
        parameter: its name there.
        expert: which slice.
    """

    def __init__(self, owner: nn.Module, parameter: str, expert: int) -> None:
        super().__init__()
        self._owner = [owner]  # in a list, so that nn.Module does not register it as a child
        self.parameter, self.expert = parameter, expert
        stored = getattr(owner, parameter).shape[1:]
        self.transposed = bool(getattr(owner, "is_transposed", False))
        self.in_features, self.out_features = stored if self.transposed else tuple(reversed(stored))

    @property
    def owner(self) -> Any:
        """The module with the fused parameters."""
        return self._owner[0]

    @property
    def weight(self) -> Tensor:
        """O x I of this expert."""
        slice_ = getattr(self.owner, self.parameter)[self.expert]
        return slice_.T if self.transposed else slice_

    @property
    def bias(self) -> Tensor | None:
        """O of this expert, if the experts have biases."""
        stored = getattr(self.owner, f"{self.parameter}_bias", None)
        return None if stored is None else stored[self.expert]

    @property
    def fused(self) -> list[nn.Parameter]:
        """The parameters that this map is a slice of."""
        own = getattr(self.owner, f"{self.parameter}_bias", None)
        return [getattr(self.owner, self.parameter), *([] if own is None else [own])]

    def forward(self, rows: Tensor, _tokens: Tensor) -> Tensor:
        """``rows``: the inputs of the routed tokens; ``_tokens``: which those are, for hooks."""
        return nn.functional.linear(rows, self.weight, self.bias)


_MAPS: WeakKeyDictionary[nn.Module, dict[str, list[ExpertMap]]] = WeakKeyDictionary()


def expert_maps(module: nn.Module) -> dict[str, list[ExpertMap]]:
    """Parameter name -> its experts' maps; empty for a module that is no fused mixture this file can run."""
    if not _runnable(module):
        return {}
    if module not in _MAPS:
        up = GATED if hasattr(module, GATED) else PLAIN
        count = len(getattr(module, DOWN))
        _MAPS[module] = {name: [ExpertMap(module, name, n) for n in range(count)] for name in (up, DOWN)}
    return _MAPS[module]


def _runnable(module: nn.Module) -> bool:
    """As transformers' ``use_experts_implementation`` marks them, on one device."""
    named = dict(module.named_parameters(recurse=False))
    weights = [named.get(DOWN), named.get(GATED, named.get(PLAIN))]
    if any(w is None or w.dim() != 3 for w in weights):
        return False
    gate = "_apply_gate" if getattr(module, "has_gate", True) else "act_fn"
    known = all(hasattr(module, name) for name in ("is_transposed", "has_bias", gate))
    return known and not getattr(module, "_is_expert_parallel", False)


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Fused mixtures run expert by expert inside; the results are the same up to rounding."""
    changed = [module for module in model.modules() if expert_maps(module)]
    for module in changed:
        module.forward = _Forward(module)  # on the instance; the class keeps its own
    try:
        yield
    finally:
        for module in changed:
            del module.forward


class _Forward:
    """The forward pass of a mixture, with one call of an ``ExpertMap`` per expert and map."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        maps = expert_maps(self.module)
        up = maps.get(GATED, maps.get(PLAIN))
        assert up is not None
        choices = top_k_index.shape[-1]
        chosen = top_k_index.reshape(-1)
        order = torch.argsort(chosen, stable=True)
        # indices from len(up) on are experts that live elsewhere or do nothing: they add 0
        counts = torch.bincount(chosen, minlength=len(up))[: len(up)].tolist()
        weights, parts = top_k_weights.reshape(-1), []
        for expert, slots in enumerate(order[: sum(counts)].split(counts)):
            if len(slots):
                tokens = slots // choices
                inner = self._activated(up[expert](hidden_states[tokens], tokens))
                parts.append(self._after(maps[DOWN][expert](inner, tokens)) * weights[slots, None])
        added = hidden_states.new_zeros(len(chosen), hidden_states.shape[-1], dtype=_widest(parts, hidden_states))
        if parts:
            added = added.index_copy(0, order[: sum(counts)], torch.cat(parts).to(added.dtype))
        return added.view(-1, choices, added.shape[-1]).sum(1).to(hidden_states.dtype)

    def _activated(self, projected: Tensor) -> Tensor:
        gated = getattr(self.module, "has_gate", True)
        return self.module._apply_gate(projected) if gated else self.module.act_fn(projected)

    def _after(self, projected: Tensor) -> Tensor:
        normed = getattr(self.module, "has_post_expert_norm", False)
        return self.module.post_expert_norm(projected) if normed else projected


def _widest(parts: list[Tensor], default: Tensor) -> torch.dtype:
    return parts[0].dtype if parts else default.dtype


def grouped(rows: Tensor, tokens: Tensor, *, examples: int, length: int, mask: Tensor | None) -> tuple[Tensor, int]:
    """Rows of routed tokens as B x K x features, K the most that any example has; and how many are real.

    Args:
        rows: n x features, one per routed token.
        tokens: n positions in the flattened B x T batch, ascending.
        examples: B.
        length: T.
        mask: B x T real tokens; rows of padding are left out.
    """
    if mask is not None:
        real = mask.reshape(-1)[tokens].bool()
        rows, tokens = rows[real], tokens[real]
    example = tokens // length
    counts = torch.bincount(example, minlength=examples)
    place = torch.arange(len(tokens), device=tokens.device) - (counts.cumsum(0) - counts)[example]
    packed = rows.new_zeros(examples, int(counts.max()) if len(tokens) else 0, rows.shape[-1])
    return packed.index_put((example, place), rows), len(tokens)


def slice_of(module: ExpertMap, grads: list[Tensor]) -> list[Tensor]:
    """The expert's part of gradients of its ``fused`` parameters: O x I, and O for a bias."""
    weight, *bias = (cast("Tensor", g[module.expert]) for g in grads)
    return [weight.T if module.transposed else weight, *bias]
