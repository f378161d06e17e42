"""EK-FAC: the eigenbasis of K-FAC with its eigenvalues measured, not multiplied.

A second pass rotates each example's gradient (summed over its tokens first) into the basis and averages its squares.
Among all matrices that are diagonal in that basis this one is closest to the Fisher in Frobenius norm.
George et al. 2018; Grosse et al. 2023, section 2.2 and appendix C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.curvature.base import Factors, LayerTensors, Memo, Method, Problem, Stage, Sums
from whence.curvature.kfac import covariance
from whence.linalg.eigen import eigh_all
from whence.linalg.matrix_batch import Full, MatrixBatch, Outer
from whence.linalg.operators import Blocks
from whence.linalg.partition import LARGEST, Partition, Side, eigenbasis, rotated, side

STANDARD = Side(())  # the basis of coordinates: nothing to rotate


def decompose(factors: LayerTensors) -> LayerTensors:
    """Eigenvectors (columns) of both covariances of every layer; equal covariances are decomposed once."""
    known = _Distinct()
    sides = {
        (layer, key): [known.number(block, f"layer {layer}, {key}") for block in side(t, key).blocks]
        for layer, t in factors.items()
        for key in ("G", "A")
    }
    vectors = [q for _, q in eigh_all(known.matrices, known.names)]
    bases = {
        at: STANDARD if None in numbers else Side(tuple(vectors[n] for n in numbers if n is not None))
        for at, numbers in sides.items()
    }
    return {layer: {**bases[layer, "G"].stored("QG"), **bases[layer, "A"].stored("QA")} for layer in factors}


@dataclass
class _Distinct:
    """Matrices to decompose: q, k and v see the same inputs, so their A is the same to the bit and counts once.

    Sharing the resulting tensor *object* also lets the passes rotate the shared inputs once (``Memo``).
    """

    matrices: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    _like: dict[tuple[int, float], list[int]] = field(default_factory=dict)

    def number(self, block: Tensor, name: str) -> int | None:
        """Its place in the list; None for a diagonal, which keeps the basis of coordinates."""
        if block.dim() == 1:
            return None
        alike = self._like.setdefault((len(block), float(block.sum())), [])
        for number in alike:
            if torch.equal(self.matrices[number], block):
                return number
        alike.append(len(self.matrices))
        self.matrices.append(block)
        self.names.append(name)
        return alike[-1]


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


EIGENVALUES = Stage("eigenvalues", decompose, terms, finish, blocks, apart=True)


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
