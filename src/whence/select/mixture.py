"""Weights of sources by influence on a reference set (IDEAL, arXiv 2505.12762).

With source j scaled to (1 + β_j) times its rows, the reference loss Q answers by ∂Q/∂β_j = -Σ_n score(n) / N over the
rows n of j: one sum of scores per source. The step is β = -γ ∂Q/∂β with γ = m / max_j |∂Q/∂β_j|, so that the source
with the largest effect moves by m. A round realises the weights by sampling, trains, and asks again at the new model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from whence.errors import DataError, OptionError

STRENGTH = 0.15  # m of the paper


def pulls(scores_QN: np.ndarray, sources: Sequence[str], n_train: int) -> dict[str, float]:
    """Source -> -∂Q/∂β in nats: how much the mean reference loss would fall per doubling of the source, to first order.

    Args:
        scores_QN: influence on the reference questions; rows without a score (NaN) count for nothing.
        sources: N names.
        n_train: rows that the curvature is the mean over.

    Raises:
        DataError: numbers of rows that differ.
    """
    scores_QN = np.asarray(scores_QN, dtype=np.float64)
    if scores_QN.ndim != 2 or scores_QN.shape[1] != len(sources):
        raise DataError(f"scores {scores_QN.shape} for {len(sources)} rows", wanted="one column per row")
    mean_N = np.nan_to_num(scores_QN).mean(0) / n_train
    named = np.array(sources)
    return {source: float(mean_N[named == source].sum()) for source in dict.fromkeys(sources)}


def swaps(
    scores_QN: np.ndarray, sources: Sequence[str], n_train: int, weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Source -> fall of the mean reference loss if one row of the mixture were swapped for one of the source.

    Its mean score less that of the mixture, over N: in nats a row. Of a mixture whose size stays as it is only this
    difference matters: adding rows of every source alike is more training, not another mixture (and where training has
    converged the scores of all rows sum to 0). Unlike ``pulls`` it does not grow with the size of a source, so that a
    source cut in two moves as it did whole; a step along it keeps the size, to first order.

    Args:
        scores_QN: as ``pulls``.
        sources: likewise.
        n_train: likewise.
        weights: source -> times its rows in the mixture as it is; None = as they are.

    Raises:
        DataError: numbers of rows that differ.
    """
    summed = pulls(scores_QN, sources, n_train)
    named = np.array(sources)
    have = {source: int((named == source).sum()) for source in summed}
    rows = {source: (1.0 if weights is None else weights[source]) * have[source] for source in summed}
    each = {source: summed[source] / have[source] for source in summed}
    mean = sum(rows[source] * each[source] for source in summed) / sum(rows.values())
    return {source: each[source] - mean for source in summed}


def step(weights: Mapping[str, float], pulled: Mapping[str, float], *, strength: float = STRENGTH) -> dict[str, float]:
    """The next weights: each times 1 + β.

    Raises:
        OptionError: a strength not in (0, 1].
    """
    if not 0 < strength <= 1:
        raise OptionError(f"strength {strength}", wanted="above 0, at most 1", try_=f"{STRENGTH}, as in the paper")
    largest = max((abs(value) for value in pulled.values()), default=0.0)
    rate = strength / largest if largest > 0 else 0.0
    return {source: weight * (1 + rate * pulled.get(source, 0.0)) for source, weight in weights.items()}


def counts(
    sources: Sequence[str], weights: Mapping[str, float], *, seed: int = 0, size: int | None = None
) -> np.ndarray:
    """How often each row is taken so that a source of n rows gives weight x n.

    Every row the whole part of its weight, the rest by lot without replacement. The lot of a source depends on its name
    and the seed alone.

    Args:
        sources: N names.
        weights: source -> times its rows.
        seed: of the lot.
        size: scale all weights so that about this many rows are taken; None = as they are.

    Raises:
        OptionError: weights that are all 0.
    """
    named = np.array(sources)
    have = {source: int((named == source).sum()) for source in dict.fromkeys(sources)}
    total = sum(weights[source] * rows for source, rows in have.items())
    if total <= 0:
        raise OptionError("weights that are all 0", wanted="at least one above 0")
    scale = 1.0 if size is None else size / total
    found = np.zeros(len(named), dtype=np.int64)
    for source, rows in have.items():
        each, rest = divmod(round(weights[source] * scale * rows), rows)
        lot = np.random.default_rng([seed, *source.encode("utf-8", "surrogatepass")]).permutation(rows)
        found[named == source] = each + (np.argsort(lot) < rest)
    return found
