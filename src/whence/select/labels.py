"""Suspicious labels: one order from several suspicions, and which label to give instead. Plain NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from whence.errors import DataError


def together(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """N suspicions from 0 to 1: the mean of each part's share of rows that are less suspicious (ties half).

    Ranks, because a self-influence and a loss have no common unit. A part without a value for a row does not count for
    it; a row without any is NaN.

    Raises:
        DataError: no parts, or of different lengths.
    """
    lengths = {len(values) for values in parts.values()}
    if len(lengths) != 1:
        raise DataError(f"suspicions of {sorted(lengths)} rows", wanted="at least one, all of the same rows")
    return _mean_known(np.stack([percentiles(values) for values in parts.values()]))


def percentiles(values_N: np.ndarray) -> np.ndarray:
    """Each value's place among the known ones, 0 (lowest) to 1; a single one has 1/2, an unknown one none."""
    values_N = np.asarray(values_N, dtype=np.float64)
    known = np.isfinite(values_N)
    found = np.full(len(values_N), np.nan)
    count = int(known.sum())
    found[known] = (rankdata(values_N[known]) - 1) / (count - 1) if count > 1 else 0.5
    return found


def _mean_known(values_KN: np.ndarray) -> np.ndarray:
    known = np.isfinite(values_KN)
    total = np.where(known, values_KN, 0.0).sum(0)
    count = known.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def suggest(merits_CN: np.ndarray, given_N: np.ndarray, *, least: float = -np.inf) -> np.ndarray:
    """The label that most speaks for in each row.

    Args:
        merits_CN: what speaks for each label of each row.
        given_N: labels as given.
        least: another label needs more than this.

    Returns:
        N labels; the given one where nothing speaks more for another.
    """
    given_N = np.asarray(given_N)
    best_N = np.nan_to_num(merits_CN, nan=-np.inf).argmax(0)
    columns = np.arange(len(given_N))
    gain = merits_CN[best_N, columns]
    return np.where((gain > least) & (gain > merits_CN[given_N, columns]), best_N, given_N)


def ends_of(scores_KN: np.ndarray, skip: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the strongest supporters and opposers of each of K rows, itself left out; best first.

    Args:
        scores_KN: influence of N rows on each of the K.
        skip: K positions of the rows themselves.
        count: how many on each side, at most; -1 where there is none of that sign.
    """
    values = np.array(scores_KN, dtype=np.float64)
    values[np.arange(len(skip)), list(skip)] = np.nan
    return tuple(_first(values * sign, count) for sign in (1, -1))  # type: ignore[return-value]


def _first(values_KN: np.ndarray, count: int) -> np.ndarray:
    """Positions of the highest positive values; -1 beyond them."""
    keyed = np.where(np.isfinite(values_KN) & (values_KN > 0), values_KN, -np.inf)
    order = np.argsort(-keyed, axis=1, kind="stable")[:, :count]
    return np.where(np.isneginf(np.take_along_axis(keyed, order, axis=1)), -1, order)
