"""Removal: retrain without the k rows that a contender puts first, and see what the query's loss does.

The use that most people have in mind, and ordered otherwise than LDS: word overlap does well here. Controls are random
rows and the most similar ones; every removal is trained with several seeds, against the same seeds on all rows. A
method whose scores are in nats also predicts the rise, the sum of score / N over the rows removed: the chart compares
sizes, not only ranks, and the random removals are on it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.errors import DataError, OptionError
from whence.evaluate.bank import Given
from whence.evaluate.outcome import Chart, Curve, Outcome
from whence.evaluate.statistics import Fit, Interval, mean_interval, paired_interval, slope_and_calibration

CONTROL = "random"
CUSTOMARY = 3  # seeds


@dataclass(frozen=True, eq=False)
class Removals:
    """Which rows each contender removes for each query, and the members that this takes.

    Attributes:
        names: C contenders.
        counts: K numbers of rows removed.
        removed: C x K x Q row sets, as columns, strongest first.
        member_CKQ: which member of the design each is; sets that are equal are trained once.
        design: member 0 keeps all rows.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    removed: Mapping[tuple[str, int, int], np.ndarray]
    member_CKQ: np.ndarray
    design: Given

    @property
    def models(self) -> int:
        """Trainings that the bank needs."""
        return len(self.design.kept_MN) * len(self.design.seeds)


def plan_removals(scores: Mapping[str, np.ndarray], counts: Sequence[int], seeds: Sequence[int]) -> Removals:
    """What to retrain.

    Args:
        scores: contender -> Q x N scores; the rows of highest score are removed, rows without one never.
        counts: numbers of rows to remove, each on its own.
        seeds: of the trainings.

    Raises:
        OptionError: no count, or one that leaves no row.
    """
    queries, rows = next(iter(scores.values())).shape
    if not counts or min(counts) < 1 or max(counts) >= rows:
        raise OptionError(f"removing {', '.join(map(str, counts)) or 'nothing'} of {rows} rows", wanted="1 to N - 1")
    kept, place = [np.ones(rows, dtype=bool)], {}
    removed: dict[tuple[str, int, int], np.ndarray] = {}
    member = np.zeros((len(scores), len(counts), queries), dtype=np.int64)
    for c, (name, values) in enumerate(scores.items()):
        order_QN = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=1, kind="stable")
        for k, count in enumerate(counts):
            for q in range(queries):
                chosen = order_QN[q, :count]
                key = np.sort(chosen).tobytes()
                if key not in place:
                    place[key] = len(kept)
                    mask = np.ones(rows, dtype=bool)
                    mask[chosen] = False
                    kept.append(mask)
                removed[name, k, q] = chosen
                member[c, k, q] = place[key]
    return Removals(tuple(scores), tuple(counts), removed, member, Given(np.stack(kept), tuple(seeds)))


def rises(plan: Removals, losses_MRQ: np.ndarray) -> np.ndarray:
    """C x K x Q x R rises of each query's measurement in nats, seed by seed against all rows with the same seed.

    Raises:
        DataError: a bank of other members.
    """
    if losses_MRQ.shape[:2] != (len(plan.design.kept_MN), len(plan.design.seeds)):
        raise DataError(f"losses of {losses_MRQ.shape[:2]} members", wanted=f"{plan.models} as planned")
    query_Q = np.arange(plan.member_CKQ.shape[2])
    change_MRQ = losses_MRQ - losses_MRQ[:1]
    return change_MRQ[plan.member_CKQ, :, query_Q]


@dataclass(frozen=True)
class Effect:
    """What removing one contender's rows did.

    Attributes:
        rise: mean over the queries, nats.
        above: minus the random control, query by query; None for the control itself or without one.
        raised: share of queries whose loss rose.
    """

    rise: Interval
    above: Interval | None
    raised: float


def effects(plan: Removals, rise_CKQR: np.ndarray) -> dict[tuple[str, int], Effect]:
    """Per contender and count."""
    mean_CKQ = rise_CKQR.mean(3)
    found = {}
    for c, name in enumerate(plan.names):
        for k, count in enumerate(plan.counts):
            mine = mean_CKQ[c, k]
            above = None
            if CONTROL in plan.names and name != CONTROL:
                above = paired_interval(mine, mean_CKQ[plan.names.index(CONTROL), k])
            found[name, count] = Effect(mean_interval(mine), above, float((mine > 0).mean()))
    return found


def predicted(scores_QN: np.ndarray, plan: Removals, name: str) -> np.ndarray:
    """K x Q rises that scores foretell of ``name``'s removals: the sum of score / N over the rows removed, nats."""
    values = np.nan_to_num(scores_QN) / scores_QN.shape[1]
    queries = range(len(scores_QN))
    return np.array([[values[q, plan.removed[name, k, q]].sum() for q in queries] for k in range(len(plan.counts))])


@dataclass(frozen=True, eq=False)
class Foretold:
    """A method's predictions of what happened: of its own removals and of the random ones.

    Attributes:
        predicted, observed: pairs, nats.
        fit: slope, correlations and groups.
    """

    predicted: np.ndarray
    observed: np.ndarray
    fit: Fit


def foretold(
    scores: Mapping[str, np.ndarray], plan: Removals, rise_CKQR: np.ndarray, in_nats: Sequence[str]
) -> dict[str, Foretold]:
    """Predictions of the methods whose scores are in nats."""
    mean_CKQ, found = rise_CKQR.mean(3), {}
    for name in in_nats:
        sets = [other for other in (name, CONTROL) if other in plan.names]
        x = np.concatenate([predicted(scores[name], plan, other).ravel() for other in sets])
        y = np.concatenate([mean_CKQ[plan.names.index(other)].ravel() for other in sets])
        found[name] = Foretold(x, y, slope_and_calibration(x, y))
    return found


# --- what is told --------------------------------------------------------------------------------------------------


def removal_outcome(
    scores: Mapping[str, np.ndarray],
    plan: Removals,
    rise_CKQR: np.ndarray,
    *,
    in_nats: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> Outcome:
    """Table, charts and sentences.

    Args:
        scores: contender -> Q x N scores, as planned with.
        plan: who removed what.
        rise_CKQR: what happened.
        in_nats: methods whose score / N is a predicted rise in nats.
        about: settings.
    """
    found, told = effects(plan, rise_CKQR), foretold(scores, plan, rise_CKQR, in_nats)
    keys = sorted(found, key=lambda key: (key[1], -np.nan_to_num(found[key].rise.mean, nan=-np.inf)))
    rows = tuple(_row(key, found[key], told.get(key[0]), scores=scores, plan=plan) for key in keys)
    return Outcome(
        "removal",
        f"What happens to a query's loss when its strongest rows are taken out ({plan.models} trainings)",
        ("method", "removed", "rise in nats (95 %)", "above random (95 %)", "raised", "predicted", "slope"),
        rows,
        (_bars(found, plan), *(_calibration(name, each) for name, each in told.items())),
        {
            "effects": [{"method": n, "removed": k, **_numbers(found[n, k])} for n, k in keys],
            "rises": dict(zip(plan.names, rise_CKQR, strict=True)),
            "foretold": {n: {"predicted": t.predicted, "observed": t.observed, **vars(t.fit)} for n, t in told.items()},
            "sizes": {"queries": rise_CKQR.shape[2], "seeds": rise_CKQR.shape[3], "models": plan.models},
        },
        tuple(_words(plan, told, found)),
        dict(about or {}),
    )


def _row(
    key: tuple[str, int],
    effect: Effect,
    told: Foretold | None,
    *,
    scores: Mapping[str, np.ndarray],
    plan: Removals,
) -> tuple[Any, ...]:
    name, count = key
    foresaw: Any = ""
    if told is not None:
        foresaw = float(predicted(scores[name], plan, name)[plan.counts.index(count)].mean())
    above = "" if effect.above is None else _signed(effect.above)
    slope: Any = "" if told is None else round(told.fit.slope, 3)
    return name, count, _signed(effect.rise), above, f"{effect.raised:.0%}", foresaw, slope


def _words(plan: Removals, told: Mapping[str, Foretold], found: Mapping[tuple[str, int], Effect]) -> list[str]:
    seeds = len(plan.design.seeds)
    said = [f"Rise of the query's loss, mean over queries and {seeds} seed(s) against the same seeds on all rows."]
    if seeds < CUSTOMARY:
        said.append(f"{seeds} seed(s): with fewer than {CUSTOMARY} a rise may be noise of training.")
    level = [f"{name} ({count})" for (name, count), e in found.items() if e.above is not None and e.above.low <= 0]
    if level:
        said.append(f"Not told apart from random removal (the paired 95 % interval): {', '.join(level)}.")
    for name, each in told.items():
        fit = each.fit
        said.append(
            f"{name} predicts rises with slope {fit.slope:.2f} (measured on predicted; 1 = right in size, below 1 = "
            f"too much foretold) and Pearson {fit.pearson:.2f}, over its own and the random removals."
        )
    return said


def _bars(found: Mapping[tuple[str, int], Effect], plan: Removals) -> Chart:
    places = tuple(float(n) for n in range(len(plan.names)))
    curves = []
    for count in plan.counts:
        each = [found[name, count].rise for name in plan.names]
        means, low, high = (tuple(getattr(e, part) for e in each) for part in ("mean", "low", "high"))
        curves.append(Curve(f"{count} rows removed", places, means, low=low, high=high))
    title = "Rise of the query's loss after removal"
    return Chart(title, "method", "rise (nats)", tuple(curves), kind="bars", groups=plan.names)


def _calibration(name: str, each: Foretold) -> Chart:
    x, y, bins = each.predicted, each.observed, each.fit.bins
    ends = float(x.min()), float(x.max())
    error = [0.0 if np.isnan(e) else 1.96 * e for _, _, e, _ in bins]
    middle = [b[1] for b in bins]
    curves = (
        Curve("removals", tuple(map(float, x)), tuple(map(float, y))),
        Curve(
            "groups of equal size",
            tuple(b[0] for b in bins),
            tuple(middle),
            low=tuple(m - e for m, e in zip(middle, error, strict=True)),
            high=tuple(m + e for m, e in zip(middle, error, strict=True)),
            drawn="line",
        ),
        Curve("slope 1", ends, ends, drawn="line"),
    )
    title = f"Predicted and measured rise: {name}"
    return Chart(title, "predicted (nats)", "measured (nats)", curves, kind="scatter")


def _signed(found: Interval) -> str:
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def _numbers(effect: Effect) -> dict[str, Any]:
    parts = {"rise": effect.rise, "above_random": effect.above}
    numbers: dict[str, Any] = {n: None if i is None else vars(i) for n, i in parts.items()}
    return {**numbers, "raised": effect.raised}
