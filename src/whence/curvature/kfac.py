"""K-FAC: curvature of a layer as a Kronecker product of an output-gradient and an input covariance.

Every real position counts, prompt positions too (completion losses reach them through attention); padding does not.
G ⊗ A approximates the curvature **per example**: A is a mean over positions, G a sum over positions divided by
examples, so that with independent tokens the scale is right and absolute damping keeps its meaning.
Row-major: the matrix of a layer is kron(G, A). Factors that are too large are cut into diagonal blocks
(``linalg.partition``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from whence.curvature.base import Factors, LayerTensors, Memo, Method, Problem, Stage, Sums
from whence.linalg.matrix_batch import MatrixBatch, Outer
from whence.linalg.operators import Blocks
from whence.linalg.partition import LARGEST, Partition, Side, kronecker, side


def terms(
    _layer: str, grads: MatrixBatch, _factors: LayerTensors, memo: Memo, *, partition: Partition
) -> Mapping[str, Tensor]:
    """Sums over tokens of a aᵀ and g gᵀ."""
    assert isinstance(grads, Outer), "covariances read inputs and output gradients, not formed matrices"
    g, a = grads.g_BTO, grads.a_BTI
    inputs = memo.once(a, None, lambda: gram(a, partition))
    return {**inputs.stored("A"), **gram(g, partition).stored("G")}


def gram(rows_BTI: Tensor, partition: Partition) -> Side:
    """I x I in diagonal blocks: Σ over tokens of row rowᵀ."""
    flat = rows_BTI.flatten(0, 1)
    cut = partition.cut(flat.shape[1])
    if not cut:
        return Side((flat.square().sum(0),))
    return Side(tuple(part.T @ part for part in flat.split(list(cut), dim=1)))


def finish(sums: Sums, _factors: LayerTensors) -> LayerTensors:
    return {
        layer: {
            name: total / (sums.examples if name.startswith("G") else max(1, sums.positions[layer]))
            for name, total in terms_.items()
        }
        for layer, terms_ in sums.tensors.items()
    }


def blocks(factors: LayerTensors) -> Blocks:
    return Blocks({layer: kronecker(side(t, "G"), side(t, "A")) for layer, t in factors.items()})


def operator(factors: Factors, _problem: Problem) -> Blocks:
    return blocks(factors.tensors)


def covariance(partition: Partition) -> Stage:
    """The pass that sums both covariances of every layer, in blocks."""
    return Stage("covariance", lambda factors: factors, partial(terms, partition=partition), finish, blocks)


def method(*, blocks: int = 1, largest: int = LARGEST) -> Method:
    """K-FAC with other settings.

    Args:
        blocks: diagonal blocks of every factor.
        largest: longest block; see ``Partition``.
    """
    partition = Partition(blocks, largest).checked()
    return Method(
        name="kfac",
        idea="Kronecker product of input and output-gradient covariances per layer",
        reference="Martens & Grosse 2015, section 3; for sequences Eschenhagen et al. 2023 (expand)",
        passes="1 to fit (plus an eigendecomposition), 1 to score",
        memory="(O² + I²) per O x I layer; divided by blocks",
        exact_when="inputs and output gradients are independent and tokens contribute independently",
        stages=(covariance(partition),),
        operator=operator,
        notes=partition.notes,
    )


METHOD = method()
