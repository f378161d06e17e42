"""``mislabel`` from what the user points at: rows read, labels planted or known, a classifier opened or trained.

Without a model a small classifier over word counts is trained on the labels *as given*, planted ones included, so that
what is asked is what training on a wrong label did. A finished model was not trained on labels planted afterwards; the
outcome says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from whence.errors import DataError, OptionError
from whence.evaluate.bag import BagSettings, WordTokenizer, accuracy, train_bag
from whence.evaluate.contenders import Contest
from whence.evaluate.mislabel import SUSPECTS, Labelled, plant_flips, suspect_parts, suspicion
from whence.evaluate.mislabel import mislabel as judge
from whence.evaluate.outcome import Outcome
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import parse_damping
from whence.options import TraceOptions
from whence.pipeline import open_classifier, open_rows, spec_name
from whence.store.provenance import environment
from whence.tasks.base import Example, RowProblem, Task
from whence.tasks.batches import plan_batches
from whence.tasks.classification import SequenceClassification
from whence.tasks.encode import encode_rows
from whence.tasks.rows import ReadOptions, Row, check_bad_rows, read_rows, row_view
from whence.watch import Watcher


@dataclass(frozen=True)
class Labels:
    """Which labels are wrong.

    Attributes:
        flip: share of labels to plant wrongly; ignored with ``truth``.
        truth: column with the true label; rows where it differs from ``label`` are the wrong ones.
        held_out: share of the rows kept apart, with right labels, as validation where no file of them is given
            (built-in classifier only: a finished model has been trained on all rows).
        bag: how the built-in classifier is trained; its seed is that of the options.
    """

    flip: float = 0.1
    truth: str | None = None
    held_out: float = 0.2
    bag: BagSettings = field(default_factory=BagSettings)

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise OptionError(f"held_out {self.held_out}", wanted="a share in (0, 1)")


def suspect(
    model: Any,
    data: Any,
    validation: Any,
    labels: Labels,
    *,
    terms: tuple[tuple[str, ...], TraceOptions],
    watch: Watcher,
) -> Outcome:
    """See ``whence.evaluating.mislabel``."""
    names, options = terms
    for name in names:
        suspect_parts(name)
    parse_damping(options.damping)
    began = time.perf_counter()
    opened = _finished(model, data, validation, labels, options=options, watch=watch) if model is not None else (
        _trained(data, validation, labels, options=options, watch=watch)
    )  # fmt: skip
    rows, texts, about = opened
    contest = Contest(
        damping=options.damping, fisher=options.fisher, fit_rows=options.fit_rows, seed=options.seed, watch=watch
    )
    if rows.validation is not None:
        asked = tuple(texts[id_] for id_ in rows.validation.ids)
        contest = replace(contest, query_texts=asked, row_texts=tuple(texts[id_] for id_ in rows.train.ids))
    scores = suspicion(names or SUSPECTS, rows, contest)
    about |= {
        "data": spec_name(data),
        "labels": {"flip": None if labels.truth else labels.flip, "truth": labels.truth},
        "damping": options.damping,
        "seed": options.seed,
        "environment": environment(threads=torch.get_num_threads()),
        "seconds": round(time.perf_counter() - began, 2),
    }
    return judge(scores, rows, about=about)


# --- a finished model ----------------------------------------------------------------------------------------------


def _finished(
    model: Any, data: Any, validation: Any, labels: Labels, *, options: TraceOptions, watch: Watcher
) -> tuple[Labelled, dict[str, str], dict[str, Any]]:
    """The user's classifier; its layers, its rows."""
    without = "no --model for the built-in classifier over word counts"
    subject, task = open_classifier(model, options, watch, why="mislabel", without=without)
    material = open_rows(subject, data, what="train")
    rows, examples = material.by_id(), list(material.examples)
    classes = len(set(task.label2id.values()))
    given, wrong = _given(task, rows, examples, labels, sizes=(classes, options.seed))
    texts, held = _texts_of(rows, examples), None
    if validation is not None:
        right = open_rows(subject, validation, what="query")
        held, texts = right.source, texts | _texts_of(right.by_id(), right.examples)
    source = replace(material.source, examples=given)
    suspects = Labelled(source, wrong, held, planted=labels.truth is None, trained_on=labels.truth is not None)
    about = {"model": str(model)[:200], "train": material.about(), "layers": list(subject.layers.names)}
    return suspects, texts, about


# --- the built-in classifier ---------------------------------------------------------------------------------------


def _trained(
    data: Any, validation: Any, labels: Labels, *, options: TraceOptions, watch: Watcher
) -> tuple[Labelled, dict[str, str], dict[str, Any]]:
    """A classifier over word counts trained on the labels as given."""
    rows, held_rows = _split(_read(data, options), validation, labels, options)
    names = {name: n for n, name in enumerate(sorted({str(row.fields.get("label")) for row in (*rows, *held_rows)}))}
    if len(names) < 2:
        raise DataError(f"{len(names)} label in {spec_name(data)}", wanted="rows with `text` and at least two labels")
    tokenizer = WordTokenizer.of([str(row.fields.get("text", "")) for row in rows])
    task = SequenceClassification(tokenizer, label2id=names, max_length=options.max_length)
    examples, apart = _encoded(task, rows, options), _encoded(task, held_rows, options)
    by_id = {row.id: row for row in (*rows, *held_rows)}
    given, wrong = _given(task, by_id, examples, labels, sizes=(len(names), options.seed))
    right = _right(task, by_id, apart, labels)
    sizes = (tokenizer.size, len(names))
    model = train_bag(task, given, sizes=sizes, settings=replace(labels.bag, seed=options.seed))
    fitted, reached = accuracy(task, model, given), accuracy(task, model, right)
    watch.note(
        "classifier",
        f"trained   word counts, {len(given):,} rows, {len(names)} labels, {len(wrong)} of them wrong · "
        f"fits {fitted:.1%} of them, and is right on {reached:.1%} of {len(right):,} held out",
        fitted=fitted, held_out=reached, rows=len(given), wrong=len(wrong),
    )  # fmt: skip
    layers = find_layers(model, options.layers)
    train, held = (
        LiveGradients(model, task, part, plan_batches([e.length for e in part], token_budget=4096), layers)
        for part in (given, right)
    )
    about = {"model": "word counts, one hidden layer", "bag": vars(labels.bag), "fitted": fitted, "held_out": reached}
    return Labelled(train, wrong, held, planted=labels.truth is None), _texts_of(by_id, (*given, *right)), about


def _read(spec: Any, options: TraceOptions) -> list[Row]:
    """Rows with their labels as text, since the built-in classifier has no numbers of its own."""
    found = read_rows(spec, options=ReadOptions(columns=options.columns, max_bad_rows=options.bad_rows_allowed))
    return [_as_text(row, "label") for row in found.rows]


def _as_text(row: Row, column: str) -> Row:
    value = row.fields.get(column)
    return row if value is None else replace(row, fields={**row.fields, column: str(value)})


def _split(rows: list[Row], validation: Any, labels: Labels, options: TraceOptions) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out: a file of their own, or a share of these at random."""
    if validation is not None:
        return rows, _read(validation, options)
    mixed = np.random.default_rng(options.seed).permutation(len(rows))
    apart = set(mixed[: max(1, round(labels.held_out * len(rows)))].tolist())
    return [r for n, r in enumerate(rows) if n not in apart], [r for n, r in enumerate(rows) if n in apart]


def _encoded(task: Task, rows: Sequence[Row], options: TraceOptions) -> list[Example]:
    examples, bad = encode_rows(task, rows)
    check_bad_rows(bad, len(rows), options.bad_rows_allowed)
    return examples


# --- labels --------------------------------------------------------------------------------------------------------


def _given(
    task: SequenceClassification,
    rows: Mapping[str, Row],
    examples: list[Example],
    labels: Labels,
    *,
    sizes: tuple[int, int],
) -> tuple[list[Example], frozenset[str]]:
    """Rows as the model gets them, and which labels are wrong: planted (classes, seed), or known by a column."""
    if labels.truth is None:
        return plant_flips(examples, labels.flip, classes=sizes[0], seed=sizes[1])
    right = _right(task, rows, examples, labels)
    wrong = frozenset(e.id for e, r in zip(examples, right, strict=True) if int(e.labels) != int(r.labels))
    return examples, wrong


def _right(
    task: SequenceClassification, rows: Mapping[str, Row], examples: list[Example], labels: Labels
) -> list[Example]:
    """The same rows with their true labels.

    Raises:
        DataError: a row without one, or one that is no label of the model.
    """
    if labels.truth is None:
        return examples
    found = []
    for example in examples:
        row = rows[example.id]
        if row.fields.get(labels.truth) is None:
            raise DataError(
                f"row {row.id} ({row.location}) has no {labels.truth!r}",
                wanted="a column with every row's true label",
                try_=f"one of its columns: {', '.join(map(str, row.fields))}",
            )
        true = replace(row, fields={**row.fields, "label": row.fields[labels.truth]})
        try:
            found.append(task.encode(_as_text(true, "label")))
        except RowProblem as problem:
            raise DataError(
                f"row {row.id} ({row.location}): {problem}", wanted="a true label of the model"
            ) from problem
    return found


def _texts_of(rows: Mapping[str, Row], examples: Sequence[Example]) -> dict[str, str]:
    return {example.id: row_view(rows[example.id]).text for example in examples}
