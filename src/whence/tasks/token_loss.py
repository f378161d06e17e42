"""Negative log-likelihood per token, without ever holding a second tensor over the vocabulary besides its gradient.

B x T x V logits are the largest tensor of a run. The usual way keeps log probabilities for the backward pass and makes
two more tensors of that size inside it; here the logits themselves are kept, and the backward pass writes
(softmax - one-hot) chunk by chunk, in the logits' own dtype but computed in float32 or better. It is also faster,
because a chunk stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_CHUNK_VALUES = 1 << 18  # 1 MB of float32: stays in a core's cache
_CHUNK_VALUES_ACCELERATOR = 1 << 26


def token_loss(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    """R losses in nats, float32 or better; 0 where the target is negative. Differentiable twice, in the logits."""
    return _TokenLoss.apply(logits_RV, targets_R)[0]  # type: ignore[no-any-return]


class _TokenLoss(torch.autograd.Function):
    """``cross_entropy(reduction="none")``; logarithms of the partition sums are its second result."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits_RV.dtype, torch.float32)
        partition_R = torch.cat([logits_RV[part].to(wide).logsumexp(-1) for part in _chunks(logits_RV)])
        at_target_R = logits_RV.gather(1, targets_R.clamp(min=0)[:, None])[:, 0].to(wide)
        return torch.where(targets_R >= 0, partition_R - at_target_R, 0.0), partition_R

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        logits_RV, targets_R, partition_R = ctx.saved_tensors
        slope_R = torch.where(targets_R >= 0, slopes[0], 0.0)
        if torch.is_grad_enabled():  # a graph of this very gradient is wanted: Hessian-vector products
            return _differentiable(logits_RV, targets_R, slope_R), None
        gradient_RV, at_target_R1 = torch.empty_like(logits_RV), targets_R.clamp(min=0)[:, None]
        for part in _chunks(logits_RV):
            slope_C1 = slope_R[part, None]
            rows_CV = (logits_RV[part].to(slope_R.dtype) - partition_R[part, None]).exp_().mul_(slope_C1)
            gradient_RV[part] = rows_CV.scatter_add_(1, at_target_R1[part], -slope_C1)  # rounded once, at the end
        return gradient_RV, None


def _differentiable(logits_RV: Tensor, targets_R: Tensor, slope_R: Tensor) -> Tensor:
    probabilities = logits_RV.to(slope_R.dtype).softmax(-1)
    hit = functional.one_hot(targets_R.clamp(min=0), logits_RV.shape[-1])
    return ((probabilities - hit) * slope_R[:, None]).to(logits_RV.dtype)


def _chunks(logits_RV: Tensor) -> Iterator[slice]:
    values = _CHUNK_VALUES if logits_RV.device.type == "cpu" else _CHUNK_VALUES_ACCELERATOR
    step = max(1, values // logits_RV.shape[-1])
    for start in range(0, len(logits_RV), step):
        yield slice(start, start + step)
