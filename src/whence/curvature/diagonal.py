"""Diagonal Fisher: the mean over examples of each squared gradient entry.

The gradient of an example is summed over its tokens *before* squaring; squaring per token would be another matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from whence.curvature.base import Factors, LayerTensors, Memo, Method, Problem, Stage, Sums
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import Blocks, Diagonal


def terms(_layer: str, grads: MatrixBatch, _factors: LayerTensors, _memo: Memo) -> Mapping[str, Tensor]:
    return {"squares": grads.sum_of_squares()}


def finish(sums: Sums, _factors: LayerTensors) -> LayerTensors:
    return {layer: {"diagonal": t["squares"] / sums.examples} for layer, t in sums.tensors.items()}


def blocks(factors: LayerTensors) -> Blocks:
    return Blocks({layer: Diagonal(t["diagonal"]) for layer, t in factors.items()})


def operator(factors: Factors, _problem: Problem) -> Blocks:
    return blocks(factors.tensors)


METHOD = Method(
    name="diagonal",
    idea="one curvature number per weight: its mean squared gradient",
    reference="the diagonal Fisher; e.g. Martens 2020, section 11",
    passes="1 to fit, 1 to score",
    memory="1 x the followed weights",
    exact_when="the Fisher is diagonal",
    stages=(Stage("diagonal", lambda factors: factors, terms, finish, blocks),),
    operator=operator,
)
