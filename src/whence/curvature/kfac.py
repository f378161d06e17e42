"""K-FAC: curvature of a layer as a Kronecker product of an output-gradient and an input covariance.

Every real position counts, prompt positions too (completion losses reach them through attention); padding does not.
G ⊗ A approximates the curvature **per example**: A is a mean over positions, G a sum over positions divided by
examples, so that with independent tokens the scale is right and absolute damping keeps its meaning.
Row-major: the matrix of a layer is kron(G, A).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from whence.curvature.base import Factors, LayerTensors, Memo, Method, Problem, Stage, Sums
from whence.linalg.matrix_batch import MatrixBatch, Outer
from whence.linalg.operators import Blocks, Kronecker


def terms(_layer: str, grads: MatrixBatch, _factors: LayerTensors, memo: Memo) -> Mapping[str, Tensor]:
    """Sums over tokens of a aᵀ and g gᵀ."""
    assert isinstance(grads, Outer), "covariances read inputs and output gradients, not formed matrices"
    g, a = grads.g_BTO, grads.a_BTI
    return {"A": memo.once(a, None, lambda: gram(a)), "G": gram(g)}


def gram(rows_BTI: Tensor) -> Tensor:
    """I x I: Σ over tokens of row rowᵀ."""
    flat = rows_BTI.flatten(0, 1)
    return flat.T @ flat


def finish(sums: Sums, _factors: LayerTensors) -> LayerTensors:
    return {
        layer: {"A": t["A"] / max(1, sums.positions[layer]), "G": t["G"] / sums.examples}
        for layer, t in sums.tensors.items()
    }


def blocks(factors: LayerTensors) -> Blocks:
    return Blocks({layer: Kronecker(t["G"], t["A"]) for layer, t in factors.items()})


def operator(factors: Factors, _problem: Problem) -> Blocks:
    return blocks(factors.tensors)


COVARIANCE = Stage("covariance", lambda factors: factors, terms, finish, blocks)

METHOD = Method(
    name="kfac",
    idea="Kronecker product of input and output-gradient covariances per layer",
    reference="Martens & Grosse 2015, section 3; for sequences Eschenhagen et al. 2023 (expand)",
    passes="1 to fit (plus an eigendecomposition), 1 to score",
    memory="(O² + I²) per O x I layer",
    exact_when="inputs and output gradients are independent and tokens contribute independently",
    stages=(COVARIANCE,),
    operator=operator,
)
