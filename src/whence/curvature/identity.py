"""No curvature: the plain gradient dot product (TracIn with the last checkpoint), the baseline to beat."""

from __future__ import annotations

from whence.curvature.base import Factors, Method, Problem
from whence.linalg.operators import Blocks, Identity


def operator(factors: Factors, problem: Problem) -> Blocks:
    return Blocks({layer.name: Identity(layer.outputs, layer.inputs) for layer in problem.source.layers})


METHOD = Method(
    name="identity",
    idea="gradient dot product: no curvature at all (its cosine with --normalise cosine)",
    reference="Pruthi et al. 2020 (TracIn), last checkpoint",
    passes="0 to fit, 1 to score",
    memory="none",
    exact_when="never; it is the limit of every method under huge damping",
    stages=(),
    operator=operator,
)
