"""Suspicious labels, told: what to look at, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.results import RowView
from whence.select.account import Account, Table, chart
from whence.select.choose import Choice
from whence.select.origins import Opened

SHOWN, LONGEST = 40, 160


@dataclass(frozen=True)
class Suspect:
    """One row to look at.

    Attributes:
        id: of the row.
        label: as given.
        suggested: another label under which it would help, or None.
        suspicion: 0 to 1, mean of ranks.
        parts: what it is made of.
        supports: ids of rows that speak for the label, strongest first.
        opposes: ids of rows that speak against it.
    """

    id: str
    label: str
    suggested: str | None
    suspicion: float
    parts: Mapping[str, float]
    supports: tuple[str, ...]
    opposes: tuple[str, ...]


def tell_cleaning(
    opened: Opened,
    suspects: tuple[Suspect, ...],
    suspicion: np.ndarray,
    *,
    views: Mapping[str, RowView],
    about: Mapping[str, Any],
) -> tuple[Account, Choice]:
    """The account of ``clean``, and what is kept."""
    out = {s.id for s in suspects}
    kept = np.array([id_ not in out for id_ in opened.rows.ids])
    reasons = tuple("not scored" if not np.isfinite(v) else "kept" if k else "suspicious label"
                    for v, k in zip(suspicion.tolist(), kept.tolist(), strict=True))  # fmt: skip
    choice = Choice(-suspicion, kept, reasons)
    other = sum(s.suggested is not None for s in suspects)
    harm = bool(suspects) and "validation" in suspects[0].parts
    words = (
        "Rows were ordered by how much the model would owe its fit of them to themselves"
        + (", and by how much they raise the loss of the validation rows; both count by rank." if harm else "."),
        f"For {other:,} of the {len(suspects):,} shown "
        + ("another label would help the validation rows more." if harm else "another label is likelier to the model."),
        "A suspicious row need not be wrong: rare and difficult rows look the same from here. Look before you change.",
    )
    title = f"{len(suspects):,} of {len(kept):,} labels to look at"
    tables = (_labels_table(suspects), _suspects_table(suspects, views))
    ordered: list[float] = np.sort(suspicion[np.isfinite(suspicion)])[::-1].tolist()
    share = [100 * (n + 1) / len(ordered) for n in range(len(ordered))]
    drawn = chart(
        "Suspicion of all rows",
        ("% of the rows", "suspicion"),
        {"rows": (share[:: _step(share)], ordered[:: _step(share)])},
    )
    return Account("clean", title, words, tables, (drawn,), about), choice


def _step(values: list[float]) -> int:
    return max(1, len(values) // 200)


def _labels_table(suspects: tuple[Suspect, ...]) -> Table:
    counts: dict[tuple[str, str], int] = {}
    for suspect in suspects:
        key = (suspect.label, suspect.suggested or "as it is")
        counts[key] = counts.get(key, 0) + 1
    rows = tuple((given, to, n) for (given, to), n in sorted(counts.items(), key=lambda item: -item[1]))
    return Table("Suspicious rows by label", ("label", "suggested", "rows"), rows)


def _suspects_table(suspects: tuple[Suspect, ...], views: Mapping[str, RowView]) -> Table:
    def shown(ids: tuple[str, ...]) -> str:
        return " · ".join(f"[{views[i].label}] {_short(views[i].text)}" for i in ids[:2] if i in views)

    rows = tuple(
        (s.suspicion, s.id, s.label, s.suggested or "", _short(views[s.id].text), shown(s.supports), shown(s.opposes))
        for s in suspects[:SHOWN]
    )
    columns = ("suspicion", "id", "label", "suggested", "text", "supported by", "opposed by")
    return Table("First to look at", columns, rows)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
