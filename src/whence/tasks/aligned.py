"""Logits and labels of the same positions: what tasks have in common whose position t prices the label at t.

Language models are not among them: their position t prices token t + 1.
"""

from __future__ import annotations

from torch import Tensor

from whence.tasks.base import Batch
from whence.tasks.causal_lm import IGNORE
from whence.tasks.sampling import row_uniforms, sample_categorical
from whence.tasks.token_loss import token_loss


def aligned_losses(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """B losses in nats: each the sum over the row's labels; -100 carries none."""
    return token_loss(logits_BTV.flatten(0, 1), batch.labels.flatten()).view(batch.labels.shape).sum(1)


def aligned_sample(logits_BTV: Tensor, batch: Batch, seed: int) -> Batch:
    """The batch with each label drawn from the model, seeded by (seed, row id); labels of -100 stay."""
    where = batch.labels != IGNORE
    labels = batch.labels.clone()
    labels[where] = sample_categorical(logits_BTV.detach(), where, row_uniforms(seed, batch.ids, where.shape[1]))
    return batch.with_labels(labels)
