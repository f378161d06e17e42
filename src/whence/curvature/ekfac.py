"""EK-FAC: the eigenbasis of K-FAC with its eigenvalues measured, not multiplied.

A second pass rotates each example's gradient (summed over its tokens first) into the basis and averages its squares.
Among all matrices that are diagonal in that basis this one is closest to the Fisher in Frobenius norm.
George et al. 2018; Grosse et al. 2023, section 2.2 and appendix C.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from whence.curvature.base import Factors, LayerTensors, Memo, Method, Problem, Stage, Sums
from whence.curvature.kfac import COVARIANCE
from whence.linalg.matrix_batch import Full, MatrixBatch, Outer
from whence.linalg.operators import Blocks, Eigenbasis, eigh


def decompose(factors: LayerTensors) -> LayerTensors:
    """Eigenvectors (columns) of both covariances of every layer; equal covariances are decomposed once."""
    seen: dict[tuple[int, float], list[tuple[Tensor, Tensor]]] = {}
    return {
        layer: {"QG": _eigenvectors(t["G"], seen), "QA": _eigenvectors(t["A"], seen)} for layer, t in factors.items()
    }


def _eigenvectors(matrix: Tensor, seen: dict[tuple[int, float], list[tuple[Tensor, Tensor]]]) -> Tensor:
    """q, k and v see the same inputs, so their A is the same to the bit: one decomposition, one shared tensor.

    Sharing the tensor *object* also lets the passes rotate the shared inputs once (``Memo``).
    """
    bucket = seen.setdefault((len(matrix), float(matrix.sum())), [])
    for known, vectors in bucket:
        if torch.equal(known, matrix):
            return vectors
    vectors = eigh(matrix)[1]
    bucket.append((matrix, vectors))
    return vectors


def terms(layer: str, grads: MatrixBatch, factors: LayerTensors, memo: Memo) -> Mapping[str, Tensor]:
    """Squares of the examples' gradients in the eigenbasis, summed over examples."""
    left, right = factors[layer]["QG"], factors[layer]["QA"]
    if isinstance(grads, Outer):
        grads, left, right = _rotated_tokens(grads, left, right, memo)
    squares = [
        Full(piece.full()).sided(_transposed(left), _transposed(right)).sum_of_squares() for piece in grads.pieces()
    ]
    return {"squares": torch.stack(squares).sum(0) if len(squares) > 1 else squares[0]}


def _rotated_tokens(
    grads: Outer, left: Tensor, right: Tensor, memo: Memo
) -> tuple[Outer, Tensor | None, Tensor | None]:
    """Rotate on the tokens whichever side is cheaper there than on the formed matrix; None where that is done.

    A side of size n costs T·n² per example on the tokens and n² times the other size on the matrix.
    """
    g, a = grads.g_BTO, grads.a_BTI
    tokens = g.shape[1]
    left_done, right_done = tokens <= len(right), tokens <= len(left)
    rotated_g = g @ left if left_done else g
    rotated_a = memo.once(a, right, lambda: a @ right) if right_done else a
    return Outer(rotated_g, rotated_a, grads.positions), None if left_done else left, None if right_done else right


def _transposed(basis: Tensor | None) -> Tensor | None:
    return None if basis is None else basis.T


def finish(sums: Sums, factors: LayerTensors) -> LayerTensors:
    return {layer: {**factors[layer], "eigenvalues": t["squares"] / sums.examples} for layer, t in sums.tensors.items()}


def blocks(factors: LayerTensors) -> Blocks:
    return Blocks({layer: Eigenbasis(t["QG"], t["QA"], t["eigenvalues"]) for layer, t in factors.items()})


def operator(factors: Factors, _problem: Problem) -> Blocks:
    return blocks(factors.tensors)


METHOD = Method(
    name="ekfac",
    idea="K-FAC's eigenbasis with measured eigenvalues: the default",
    reference="George et al. 2018, Algorithm 1; Grosse et al. 2023, section 2.2",
    passes="2 to fit (plus an eigendecomposition), 1 to score",
    memory="(O² + I² + O·I) per O x I layer: 5.25 x the weights of a 4x MLP",
    exact_when="the Fisher is diagonal in the Kronecker eigenbasis",
    stages=(COVARIANCE, Stage("eigenvalues", decompose, terms, finish, blocks)),
    operator=operator,
)
