"""A choice of rows, told: what was kept from where, the rows at both ends, and what should make one wonder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.results import RowView, Scores
from whence.select.account import Account, Table, chart
from whence.select.amounts import counts_of
from whence.select.choose import Choice, Rule
from whence.select.origins import Opened

SHOWN, LONGEST, POINTS = 8, 240, 200
HOW = {
    "mean": "their mean influence over {tasks}",
    "max": "their influence on the one of {tasks} that they serve best",
    "standard": "their mean influence over {tasks}, every question's scores brought to one scale",
    "bids": "what each adds for the sub-task that the rows before it serve least, over {tasks}",
}
CAUTION = (
    "Influence is a first-order estimate at one model. That a model trained on the kept rows is better is a question "
    "for retraining."
)


@dataclass(frozen=True)
class Told:
    """What there is to tell of: rows, scores, their values and the sub-tasks of the questions."""

    opened: Opened
    scores: Scores
    values_QN: np.ndarray
    tasks: tuple[str, ...]


def tell_choice(told: Told, choice: Choice, rule: Rule, *, about: Mapping[str, Any]) -> Account:
    """The account of ``select``."""
    kept, total = int(choice.kept.sum()), len(choice.kept)
    title = f"Kept {kept:,} of {total:,} rows ({100 * kept / total:.3g} %)"
    facts = {
        "rule": {
            "keep": None if rule.keep is None else str(rule.keep),
            "drop": None if rule.drop is None else str(rule.drop),
            "balance": rule.balance,
            "quota": rule.quota.spread or {k: str(v) for k, v in (rule.quota.caps or {}).items()},
            "diverse": rule.diverse,
            "unscored": rule.unscored,
        },
        "reasons": dict(Counter(choice.reasons)),
    }
    views = told.scores.train_rows
    tables = (sources_table(told.opened.sources, choice), *ends(told.opened.rows.ids, views, choice))
    words = (_how(told, rule), *_notes(told, choice, rule), CAUTION)
    return Account("select", title, words, tables, charts_of(told.opened.sources, choice), {**facts, **about})


def _how(told: Told, rule: Rule) -> str:
    tasks = len(set(told.tasks))
    questions = f"{len(told.tasks)} question{'s' if len(told.tasks) > 1 else ''}"
    over = questions if tasks == len(told.tasks) else f"{tasks} sub-tasks ({questions})"
    said = HOW[rule.balance].format(tasks=over)
    if rule.keep is not None:
        return f"Rows were ordered by {said}; {rule.keep} of all rows are kept, the most helpful first."
    return f"Rows were ordered by {said}; the least helpful {rule.drop} of all rows are left out."


def _notes(told: Told, choice: Choice, rule: Rule) -> list[str]:
    reasons = Counter(reason.partition(" of ")[0] for reason in choice.reasons)
    notes = []
    if rule.diverse:
        notes.append(f"{reasons['near-duplicate']:,} rows gave way to a near-duplicate that helps more.")
    if rule.quota.spread or rule.quota.caps:
        notes.append(f"{reasons['quota full']:,} rows would have been kept but for the quota of their source.")
    unscored = reasons["not scored"] + reasons["kept: not scored"]
    if unscored:
        fate = "stay, since nothing speaks against them" if rule.keeps_unscored else "are left out"
        notes.append(f"{unscored:,} rows have no score (they could not be used); they {fate}.")
    harmful = int((choice.kept & (choice.values < 0)).sum())
    if rule.balance in ("mean", "max") and rule.keep is not None and harmful:
        notes.append(f"{harmful:,} of the kept rows have a negative value: more were asked for than help.")
    return [*notes, *_length(told, choice)]


def _length(told: Told, choice: Choice) -> list[str]:
    """Long rows have long gradients; a choice by length looks like one by influence."""
    views = [told.scores.train_rows.get(id_) for id_ in told.opened.rows.ids]
    length_N = np.array([len(view.text) if view else 0 for view in views], dtype=np.float64)
    kept = choice.kept
    if not kept.any() or kept.all() or not length_N[~kept].mean():
        return []
    ratio = length_N[kept].mean() / length_N[~kept].mean()
    if 0.5 < ratio < 2:
        return []
    return [
        f"Kept rows are {ratio:.2g} times as long as the others. If length is not what you want, divide by how loud a "
        "row is: --normalise relative."
    ]


def sources_table(sources: Sequence[str], choice: Choice) -> Table:
    """Rows, kept rows and mean values by source."""
    all_, kept = counts_of(sources, np.ones(len(sources), dtype=bool)), counts_of(sources, choice.kept)
    total = max(1, int(choice.kept.sum()))
    named = np.array(sources)
    lines = []
    for source, count in all_.items():
        values = choice.values[(named == source) & np.isfinite(choice.values)]
        mean = float(values.mean()) if len(values) else None
        lines.append((source, count, kept[source], 100 * kept[source] / count, 100 * kept[source] / total, mean))
    lines.sort(key=lambda line: -line[3])
    columns = ("source", "rows", "kept", "% of the source", "% of the kept", "mean value")
    return Table("By source", columns, tuple(lines))


def ends(ids: Sequence[str], views: Mapping[str, RowView], choice: Choice) -> tuple[Table, ...]:
    """The first and last rows kept, the rows just below and at the very end, those that gave way."""
    finite = np.isfinite(choice.values)
    order: list[int] = np.argsort(-np.where(finite, choice.values, -np.inf), kind="stable").tolist()
    kept = [n for n in order if finite[n] and choice.kept[n]]
    out = [n for n in order if finite[n] and not choice.kept[n]]
    gave_way = [n for n in out if choice.reasons[n] != "below the cut"]
    blocks = {
        "Kept: the most helpful": kept[:SHOWN],
        "Kept: the last ones": kept[SHOWN:][-SHOWN:],
        "Dropped: the first ones": [n for n in out if n not in set(gave_way)][:SHOWN],
        "Dropped: the least helpful": out[SHOWN:][-SHOWN:],
        "Dropped for another reason": gave_way[:SHOWN],
    }
    columns = ("value", "id", "source", "why", "text")
    return tuple(
        Table(title, columns, tuple(_line(ids[n], views.get(ids[n]), choice, n) for n in places))
        for title, places in blocks.items()
        if places
    )


def _line(id_: str, view: RowView | None, choice: Choice, n: int) -> tuple[Any, ...]:
    text = "" if view is None else view.text
    clipped = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return f"{choice.values[n]:+.4g}", id_, view.source if view else "", choice.reasons[n], clipped


def charts_of(sources: Sequence[str], choice: Choice) -> tuple[dict[str, Any], ...]:
    """Values in order, kept and dropped; shares of the sources before and after."""
    finite = np.isfinite(choice.values)
    order = np.argsort(-choice.values[finite], kind="stable")
    values, kept = choice.values[finite][order], choice.kept[finite][order]
    places = np.unique(np.linspace(0, len(values) - 1, min(POINTS, len(values))).round().astype(int))
    curves = {}
    for name, there in (("kept", kept), ("dropped", ~kept)):
        chosen = [n for n in places.tolist() if there[n]]
        curves[name] = ([100 * (n + 1) / len(values) for n in chosen], values[chosen].tolist())
    found = [chart("Values of all rows, highest first", ("% of the scored rows", "value"), curves, kind="scatter")]
    names = list(dict.fromkeys(sources))
    if len(names) > 1:
        before, after = counts_of(sources, np.ones(len(sources), dtype=bool)), counts_of(sources, choice.kept)
        total = max(1, int(choice.kept.sum()))
        spots = [float(n) for n in range(len(names))]
        shares = {
            "of all rows": (spots, [100 * before[name] / len(sources) for name in names]),
            "of the kept": (spots, [100 * after[name] / total for name in names]),
        }
        found.append(chart("Shares of the sources", ("", "%"), shares, kind="bars", groups=names))
    return tuple(found)
