"""Contenders against each other: who is a method and who a baseline, tables of means, and what the lead is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from whence.evaluate.baselines import MODEL, SHUFFLED, TEXT
from whence.evaluate.outcome import Chart, Curve
from whence.evaluate.statistics import Interval, mean_interval, paired_interval

CHEAP = frozenset((*TEXT, *MODEL))


def is_baseline(name: str) -> bool:
    """Needs no curvature and no gradient of the question, or is the shuffled control."""
    return name in CHEAP or name == SHUFFLED or name.split(":")[0] in (SHUFFLED, "neighbours")


def by_mean(values: Mapping[str, np.ndarray]) -> list[tuple[str, Interval]]:
    """Contenders with mean and interval over the questions, best first; those without any value last."""
    found = [(name, mean_interval(each)) for name, each in values.items()]
    return sorted(found, key=lambda pair: -np.nan_to_num(pair[1].mean, nan=-np.inf))


def lead(values: Mapping[str, np.ndarray], what: str, *, over: str = "questions") -> str:
    """One sentence: the best method against the best baseline, with the paired interval of their difference.

    Args:
        values: contender -> one value per question, higher is better.
        what: name of the measure.
        over: what the values run over.
    """
    ranked = [name for name, interval in by_mean(values) if np.isfinite(interval.mean)]
    methods = [name for name in ranked if not is_baseline(name)]
    cheap = [name for name in ranked if is_baseline(name)]
    if not methods or not cheap:
        return ""
    best, other = methods[0], cheap[0]
    found = paired_interval(values[best], values[other])
    count = int(np.isfinite(values[best] - values[other]).sum())
    pair = f"best method {best} {np.nanmean(values[best]):.3g}, best baseline {other} {np.nanmean(values[other]):.3g}"
    verdict = "the method is ahead" if found.low > 0 else "the baseline is ahead" if found.high < 0 else (
        "the difference could be chance"
    )  # fmt: skip
    said = f"difference {found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}], paired over {count} {over}"
    return f"{what}: {pair}; {said}: {verdict}."


def bars(title: str, y_axis: str, measures: Mapping[str, Mapping[str, Interval]], order: Sequence[str]) -> Chart:
    """Bars with intervals: one group per contender in this order, one bar per measure.

    Args:
        title: of the chart.
        y_axis: of the values.
        measures: name of the measure -> contender -> value with interval.
        order: contenders, first on top.
    """
    curves = []
    for name, values in measures.items():
        x = tuple(float(n) for n, who in enumerate(order) if who in values)
        found = [values[who] for who in order if who in values]
        low, high = tuple(each.low for each in found), tuple(each.high for each in found)
        curves.append(Curve(name, x, tuple(each.mean for each in found), low, high))
    return Chart(title, "", y_axis, tuple(curves), "bars", groups=tuple(order))
