"""Leave-one-out: how a query's loss changes when one training row is left out, against score / N.

Exact for models that are trained to their minimum (``converged``). For networks the effect of one row is usually below
the noise between seeds: train several, and read the reliability that is printed beside the correlations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.errors import DataError
from whence.evaluate.bank import Given
from whence.evaluate.outcome import Chart, Curve, Outcome
from whence.evaluate.statistics import Fit, Interval, mean_interval, pearson, slope_and_calibration, spearman

NOISY = 0.5  # agreement of two seeds below which correlations say more about noise than about methods


def left_out(n_rows: int, rows: Sequence[int], seeds: Sequence[int] = (0,)) -> Given:
    """Members: all rows, and all but each of ``rows``."""
    kept = np.ones((len(rows) + 1, n_rows), dtype=bool)
    kept[np.arange(1, len(rows) + 1), np.asarray(rows, dtype=np.int64)] = False
    return Given(kept, tuple(seeds))


def changes(losses_MRQ: np.ndarray) -> np.ndarray:
    """Q x R x M rises of the measurements without each row, seed by seed: positive = the row was a proponent.

    Args:
        losses_MRQ: of a bank of ``left_out`` members.
    """
    return (losses_MRQ[1:] - losses_MRQ[:1]).transpose(2, 1, 0)


# --- ridge, in closed form -----------------------------------------------------------------------------------------


def leverage(self_influence_N: np.ndarray, losses_N: np.ndarray) -> np.ndarray:
    """N leverages h = x' H⁻¹ x / N of a linear model of squared error, from what whence computes.

    A row's self-influence is |residual|² x' H⁻¹ x and its loss |residual|² / 2. A row that is fitted exactly has no
    influence either way; its leverage is given as 0.
    """
    exact = losses_N <= 0
    return np.where(exact, 0.0, self_influence_N / (2 * len(losses_N) * np.where(exact, 1.0, losses_N)))


def ridge_changes(
    scores_QN: np.ndarray, self_influence_N: np.ndarray, losses_N: np.ndarray, losses_Q: np.ndarray
) -> np.ndarray:
    """Q x N changes of the queries' losses when each row is left out of a ridge regression of one output: exact.

    score / N is the first derivative. Dividing by 1 - leverage makes it the whole step of the weights (Sherman and
    Morrison), and the loss along that step is a parabola: with c the corrected linear change, c + c² / (4 loss).

    Args:
        scores_QN: exact scores at absolute damping equal to the penalty.
        self_influence_N: of the rows, likewise.
        losses_N: of the rows at the minimum.
        losses_Q: of the queries at the minimum.

    Raises:
        DataError: a query that is answered exactly: its score is 0 and says nothing of the step.
    """
    if not (losses_Q > 0).all():
        raise DataError("a query without any loss", wanted="queries that the model does not answer exactly")
    linear_QN = scores_QN / len(losses_N) / (1 - leverage(self_influence_N, losses_N))
    return linear_QN + linear_QN**2 / (4 * losses_Q[:, None])


# --- the verdict ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """One method against what leaving rows out did.

    Attributes:
        pearson, spearman: means over the queries of correlations over the rows, with intervals.
        fit: of all pairs of predicted (score / N) and measured change.
        per_query: Q Pearson correlations.
    """

    pearson: Interval
    spearman: Interval
    fit: Fit
    per_query: np.ndarray


def agreement(scores_QM: np.ndarray, change_QM: np.ndarray, n_rows: int) -> Agreement:
    """Correlations of the scores of the rows left out with the changes.

    Raises:
        DataError: other shapes, or fewer than 3 rows.
    """
    if scores_QM.shape != change_QM.shape or scores_QM.shape[1] < 3:
        raise DataError(f"scores {scores_QM.shape} and changes {change_QM.shape}", wanted="pairs of at least 3 rows")
    linear = pearson(scores_QM, change_QM)
    fitted = slope_and_calibration(scores_QM / n_rows, change_QM)
    return Agreement(mean_interval(linear), mean_interval(spearman(scores_QM, change_QM)), fitted, linear)


def reliability(change_QRM: np.ndarray) -> float:
    """Mean over queries of the correlation of two seeds' changes; NaN with one seed."""
    seeds = change_QRM.shape[1]
    pairs = [pearson(change_QRM[:, a], change_QRM[:, b]) for a in range(seeds) for b in range(a)]
    return float(np.nanmean(pairs)) if pairs else float("nan")


def loo_outcome(
    scores: Mapping[str, np.ndarray],
    rows: Sequence[int],
    change_QRM: np.ndarray,
    *,
    exact: Mapping[str, np.ndarray] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Outcome:
    """Table, chart and sentences.

    Args:
        scores: method -> Q x N scores of *all* rows.
        rows: columns of the rows left out.
        change_QRM: measured changes in nats.
        exact: further predictions of the changes themselves, Q x M (``ridge_changes``).
        about: settings.
    """
    change_QM, where = change_QRM.mean(1), np.asarray(rows)
    found = {name: agreement(v[:, where], change_QM, v.shape[1]) for name, v in scores.items()}
    found |= {name: agreement(predicted, change_QM, 1) for name, predicted in (exact or {}).items()}
    ordered = sorted(found, key=lambda name: -np.nan_to_num(found[name].pearson.mean, nan=-2.0))
    table = [(n, str(found[n].pearson), str(found[n].spearman), round(found[n].fit.slope, 3)) for n in ordered]
    twice = reliability(change_QRM)
    return Outcome(
        "loo",
        f"Does the score of a row predict what leaving it out does? {len(where)} rows, {len(change_QM)} queries",
        ("method", "Pearson", "Spearman", "slope"),
        tuple(table),
        (_chart(scores, where, change_QM, best=ordered[0]),) if ordered[0] in scores else (),
        {
            "agreement": {n: _numbers(found[n]) for n in ordered},
            "change": change_QM,
            "rows": list(map(int, where)),
            "seeds": change_QRM.shape[1],
            "reliability": twice,
        },
        tuple(_words(change_QRM, twice)),
        dict(about or {}),
    )


def _words(change_QRM: np.ndarray, twice: float) -> list[str]:
    said = [
        "Correlations run over the rows left out, per query, and are averaged; the slope is of measured nats on "
        "score / N: 1 = right in size."
    ]
    if change_QRM.shape[1] == 1:
        said.append("One training per row: right where training goes to the minimum; elsewhere noise goes unseen.")
    else:
        said.append(f"Two seeds agree about these changes to {twice:.2f} (Pearson).")
        if not twice >= NOISY:
            said.append("That is mostly noise: with more seeds, or removing more rows at once, one would see more.")
    return said


def _chart(scores: Mapping[str, np.ndarray], where: np.ndarray, change_QM: np.ndarray, *, best: str) -> Chart:
    values = scores[best]
    x, y = (values[:, where] / values.shape[1]).ravel(), change_QM.ravel()
    ends = float(np.nanmin(x)), float(np.nanmax(x))
    points = Curve(best, tuple(map(float, x)), tuple(map(float, y)))
    line = Curve("slope 1", ends, ends, drawn="line")
    return Chart("Predicted and measured change", "score / N (nats)", "change (nats)", (points, line), kind="scatter")


def _numbers(found: Agreement) -> dict[str, Any]:
    parts = {"pearson": found.pearson, "spearman": found.spearman}
    means = {name: {"mean": i.mean, "low": i.low, "high": i.high} for name, i in parts.items()}
    return {**means, "slope": found.fit.slope, "per_query": found.per_query}
