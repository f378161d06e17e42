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
from whence.curvature.kfac import covariance
from whence.linalg.matrix_batch import Full, MatrixBatch, Outer
from whence.linalg.operators import Blocks, eigh
from whence.linalg.partition import LARGEST, Partition, Side, eigenbasis, rotated, side

STANDARD = Side(())  # the basis of coordinates: nothing to rotate

Seen = dict[tuple[int, float], list[tuple[Tensor, Tensor]]]


def decompose(factors: LayerTensors) -> LayerTensors:
    """Eigenvectors (columns) of both covariances of every layer; equal covariances are decomposed once."""
    seen: Seen = {}
    return {
        layer: {**_basis(side(t, "G"), seen).stored("QG"), **_basis(side(t, "A"), seen).stored("QA")}
        for layer, t in factors.items()
    }


def _basis(covariance: Side, seen: Seen) -> Side:
    diagonal = covariance.blocks[0].dim() == 1
    return STANDARD if diagonal else covariance.map(lambda block: _eigenvectors(block, seen))


def _eigenvectors(matrix: Tensor, seen: Seen) -> Tensor:
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
    left, right = side(factors[layer], "QG"), side(factors[layer], "QA")
    if isinstance(grads, Outer):
        grads, left, right = _rotated_tokens(grads, left, right, memo)
    squares = [rotated(Full(piece.full()), left, right).sum_of_squares() for piece in grads.pieces()]
    return {"squares": torch.stack(squares).sum(0) if len(squares) > 1 else squares[0]}


def _rotated_tokens(grads: Outer, left: Side, right: Side, memo: Memo) -> tuple[Outer, Side, Side]:
    """Rotate on the tokens whichever side is cheaper there than on the formed matrix, and say what is left to do.

    A side of size n costs T·n² per example on the tokens and n² times the other size on the matrix.
    """
    g, a = grads.g_BTO, grads.a_BTI
    _, outputs, inputs = grads.shape
    tokens = g.shape[1]
    left_done, right_done = tokens <= inputs, tokens <= outputs
    rotated_g = left.into(g) if left_done else g
    rotated_a = memo.once(a, (right.blocks or (None,))[0], lambda: right.into(a)) if right_done else a
    still = (STANDARD if left_done else left, STANDARD if right_done else right)
    return Outer(rotated_g, rotated_a, grads.positions), *still


def finish(sums: Sums, factors: LayerTensors) -> LayerTensors:
    return {layer: {**factors[layer], "eigenvalues": t["squares"] / sums.examples} for layer, t in sums.tensors.items()}


def blocks(factors: LayerTensors) -> Blocks:
    return Blocks({layer: eigenbasis(side(t, "QG"), side(t, "QA"), t["eigenvalues"]) for layer, t in factors.items()})


def operator(factors: Factors, _problem: Problem) -> Blocks:
    return blocks(factors.tensors)


EIGENVALUES = Stage("eigenvalues", decompose, terms, finish, blocks)


def method(*, blocks: int = 1, largest: int = LARGEST) -> Method:
    """EK-FAC with other settings.

    Args:
        blocks: diagonal blocks of every Kronecker factor (Grosse et al. 2023 used 2 at 52B parameters).
        largest: longest block; see ``Partition``.
    """
    partition = Partition(blocks, largest).checked()
    return Method(
        name="ekfac",
        idea="K-FAC's eigenbasis with measured eigenvalues: the default",
        reference="George et al. 2018, Algorithm 1; Grosse et al. 2023, section 2.2",
        passes="2 to fit (plus an eigendecomposition), 1 to score",
        memory="(O² + I² + O·I) per O x I layer: 5.25 x the weights of a 4x MLP; O² + I² divided by blocks",
        exact_when="the Fisher is diagonal in the Kronecker eigenbasis",
        stages=(covariance(partition), EIGENVALUES),
        operator=operator,
        notes=partition.notes,
    )


METHOD = method()
