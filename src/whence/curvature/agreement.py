"""Have enough rows been seen? A split-half answer in the unit that matters: the correlation of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.linalg.operators import Blocks, Gradients


def predicted_agreement(metric: Blocks, left: Blocks, right: Blocks, probe: Gradients) -> Tensor:
    """Predicted correlation of scores from the rows so far with scores from endless rows, one number per probe.

    Two halves of the rows precondition the probes; u and v are the results. Over training rows the two halves' scores
    correlate as r = ⟨u, Fv⟩ / sqrt(⟨u, Fu⟩⟨v, Fv⟩), F being the rows' second moment. With independent errors of equal
    size in the halves, both together correlate with the truth as sqrt(2r / (1+r)) (Spearman-Brown).

    Args:
        metric: F as estimated from all rows so far, undamped.
        left: damped inverse from one half of the rows.
        right: damped inverse from the other half.
        probe: gradients of P queries.
    """
    count = len(next(iter(probe.values())))
    uv, uu, vv = torch.zeros(3, count, dtype=torch.float64)
    for layer, grads in probe.items():
        op, u, v = metric.layers[layer], left.layers[layer].apply(grads), right.layers[layer].apply(grads)
        u_flat, v_flat = u.full().flatten(1), v.full().flatten(1)
        fu, fv = op.apply(u).full().flatten(1), op.apply(v).full().flatten(1)
        uv += (u_flat * fv).sum(1).double().cpu()
        uu += (u_flat * fu).sum(1).double().cpu()
        vv += (v_flat * fv).sum(1).double().cpu()
    r = (uv / (uu * vv).sqrt().clamp(min=1e-300)).clamp(min=0.0)
    return (2 * r / (1 + r)).sqrt()
