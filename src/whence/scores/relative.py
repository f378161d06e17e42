"""Relative influence: scores divided by how loud the *training* example is anyway.

ℓ-RelatIF (Barshan et al. 2020, eq. 9): score / sqrt(g' (G + damping)⁻¹ g), a cosine in the metric of the inverse
curvature up to a constant of the query. θ-RelatIF (eq. 7): score / |(G + damping)⁻¹ g|, the score per distance that the
parameters move. The normaliser belongs to the training example; one of the query could not change a ranking. Not
additive: never sum relative scores over a set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from whence.gradients.source import GradientSource
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import Blocks
from whence.scores.lengths import Lengths


@dataclass
class Movement(Lengths):
    """The visitor of |(G + damping)⁻¹ g|: how far the parameters move when an example is weighted up."""

    inverse: Blocks

    def measured(self, layer: str, grads: MatrixBatch) -> MatrixBatch:
        return self.inverse.layers[layer].apply(grads)

    def told(self, total_B: Tensor) -> Tensor:
        """B lengths."""
        return total_B.clamp(min=0).sqrt()


def movement(source: GradientSource, inverse: Blocks) -> np.ndarray:
    """N lengths |(G + damping)⁻¹ g| in the source's order; NaN for rows that could not be scored."""
    visitor = Movement(inverse)
    source.visit(visitor)
    return np.array([visitor.values[id_] for id_ in source.ids])


def theta_relative_scores(values_QN: np.ndarray, movement_N: np.ndarray) -> np.ndarray:
    """Q x N scores over the training rows' ``movement``; a row that moves nothing gets 0."""
    return _divided(values_QN, movement_N[None, :])


def relative_scores(values_QN: np.ndarray, self_influence_N: np.ndarray) -> np.ndarray:
    """Q x N scores over the square root of the training rows' self-influence; a row without any influence gets 0."""
    return _divided(values_QN, np.sqrt(np.maximum(self_influence_N, 0.0))[None, :])


def cosine_scores(values_QN: np.ndarray, self_influence_N: np.ndarray, self_influence_Q: np.ndarray) -> np.ndarray:
    """Q x N cosines in the metric of the scores; with the ``identity`` method the plain gradient cosine."""
    norms = np.sqrt(np.maximum(self_influence_Q, 0.0))[:, None] * np.sqrt(np.maximum(self_influence_N, 0.0))[None, :]
    return _divided(values_QN, norms)


def _divided(values: np.ndarray, norms: np.ndarray) -> np.ndarray:
    norms = np.broadcast_to(norms, values.shape)
    safe = np.where(norms > 0, norms, 1.0)
    return np.where(np.isnan(norms), np.nan, np.where(norms > 0, values / safe, 0.0))
