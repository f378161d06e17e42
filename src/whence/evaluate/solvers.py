"""Does the solver predict a short proximal retraining, row by row? Everybody against proximal Bregman responses.

The exact damped Gauss-Newton score is the derivative of the response, so its own agreement is the ceiling of every
solver and is always among them: formed where the matrix fits, by conjugate gradients elsewhere. This judges solvers,
not influence: whether *removing* a row does the same is asked by retraining (``lds``, ``removal``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whence.errors import DataError
from whence.evaluate.comparing import bars, is_baseline, lead
from whence.evaluate.journal import Journal
from whence.evaluate.outcome import Chart, Curve, Outcome
from whence.evaluate.pbrf import DENSE, Pbrf, PbrfSettings, responder
from whence.evaluate.statistics import Interval, mean_interval, pearson, slope_and_calibration, spearman
from whence.gradients.source import LiveGradients
from whence.linalg.damping import Damping
from whence.watch import Silent, Watcher

BESIDE = (
    "ekfac_cg", "ekfac", "kfac", "dot", "bm25", "tfidf", "embedding", "activation", "gradient_norm", "loss", "length",
    "random", "shuffled",
)  # fmt: skip
DRAWN = 3  # contenders in the plot of predicted against response


def ceiling_of(train: LiveGradients) -> str:
    """The contender that solves the damped Gauss-Newton system exactly: formed where it fits, else iteratively."""
    return "exact" if sum(o * i for o, i in train.layers.sizes.values()) <= DENSE else "cg"


def sample_rows(ids: Sequence[str], count: int, *, seed: int = 0) -> tuple[str, ...]:
    """Some rows at random, in the order of the file."""
    chosen = np.random.default_rng(seed).permutation(len(ids))[:count]
    return tuple(str(ids[n]) for n in sorted(chosen.tolist()))


def sampled_responses(
    train: LiveGradients,
    queries: LiveGradients,
    rows: Sequence[str],
    *,
    damping: Damping,
    settings: PbrfSettings,
    listening: tuple[Journal, Watcher] | None = None,
) -> Pbrf:
    """Responses of the sampled rows; those in the journal are not solved again.

    Args:
        train: all N training rows.
        queries: Q questions.
        rows: M sampled ids.
        damping: the solvers' own.
        settings: see ``PbrfSettings``.
        listening: where finished rows are kept, and who hears about progress.

    Raises:
        DataError: a sampled id that is not among the rows.
        CurvatureError: factored damping, or products that are not finite.
    """
    journal, watch = listening or (Journal(), Silent())
    unknown = sorted(set(rows) - set(train.ids))
    if unknown or not rows:
        raise DataError(f"no training row {unknown[0]!r}" if unknown else "no rows", wanted="ids of training rows")
    solver = None
    for done, row in enumerate(rows):
        watch.step("respond", done, len(rows))
        if row not in journal:
            solver = solver or responder(train, queries, damping=damping, settings=settings)
            journal.put(row, vars(solver.response(row)))
    watch.step("respond", len(rows), len(rows))
    found = [journal[row] for row in rows]
    changes = np.array([each["change_Q"] for each in found], dtype=np.float64).T
    return Pbrf(
        queries.ids,
        tuple(rows),
        changes,
        tuple(float(each["residual"]) for each in found),
        tuple(int(each["steps"]) for each in found),
        dict(solver.shift.per_layer) if solver else {},
        {"damping": str(damping), "rows": len(train.ids), **vars(settings)},
    )


def solver_board(
    scores: Mapping[str, np.ndarray], truth: Pbrf, *, train_ids: Sequence[str], ceiling: str, about: Mapping[str, Any]
) -> Outcome:
    """Correlations of everybody's scores with the responses, per question, the ceiling first.

    Args:
        scores: contender -> Q x N.
        truth: responses of M sampled rows.
        train_ids: N ids, in the order of the columns.
        ceiling: the contender that is exact.
        about: settings, for the record.

    Raises:
        DataError: fewer than 3 sampled rows.
    """
    if len(truth.train_ids) < 3:
        raise DataError(f"responses of {len(truth.train_ids)} rows", wanted="at least 3 to correlate")
    columns = [list(train_ids).index(id_) for id_ in truth.train_ids]
    share = float(truth.about["share"]) / int(truth.about["rows"])
    predicted = {name: values[:, columns] * share for name, values in scores.items()}
    linear = {name: pearson(values, truth.change_QM) for name, values in predicted.items()}
    ranked = {name: spearman(values, truth.change_QM) for name, values in predicted.items()}
    intervals = {name: mean_interval(values) for name, values in linear.items()}
    order = sorted(scores, key=lambda name: (name != ceiling, -np.nan_to_num(intervals[name].mean, nan=-np.inf)))
    rows = [
        (
            f"{name} (ceiling)" if name == ceiling else name,
            intervals[name].mean,
            intervals[name].span,
            mean_interval(ranked[name]).mean,
            None if _unscaled(name) else slope_and_calibration(predicted[name], truth.change_QM).slope,
        )
        for name in order
    ]
    return Outcome(
        verb="pbrf",
        title="Does the solver predict a short proximal retraining, row by row?",
        columns=("contender", "Pearson", "95 % interval", "Spearman", "slope"),
        rows=tuple(rows),
        charts=_charts(
            order, intervals, {n: mean_interval(v) for n, v in ranked.items()}, predicted=predicted, truth=truth
        ),
        values={
            "query_ids": list(truth.query_ids),
            "train_ids": list(truth.train_ids),
            "response_nats": truth.change_QM,
            "residuals": truth.residuals,
            "steps": truth.steps,
            "contenders": {n: {"predicted": predicted[n], "pearson": linear[n], "spearman": ranked[n]} for n in order},
        },
        words=_words(linear, intervals, truth, ceiling),
        about={**truth.about, "sampled": len(truth.train_ids), "ceiling": ceiling, **about},
    )


def _unscaled(name: str) -> bool:
    """Baselines, normalised scores and plain gradients are in no nats: a slope would mean nothing."""
    spec = name.split("@")[0]
    return is_baseline(name) or spec in ("dot", "identity") or spec.split(":")[0] in ("relative", "theta", "cosine")


def _charts(
    order: Sequence[str],
    linear: Mapping[str, Interval],
    ranked: Mapping[str, Interval],
    *,
    predicted: Mapping[str, np.ndarray],
    truth: Pbrf,
) -> tuple[Chart, ...]:
    drawn = [name for name in order if not _unscaled(name)][:DRAWN]
    response = tuple(truth.change_QM.ravel().tolist())
    clouds = [Curve(name, tuple(predicted[name].ravel().tolist()), response) for name in drawn]
    ends = (min(response), max(response))
    board = bars("Agreement with the responses", "correlation", {"Pearson": linear, "Spearman": ranked}, order)
    if not clouds:
        return (board,)
    line = Curve("response = predicted", ends, ends, drawn="line")
    title = "Predicted and actual response, every question and sampled row"
    return board, Chart(title, "predicted, nats", "response, nats", (*clouds, line), "scatter")


def _words(
    linear: Mapping[str, np.ndarray], intervals: Mapping[str, Interval], truth: Pbrf, ceiling: str
) -> tuple[str, ...]:
    words = []
    if ceiling in intervals:
        words.append(
            f"The exact damped Gauss-Newton score agrees with r = {intervals[ceiling]}: no solver should be expected "
            "above it, since a whole row's response is not linear any more."
        )
    others = {name: values for name, values in linear.items() if name != ceiling}
    words.append(lead(others, "Pearson without the ceiling"))
    loose = sum(residual > truth.about["tolerance"] for residual in truth.residuals)
    if loose:
        worst = max(truth.residuals)
        words.append(
            f"{loose} of {len(truth.residuals)} responses did not reach the tolerance {truth.about['tolerance']:g} "
            f"(largest residual {worst:.1e} of the first gradient); dtype float64 or more steps help."
        )
    words.append("This judges solvers at one damping, not whether removing a row does the same: see lds and removal.")
    return tuple(filter(None, words))
