"""Are the rows found that are known to have taught the answer? MRR, recall and precision over questions.

This measures finding, not influence: word search wins where question and document share their words (Akyürek et al.
2022, Chang et al. 2024), so it always stands beside the methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.errors import DataError, did_you_mean
from whence.evaluate.comparing import bars, by_mean, lead
from whence.evaluate.outcome import Chart, Curve, Outcome
from whence.evaluate.statistics import mean_interval, precision_at, recall_at, reciprocal_ranks

KS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # depths of the recall curve
ALL = "all"


@dataclass(frozen=True)
class Provenance:
    """What is known about Q questions.

    Attributes:
        relevant: ids of the training rows that taught the answer; an empty set leaves the question out.
        ignored: ids that are neither right nor wrong (they mention it, contradict it ...); () = none.
        kinds: a name per question, judged apart; () = all of one kind.
    """

    relevant: tuple[frozenset[str], ...]
    ignored: tuple[frozenset[str], ...] = ()
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """One contender's values per question; NaN for questions without a relevant row.

    The curve holds shares of *all* relevant rows by depth; recall is out of what k places can hold.
    """

    mrr: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    curve_KQ: np.ndarray


def retrieval(
    scores: Mapping[str, np.ndarray],
    known: Provenance,
    *,
    train_ids: Sequence[str],
    query_ids: Sequence[str],
    k: int = 10,
    about: Mapping[str, Any] | None = None,
) -> Outcome:
    """Judge contenders by rows of known provenance.

    Args:
        scores: contender -> Q x N, higher first; NaN comes last, ties count as chance.
        known: what is known.
        train_ids: N ids, in the order of the columns.
        query_ids: Q ids, in the order of the rows.
        k: rows looked at for recall and precision.
        about: settings, for the record.

    Raises:
        DataError: an id that is no training row, or no question with a relevant row.
    """
    relevant, hidden = columns_of(known, train_ids, len(query_ids))
    if not any(relevant):
        raise DataError("no question has a relevant row", wanted="at least one")
    depths = [depth for depth in KS if depth <= len(train_ids)]
    judged = {name: _judged(values, relevant, hidden, k=k, depths=depths) for name, values in scores.items()}
    kinds = known.kinds or (ALL,) * len(query_ids)
    names = list(dict.fromkeys(kinds))
    tables = {kind: _Table(judged, np.array([own == kind for own in kinds]), k) for kind in names}
    rows = [row if len(names) > 1 else row[1:] for kind, table in tables.items() for row in table.rows(kind)]
    columns = ("questions", "contender", "MRR", "95 % interval", f"recall@{k}", f"precision@{k}")
    empty = sum(not each for each in relevant)
    words = [table.words("" if kind == ALL else kind) for kind, table in tables.items()]
    words += [f"{empty} questions have no relevant row and do not count."] if empty else []
    words.append(f"recall@{k} is out of the most that {k} places can hold; a tie counts as its mean over all orders.")
    return Outcome(
        verb="retrieval",
        title="Are the rows found that are known to have taught the answer?",
        columns=columns if len(names) > 1 else columns[1:],
        rows=tuple(rows),
        charts=tuple(chart for kind, table in tables.items() for chart in table.charts(kind, depths)),
        values={
            "query_ids": list(query_ids),
            "kinds": list(kinds),
            "relevant": [len(each) for each in relevant],
            "depths": depths,
            "contenders": {name: vars(each) for name, each in judged.items()},
        },
        words=tuple(filter(None, words)),
        about={"k": k, "queries": len(query_ids), "rows": len(train_ids), **(about or {})},
    )


def columns_of(
    known: Provenance, train_ids: Sequence[str], queries: int
) -> tuple[list[frozenset[int]], list[frozenset[int]]]:
    """Relevant and ignored columns of every question.

    Raises:
        DataError: an id that is no training row, or another number of questions.
    """
    column = {id_: n for n, id_ in enumerate(train_ids)}
    ignored = known.ignored or (frozenset(),) * len(known.relevant)
    if not len(known.relevant) == len(ignored) == queries or (known.kinds and len(known.kinds) != queries):
        raise DataError(f"provenance of {len(known.relevant)} questions", wanted=f"one entry for each of {queries}")
    for id_ in sorted({id_ for ids in (*known.relevant, *ignored) for id_ in ids} - set(column)):
        raise DataError(
            f"relevant row {id_!r} is not among the training rows",
            wanted="ids of training rows that could be used",
            try_=did_you_mean(id_, train_ids),
        )
    relevant = [frozenset(column[id_] for id_ in ids) for ids in known.relevant]
    return relevant, [
        frozenset(column[id_] for id_ in ids - own) for ids, own in zip(ignored, known.relevant, strict=True)
    ]


def _judged(
    values_QN: np.ndarray,
    relevant: Sequence[frozenset[int]],
    hidden: Sequence[frozenset[int]],
    *,
    k: int,
    depths: Sequence[int],
) -> Judged:
    """Ignored columns go last, where they take nobody's place."""
    values_QN = np.array(values_QN, dtype=np.float64)
    for q, columns in enumerate(hidden):
        values_QN[q, sorted(columns)] = -np.inf
    count_Q = np.array([len(columns) or np.nan for columns in relevant])
    return Judged(
        reciprocal_ranks(values_QN, relevant),
        recall_at(values_QN, relevant, k),
        precision_at(values_QN, relevant, k),
        np.stack([precision_at(values_QN, relevant, depth) * depth / count_Q for depth in depths]),
    )


@dataclass(frozen=True)
class _Table:
    """Everybody's values on the questions of one kind."""

    judged: Mapping[str, Judged]
    chosen_Q: np.ndarray
    k: int

    def of(self, measure: str) -> dict[str, np.ndarray]:
        return {name: getattr(each, measure)[self.chosen_Q] for name, each in self.judged.items()}

    def rows(self, kind: str) -> list[tuple[Any, ...]]:
        recall, precision = self.of("recall"), self.of("precision")
        return [
            (
                kind,
                name,
                mrr.mean,
                mrr.span,
                mean_interval(recall[name]).mean,
                mean_interval(precision[name]).mean,
            )
            for name, mrr in by_mean(self.of("mrr"))
        ]

    def words(self, kind: str) -> str:
        start = f"{kind}: " if kind else ""
        return f"{start}{lead(self.of('mrr'), 'MRR')} {lead(self.of('recall'), f'recall@{self.k}')}".strip()

    def charts(self, kind: str, depths: Sequence[int]) -> list[Chart]:
        title = "" if kind == ALL else f", {kind}"
        ranked = dict(by_mean(self.of("mrr")))
        recall = dict(by_mean(self.of("recall")))
        curves = []
        for name in ranked:
            found = [mean_interval(each) for each in self.judged[name].curve_KQ[:, self.chosen_Q]]
            curves.append(Curve(name, tuple(map(float, depths)), tuple(each.mean for each in found)))
        return [
            bars(f"Found{title}", "mean over questions", {"MRR": ranked, f"recall@{self.k}": recall}, list(ranked)),
            Chart(f"Recall by depth{title}", "rows looked at", "recall", tuple(curves), log_x=True),
        ]
