"""Have enough rows been seen? A split-half answer: do two halves of the rows precondition a query alike?"""

from __future__ import annotations

import torch
from torch import Tensor

from whence.linalg.operators import Blocks, Gradients


def predicted_agreement(left: Blocks, right: Blocks, probe: Gradients) -> Tensor:
    """Predicted cosine of preconditioned queries from the rows so far with those from endless rows, one per probe.

    Two halves of the rows precondition the probes; their results have cosine r. With independent errors of equal size
    in the halves, both halves together have cosine sqrt(2r / (1+r)) with the truth (Spearman-Brown).

    The cosine is the plain one. In the metric of the curvature it would predict the correlation of *scores*, but that
    metric gives one row with a massive activation the last word, and such rows are in one half only.

    Args:
        left: damped inverse from one half of the rows.
        right: damped inverse from the other half.
        probe: gradients of P queries.
    """
    count = len(next(iter(probe.values())))
    uv, uu, vv = torch.zeros(3, count, dtype=torch.float64)
    for layer, grads in probe.items():
        u, v = (side.layers[layer].apply(grads).full().flatten(1) for side in (left, right))
        uv += (u * v).sum(1).double().cpu()
        uu += (u * u).sum(1).double().cpu()
        vv += (v * v).sum(1).double().cpu()
    r = (uv / (uu * vv).sqrt().clamp(min=1e-300)).clamp(min=0.0)
    return (2 * r / (1 + r)).sqrt()
