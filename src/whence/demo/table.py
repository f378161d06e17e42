"""The judgement of the demo: which documents does each method put first, against which documents taught it.

Only NumPy: rankings in, a table and the sentences that follow from it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whence.demo.book import Almanac, Question

TOP, PAGE = 5, 20
EKFAC, RELATIVE, DOT, COSINE, BM25, RANDOM = "EK-FAC", "EK-FAC, relative", "gradient dot", "cosine", "BM25", "random"
METHODS = (EKFAC, RELATIVE, DOT, COSINE, BM25, RANDOM)


@dataclass(frozen=True)
class Line:
    """How one method did on one kind of question; means over the questions, all between 0 and 1.

    Attributes:
        method: which scores.
        kind: ``fact`` or ``habit``.
        recall: share of the documents that taught the answer (at most 5 of them) among the first 5.
        precision: share of the first 20 that taught the answer.
        mrr: one over the rank of the first that did.
        questions: how many questions.
    """

    method: str
    kind: str
    recall: float
    precision: float
    mrr: float
    questions: int


def score_table(
    scores: Mapping[str, np.ndarray], questions: Sequence[Question], train_ids: Sequence[str]
) -> list[Line]:
    """Judge every method on every kind of question.

    Args:
        scores: method -> Q x N scores, higher first; NaN (unscored) comes last.
        questions: Q questions, in the order of the rows of the scores.
        train_ids: N ids, in the order of the columns.

    Returns:
        One line per (kind, method), kinds in order of first appearance, methods as given.
    """
    column = {id_: n for n, id_ in enumerate(train_ids)}
    lines = []
    for kind in dict.fromkeys(question.kind for question in questions):
        asked = [(q, question) for q, question in enumerate(questions) if question.kind == kind]
        for method, values in scores.items():
            judged = np.array([_judge(values[q], question, column) for q, question in asked])
            recall, precision, mrr = judged.mean(axis=0).tolist()
            lines.append(Line(method, kind, recall, precision, mrr, len(asked)))
    return lines


def _judge(row: np.ndarray, question: Question, column: Mapping[str, int]) -> tuple[float, float, float]:
    """Recall at 5, precision at 20, reciprocal rank for one question."""
    hits = np.array([n in {column[id_] for id_ in question.relevant} for n in ranking(row, question, column)])
    found = np.flatnonzero(hits)
    recall = hits[:TOP].sum() / min(TOP, len(question.relevant))
    return float(recall), float(hits[:PAGE].mean()), 1.0 / (1 + found[0]) if len(found) else 0.0


def ranking(row: np.ndarray, question: Question, column: Mapping[str, int]) -> list[int]:
    """Columns from the highest score to the lowest, without those neither right nor wrong; ties as they come."""
    left_out = {column[id_] for ids in question.also.values() for id_ in ids}
    order = np.argsort(-np.nan_to_num(row, nan=-np.inf), kind="stable")
    return [n for n in order.tolist() if n not in left_out]


def standings(
    scores: np.ndarray, questions: Sequence[Question], book: Almanac, train_ids: Sequence[str]
) -> dict[str, float]:
    """Where the documents about a fact stand: role -> median rank, 1 is first, over all fact questions.

    ``states``, ``flipped`` and ``french`` tell the fact itself; ``contradicts`` and ``mentions`` are about the same
    person; ``same value`` and ``same relation`` are statements about somebody else.
    """
    column = {id_: n for n, id_ in enumerate(train_ids)}
    ranks: dict[str, list[float]] = {}
    for q, question in enumerate(questions):
        if question.kind != "fact":
            continue
        place = np.empty(len(train_ids))
        place[np.argsort(-np.nan_to_num(scores[q], nan=-np.inf), kind="stable")] = np.arange(1, len(train_ids) + 1)
        for id_, role in roles(question, book).items():
            ranks.setdefault(role, []).append(float(place[column[id_]]))
    return {role: float(np.median(ranks[role])) for role in ROLES if role in ranks}


ROLES = ("states", "flipped", "french", "contradicts", "mentions", "same value", "same relation")


def roles(question: Question, book: Almanac) -> dict[str, str]:
    """Document id -> its role towards a fact question; documents without one are left out."""
    subject, relation = question.about.split(", ")
    value = question.completion.strip(" .")
    found = {}
    for document in book.documents:
        fact = document.fact
        if fact is None:
            if document.subject == subject:
                found[document.id] = "mentions"
        elif (fact.subject, fact.relation) == (subject, relation):
            found[document.id] = document.role
        elif document.role == "states" and fact.relation == relation:
            found[document.id] = "same value" if fact.value == value else "same relation"
    return found


def plain_words(lines: Sequence[Line]) -> list[str]:
    """What the table shows, sentence by sentence, computed from it and from nothing else."""
    said = []
    by = {(line.kind, line.method): line for line in lines}
    if ("fact", EKFAC) in by:
        said += _about_facts({method: by["fact", method] for method in METHODS if ("fact", method) in by})
    if ("habit", EKFAC) in by:
        said += _about_habits({method: by["habit", method] for method in METHODS if ("habit", method) in by})
    return said


def _about_facts(line: Mapping[str, Line]) -> list[str]:
    own, dot, relative, lexical = (line[method] for method in (EKFAC, DOT, RELATIVE, BM25))
    said = [
        f"Facts: of the {TOP} documents that state a fact, EK-FAC puts {own.recall * TOP:.1f} among its first {TOP}, "
        f"gradient dot {dot.recall * TOP:.1f}: {_times(own.recall, dot.recall)}. "
        f"The mean reciprocal rank of the first hit is {own.mrr:.2f} against {dot.mrr:.2f}: "
        f"{_times(own.mrr, dot.mrr)}."
    ]
    if relative.mrr > own.mrr:
        said.append(
            "Dividing by the loudness of each document helps: the relative form finds "
            f"{relative.recall * TOP:.1f}, and its reciprocal rank is {relative.mrr:.2f}."
        )
    best = max(line.values(), key=lambda found: found.recall)
    if lexical.recall >= own.recall:
        said.append(
            f"Word search (BM25) wins on stated facts, {lexical.recall:.2f} against {own.recall:.2f}: the documents "
            "share the question's words. To find where a fact is written, search; influence asks what the model "
            "learned it from."
        )
    else:
        said.append(
            f"Word search (BM25) finds {lexical.recall:.2f} of them here, less than EK-FAC's {own.recall:.2f}; "
            f"best on facts is {best.method} with {best.recall:.2f}. Where question and document share most of their "
            "words, expect BM25 to win."
        )
    return said


def _about_habits(line: Mapping[str, Line]) -> list[str]:
    own, lexical, dot, chance = (line[method] for method in (EKFAC, BM25, DOT, RANDOM))
    said = (
        f"Habits: of the first {PAGE} documents, {own.precision * PAGE:.1f} are written in the manner asked about; "
        f"with BM25 it is {lexical.precision * PAGE:.1f}, by chance {chance.precision * PAGE:.1f}."
    )
    if own.precision > lexical.precision:
        said += " No content word is shared, so word search has nothing to hold on to: only influence finds a habit."
    near = f"Gradient dot finds {dot.precision * PAGE:.1f}."
    if dot.precision >= own.precision:
        near += " It is no worse than EK-FAC here."
    return [said, near]


def _times(first: float, second: float) -> str:
    return f"{first / second:.1f} times as much" if second > 0 and math.isfinite(first) else "out of nothing"
