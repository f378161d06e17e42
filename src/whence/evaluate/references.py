"""Cheap truths to score dampings against: a dense Gauss-Newton matrix on a few small layers, and retrained subsets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from whence.curvature.base import Factors, Problem, get_method
from whence.errors import DataError
from whence.evaluate.damping import Evidence, Sweep, evidence_from, summed
from whence.evaluate.statistics import spearman
from whence.gradients.layers import Layers, find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import Damping, relative
from whence.linalg.operators import Gradients

MOST_REFERENCE = 1500  # parameters of the sub-model: its matrix is formed and decomposed
REFERENCE_DAMPING = relative(1e-2)


def small_layers(layers: Layers, most: int = MOST_REFERENCE) -> tuple[str, ...]:
    """The smallest layers that together have at most ``most`` parameters; empty when not even one fits."""
    chosen, size = [], 0
    for layer in sorted(layers, key=lambda each: each.size):
        if size + layer.size > most:
            break
        chosen.append(layer.name)
        size += layer.size
    return tuple(name for name in layers.names if name in chosen)


def dense_reference(
    swept: Sweep,
    source: LiveGradients,
    *,
    queries: Gradients,
    rows: Gradients,
    damping: Damping = REFERENCE_DAMPING,
) -> Evidence | None:
    """Agreement with the exact damped Gauss-Newton influence of a sub-model, couplings between its layers included.

    The reference has a damping of its own, the same for every value of the sweep; were it the value under test, large
    dampings would agree with it for no merit of theirs.

    Args:
        swept: scores under each damping, per layer.
        source: the rows of the fit.
        queries: gradients of the sampled queries.
        rows: gradients of the sampled rows.
        damping: of the reference.

    Returns:
        None when no layer is small enough.
    """
    names = small_layers(source.layers)
    if not names:
        return None
    sub = replace(source, layers=find_layers(source.model, names))
    inverse = get_method("exact").operator(Factors({}), Problem(sub)).power(-1, damping)
    solved = inverse.apply({name: queries[name] for name in names})
    truth_QN = sum(solved[name].dot(rows[name]).double().cpu().numpy() for name in names)
    share = len(names), len(source.layers)
    sentence = (
        f"The reference is the exact Gauss-Newton matrix of {share[0]} of {share[1]} layers at damping {damping}: "
        "it tests the approximation of the curvature, not influence itself."
    )
    return evidence_from(swept.total_DQN(names), np.asarray(truth_QN), kind="reference", sentence=sentence)


def pbrf_reference(swept: Sweep, truth_QN: np.ndarray) -> Evidence:
    """Agreement with proximal Bregman responses (Bae et al. 2022) of the sampled rows, Q x N (NaN = not sampled).

    Raises:
        DataError: of another shape than the sweep.
    """
    if truth_QN.shape != swept.plain_QN.shape:
        raise DataError(f"responses of shape {truth_QN.shape}", wanted=f"{swept.plain_QN.shape}: queries x rows")
    sentence = "The truth is one short proximal retraining per sampled row."
    return evidence_from(swept.total_DQN(), truth_QN, kind="pbrf", sentence=sentence)


def lds_reference(swept: Sweep, kept_MN: np.ndarray, losses_MQ: np.ndarray) -> Evidence:
    """Linear datamodelling score per damping (Park et al. 2023, definition 2.4).

    Args:
        swept: scores of *all* rows the subsets were drawn from.
        kept_MN: which rows each of M retrained models saw.
        losses_MQ: the queries' losses under those models, nats.

    Raises:
        DataError: shapes that do not fit the sweep, or fewer than 3 subsets.
    """
    queries, rows = swept.plain_QN.shape
    if kept_MN.shape[1:] != (rows,) or losses_MQ.shape != (len(kept_MN), queries) or len(kept_MN) < 3:
        raise DataError(
            f"a bank of {kept_MN.shape} subsets and {losses_MQ.shape} losses",
            wanted=f"at least 3 subsets of the {rows} rows, with a loss for each of the {queries} queries",
        )
    # Positive = proponent = lowers the loss, so a subset's loss falls with the sum of its rows' scores.
    predicted_DQM = -(swept.total_DQN() @ kept_MN.T.astype(np.float64))
    per_query = np.array([spearman(predicted, losses_MQ.T) for predicted in predicted_DQM])
    sentence = f"The truth is {len(kept_MN)} models retrained on subsets of the rows."
    return summed(per_query, kind="lds", sentence=sentence)
