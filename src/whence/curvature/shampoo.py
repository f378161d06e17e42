"""Eigenvalue-corrected Shampoo: EK-FAC in the eigenbasis of Shampoo's factors.

Shampoo's factors are the second moments of each example's *gradient matrix* X (summed over its tokens): E[X Xᵀ] and
E[Xᵀ X]. K-FAC's count every token alone. The second pass is EK-FAC's, so that only the basis differs, and the scale
and power of Shampoo's product do not matter.

Here X is the gradient of one example, not of a batch as in the optimiser (and in Bergson): its moments are those of
the Fisher, and no batch size can change them. On one-token rows the factors are those of TK-FAC: A weighted by |g|²,
G by |a|².
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from whence.curvature.base import LayerTensors, Memo, Method, Stage, Sums
from whence.curvature.ekfac import EIGENVALUES, operator
from whence.curvature.kfac import blocks as kronecker_blocks
from whence.linalg.matrix_batch import MatrixBatch, Outer
from whence.linalg.partition import LARGEST, Partition, Side, side


def terms(
    _layer: str, grads: MatrixBatch, _factors: LayerTensors, _memo: Memo, *, partition: Partition
) -> Mapping[str, Tensor]:
    """Sums over examples of Xᵀ X and X Xᵀ, from the tokens: X Xᵀ = Σ_ts (a_t · a_s) g_t g_sᵀ."""
    assert isinstance(grads, Outer), "a fit reads inputs and output gradients, not formed matrices"
    g, a = grads.g_BTO, grads.a_BTI
    weighted_a = (g @ g.transpose(1, 2)) @ a
    weighted_g = (a @ a.transpose(1, 2)) @ g
    return {**moment(a, weighted_a, partition).stored("A"), **moment(g, weighted_g, partition).stored("G")}


def moment(rows_BTI: Tensor, weighted_BTI: Tensor, partition: Partition) -> Side:
    """I x I in diagonal blocks: Σ over tokens of row weightedᵀ."""
    left, right = rows_BTI.flatten(0, 1), weighted_BTI.flatten(0, 1)
    cut = list(partition.cut(left.shape[1]))
    if not cut:
        return Side(((left * right).sum(0),))
    return Side(tuple(x.T @ y for x, y in zip(left.split(cut, 1), right.split(cut, 1), strict=True)))


def finish(sums: Sums, _factors: LayerTensors) -> LayerTensors:
    """E[X Xᵀ] and E[Xᵀ X] / trace: a product of the Fisher's own trace."""
    found = {}
    for layer, totals in sums.tensors.items():
        trace = side(totals, "A").diagonal().sum()
        scale = {"A": trace.clamp(min=torch.finfo(trace.dtype).tiny), "G": sums.examples}
        found[layer] = {name: _symmetric(total / scale[name[0]]) for name, total in totals.items()}
    return found


def _symmetric(moment: Tensor) -> Tensor:
    return (moment + moment.T) / 2 if moment.dim() == 2 else moment


def method(*, blocks: int = 1, largest: int = LARGEST) -> Method:
    """Eigenvalue-corrected Shampoo with other settings.

    Args:
        blocks: diagonal blocks of every factor.
        largest: longest block; see ``Partition``.
    """
    partition = Partition(blocks, largest).checked()
    factors = Stage("moments", lambda earlier: earlier, partial(terms, partition=partition), finish, kronecker_blocks)
    return Method(
        name="shampoo",
        idea="EK-FAC in the eigenbasis of Shampoo's factors (moments of whole gradients, not of tokens)",
        reference="Gupta et al. 2018; corrected eigenvalues: Vyas et al. 2024 (SOAP) and Bergson's EV-Shampoo",
        passes="2 to fit (plus an eigendecomposition), 1 to score",
        memory="as ekfac",
        exact_when="the Fisher is diagonal in the Kronecker eigenbasis",
        stages=(factors, EIGENVALUES),
        operator=operator,
        notes=partition.notes,
    )


METHOD = method()
