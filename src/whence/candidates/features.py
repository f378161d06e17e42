"""What one forward pass of the model says about rows: mean embeddings, mean last activations, losses.

Cosines of them are the cheapest filter that knows the model at all, and a control beside every influence ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.gradients.capture import frozen
from whence.gradients.source import LiveGradients
from whence.tasks.base import Batch, move


@dataclass(frozen=True)
class Features:
    """What one forward pass shows of N rows.

    Attributes:
        vectors: ``embedding`` and ``activation`` -> N x D, means over the row's tokens.
        losses: N nats.
    """

    vectors: Mapping[str, np.ndarray]
    losses: np.ndarray


def forward_features(source: LiveGradients) -> Features:
    """Mean embeddings, mean last activations and losses of every row, in the source's order."""
    kept: dict[str, dict[str, np.ndarray]] = {"embedding": {}, "activation": {}}
    losses: dict[str, float] = {}
    device = next((p.device for p in source.model.parameters()), torch.device("cpu"))
    with frozen(source.model), torch.no_grad():
        for group in source.plan.batches:
            batch = move(source.task.collate([source.examples[i] for i in group]), device)
            seen: dict[str, Tensor] = {}
            with _listening(source, seen):
                found = source.task.losses(source.task.outputs(source.model, batch), batch)
            losses.update(zip(batch.ids, found.double().tolist(), strict=True))
            if "embedding" not in seen and "features" in batch.inputs:
                seen["embedding"] = batch.inputs["features"]
            for name, values in seen.items():
                kept[name].update(zip(batch.ids, _pooled(values, batch).double().cpu().numpy(), strict=True))
    vectors = {n: np.stack([by_id[id_] for id_ in source.ids]) for n, by_id in kept.items() if by_id}
    return Features(vectors, np.array([losses[id_] for id_ in source.ids]))


def _listening(source: LiveGradients, seen: dict[str, Tensor]) -> ExitStack:
    """Hooks that note what the embeddings give out and what the last layer is given, while entered."""
    hooks = ExitStack()
    words_in, head = (_module(source.model, name) for name in ("get_input_embeddings", "get_output_embeddings"))
    if words_in is not None:

        def embedded(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen.setdefault("embedding", output)

        hooks.callback(words_in.register_forward_hook(embedded).remove)
    last = head if head is not None else source.layers.layers[source.layers.names[-1]].modules[0]

    def arrived(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen["activation"] = inputs[0]

    hooks.callback(last.register_forward_pre_hook(arrived).remove)
    return hooks


def _module(model: nn.Module, getter: str) -> nn.Module | None:
    ask: Callable[[], Any] | None = getattr(model, getter, None)
    try:
        found = ask() if ask is not None else None
    except (AttributeError, NotImplementedError):  # transformers' answer for models that have none
        return None
    return found if isinstance(found, nn.Module) else None


def _pooled(values: Tensor, batch: Batch) -> Tensor:
    """[B, D] means over the real tokens of [B, T, D]; other shapes flattened."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if values.ndim == 3 and batch.mask is not None and values.shape[:2] == batch.mask.shape:
        weights_BT1 = batch.mask.to(values.dtype)[:, :, None]
        return (values * weights_BT1).sum(1) / weights_BT1.sum(1)
    return values.reshape(len(batch), -1)


def cosines(left_QD: np.ndarray, right_ND: np.ndarray) -> np.ndarray:
    """Q x N cosines about the mean of the right side; 0 for a vector of length 0."""
    mean_D = np.nan_to_num(right_ND).mean(0)
    left, right = (_units(side - mean_D) for side in (left_QD, right_ND))
    return left @ right.T


def _units(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1.0, norms)
