"""``clean``: which labels of a classifier's rows to look at first, why, and what they should perhaps be.

A suspicious row is one whose influence on itself is large (the model learned it by heart) and which drives the loss of
validation rows up (Koh & Liang 2017, section 5.4). Both become one order by their ranks. Each suspicious row is shown
with the rows that support its label and those that oppose it, and with the label under which it would help most.

Without a model, small classifiers over word counts are trained on the labels as given, one for every fold, and each row
is judged by the one that has not seen it: a classifier that learned a wrong label by heart finds it in order.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whence.errors import DataError, OptionError
from whence.evaluate.bag import BagSettings, WordTokenizer, train_bag
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.judging import Terms, judge, judge_unseen, neighbours
from whence.options import TraceOptions, trace_options
from whence.pipeline import open_classifier, open_rows
from whence.select.account import Account
from whence.select.amounts import Amount
from whence.select.choose import Choice
from whence.select.edited import write_edited
from whence.select.labels import suggest, together
from whence.select.origins import Opened, open_places
from whence.select.relabel import Suspect, tell_cleaning
from whence.store import atomic
from whence.store.provenance import environment
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.classification import SequenceClassification
from whence.tasks.encode import encode_rows
from whence.tasks.rows import Row, check_bad_rows, row_view
from whence.watch import Silent, Watcher
from whence.written import check_out, write_account, write_chosen

SUSPICIOUS, RELABELLED = "suspicious.jsonl", "relabelled"


@dataclass(frozen=True)
class Cleaning:
    """What to look at.

    Attributes:
        inspect: how many suspicious rows are shown, written and left out of ``kept``.
        folds: of the built-in classifier, at least 2.
        supports: rows shown for and against each suspicious one.
        terms: method, damping and seed of the influence.
        bag: how the built-in classifier is trained.
    """

    inspect: Amount = field(default_factory=lambda: Amount(share=0.05))
    folds: int = 5
    supports: int = 3
    terms: Terms = field(default_factory=Terms)
    bag: BagSettings = field(default_factory=lambda: BagSettings(epochs=4))

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise OptionError(f"{self.folds} fold", wanted="at least 2: one to train on, one to judge by")


@dataclass(frozen=True)
class _Case:
    """What was found about N usable rows, in the order of ``source.ids``."""

    parts: Mapping[str, np.ndarray]
    merits_CN: np.ndarray
    least: float
    source: LiveGradients
    names: tuple[str, ...]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Cleaned:
    """What was found.

    Attributes:
        opened: the rows and their places.
        suspects: first to inspect first.
        choice: kept = not among the suspects; values are minus the suspicion.
        account: what was done and why.
        label: the user's column of labels.
        written: class -> the label by which most of its rows say so (a number, or a name of the rows' own).
    """

    opened: Opened
    suspects: tuple[Suspect, ...]
    choice: Choice
    account: Account
    label: str
    written: Mapping[str, Any]

    def write(self, folder: str | Path) -> tuple[Path, ...]:
        """``suspicious.jsonl`` with reasons, ``kept`` and ``dropped`` rows, ``relabelled`` rows with the suggestions.

        Raises:
            StoreError: the folder is not ours.
            DataError: the files no longer hold these rows.
        """
        place = check_out(folder)
        files = write_chosen(place, self.opened, self.choice)
        atomic.write_jsonl(place / SUSPICIOUS, (asdict(suspect) for suspect in self.suspects))
        files.append(place / SUSPICIOUS)
        files += write_edited(self.opened.origins, self._edits(), place, RELABELLED)
        kept = self.choice.kept
        return write_account(place, self.account, files, rows=len(kept), kept=int(kept.sum()))

    def _edits(self) -> dict[int, dict[str, Any]]:
        """Position -> fields to change, for rows with a suggestion: labels as the rows themselves write them."""
        at = {id_: n for n, id_ in enumerate(self.opened.rows.ids)}
        return {
            at[s.id]: {self.label: self.written.get(s.suggested, s.suggested)} for s in self.suspects if s.suggested
        }


def clean(
    model: Any = None,
    *,
    data: Any,
    validation: Any = None,
    how: Cleaning | None = None,
    options: TraceOptions | Mapping[str, Any] | None = None,
    watch: Watcher | None = None,
) -> Cleaned:
    """Rank the labels by suspicion.

    Args:
        model: a sequence classifier trained on these rows, or None for the built-in one over word counts.
        data: rows with ``text`` and ``label``.
        validation: rows with labels that are right; without them rows are judged by self-influence alone.
        how: what to look at.
        options: layers, columns, lengths ... of the reading and the model.
        watch: hears what is done.

    Raises:
        TaskError: a model that is no sequence classifier.
        DataError: rows without labels, or with one label only.
        WhenceError: as ``whence.attribute``.
    """
    began, how, watch = time.perf_counter(), how or Cleaning(), watch or Silent()
    settings = trace_options(options)
    opened = open_places(data, columns=settings.columns)
    if model is None:
        case = _built_in(data, validation, how, settings, watch=watch)
    else:
        case = _finished(model, data, validation, how, settings=settings, watch=watch)
    suspicion = _placed(together(case.parts), case.source.ids, opened)
    suspects = _suspects(case, how, opened, suspicion)
    views = {row.id: row_view(row) for row in opened.rows.rows}
    about = {
        **case.about,
        "environment": environment(threads=torch.get_num_threads()),
        "seconds": round(time.perf_counter() - began, 2),
        "inspect": str(how.inspect),
    }
    label = settings.columns.get("label", "label")
    account, choice = tell_cleaning(opened, suspects, suspicion, views=views, about=about)
    return Cleaned(opened, suspects, choice, account, label, _as_written(case, opened))


# --- who is judged -------------------------------------------------------------------------------------------------


def _finished(
    model: Any, data: Any, validation: Any, how: Cleaning, *, settings: TraceOptions, watch: Watcher
) -> _Case:
    """A classifier of the user's, trained on these rows."""
    without = "no model, for the built-in classifier over word counts"
    subject, task = open_classifier(model, settings, watch, why="clean", without=without)
    train = open_rows(subject, data, what="train")
    held = None if validation is None else open_rows(subject, validation, what="query").source
    names = _class_names(task.label2id)
    found = judge(train.source, held, how.terms, classes=len(names), watch=watch)
    about = {"model": str(model)[:200], "train": train.about(), "layers": list(subject.layers.names)}
    return _Case(found.parts, found.merits_CN, found.least, train.source, names, about)


def _class_names(label2id: Mapping[str, int]) -> tuple[str, ...]:
    found = {n: name for name, n in label2id.items()}
    return tuple(str(found[n]) for n in sorted(found))


def _built_in(data: Any, validation: Any, how: Cleaning, settings: TraceOptions, *, watch: Watcher) -> _Case:
    """Classifiers over word counts: one by fold, or a single one beside rows that are known to be right."""
    rows = _with_text_labels(data, settings)
    held_rows = [] if validation is None else _with_text_labels(validation, settings)
    names = tuple(sorted({str(row.fields.get("label")) for row in rows}))
    if len(names) < 2:
        raise DataError(f"{len(names)} label among the rows", wanted="rows with `text` and at least two labels")
    tokenizer = WordTokenizer.of([str(row.fields.get("text", "")) for row in rows])
    task = SequenceClassification(tokenizer, {n: i for i, n in enumerate(names)}, max_length=settings.max_length)
    train, held = (_encoded(task, part, settings) for part in (rows, held_rows))

    def trained(part: Sequence[Example], seed: int) -> LiveGradients:
        sizes = (tokenizer.size, len(names))
        bag = train_bag(task, part, sizes=sizes, settings=replace(how.bag, seed=how.bag.seed + seed))
        layers = find_layers(bag, settings.layers)
        return LiveGradients(bag, task, part, plan_batches([e.length for e in part], token_budget=4096), layers)

    everyone = trained(train, 0)
    about = {"model": "word counts, one hidden layer", "bag": vars(how.bag), "rows": len(train)}
    if held:
        found = judge(everyone, _other(everyone, held), how.terms, classes=len(names), watch=watch)
        return _Case(found.parts, found.merits_CN, found.least, everyone, names, about)
    parts, merits = _by_folds(train, how, trained, classes=len(names))
    return _Case(parts, merits, -np.inf, everyone, names, {**about, "folds": how.folds})


def _by_folds(
    train: Sequence[Example], how: Cleaning, trained: Any, *, classes: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each row as the model sees it that was trained on the other folds."""
    fold_N = np.random.default_rng(how.terms.seed).permutation(len(train)) % how.folds
    parts: dict[str, np.ndarray] = {}
    merits = np.full((classes, len(train)), np.nan)
    for fold in range(how.folds):
        inside = trained([e for e, f in zip(train, fold_N, strict=True) if f != fold], fold)
        outside = _other(inside, [e for e, f in zip(train, fold_N, strict=True) if f == fold])
        judged = judge_unseen(inside, outside, how.terms, classes=classes)
        for name, values in judged.parts.items():
            parts.setdefault(name, np.full(len(train), np.nan))[fold_N == fold] = values
        merits[:, fold_N == fold] = judged.merits_CN
    return parts, merits


def _other(source: LiveGradients, rows: Sequence[Example]) -> LiveGradients:
    """The same model over other rows."""
    return replace(source, examples=rows, plan=plan_batches([e.length for e in rows], token_budget=4096))


def _with_text_labels(spec: Any, settings: TraceOptions) -> list[Row]:
    """Rows with their labels as text: the built-in classifier has no numbers of its own for them."""
    opened = open_places(spec, columns=settings.columns)
    return [
        replace(row, fields={**row.fields, "label": str(row.fields["label"])})
        if row.fields.get("label") is not None
        else row
        for row in opened.rows.rows
    ]


def _encoded(task: SequenceClassification, rows: Sequence[Row], settings: TraceOptions) -> list[Example]:
    if not rows:
        return []
    examples, bad = encode_rows(task, rows)
    check_bad_rows(bad, len(rows), settings.bad_rows_allowed)
    return examples


# --- what is found -------------------------------------------------------------------------------------------------


def _as_written(case: _Case, opened: Opened) -> dict[str, Any]:
    """Class -> the value of the column of labels that most of its rows have."""
    rows, found = opened.by_id(), dict[str, dict[str, Any]]()
    said = Counter[tuple[str, str]]()
    for example in case.source.examples:
        name, label = case.names[int(example.labels)], rows[example.id].fields["label"]
        found.setdefault(name, {})[repr(label)] = label
        said[name, repr(label)] += 1
    return {name: labels[max(labels, key=lambda r, name=name: said[name, r])] for name, labels in found.items()}


def _placed(values: np.ndarray, ids: Sequence[str], opened: Opened) -> np.ndarray:
    """Values of usable rows among all rows."""
    known = dict(zip(ids, values.tolist(), strict=True))
    return np.array([known.get(id_, np.nan) for id_ in opened.rows.ids])


def _suspects(case: _Case, how: Cleaning, opened: Opened, suspicion: np.ndarray) -> tuple[Suspect, ...]:
    """The most suspicious rows with their reasons, first to inspect first."""
    source = case.source
    place = {id_: n for n, id_ in enumerate(opened.rows.ids)}
    own = np.array([suspicion[place[id_]] for id_ in source.ids])
    count = how.inspect.of(len(opened.rows.ids))
    order = [n for n in np.argsort(-own, kind="stable").tolist() if np.isfinite(own[n])][:count]
    if not order:
        return ()
    ids = [source.ids[n] for n in order]
    near = neighbours(source, ids, how.terms, count=how.supports) if how.supports else dict.fromkeys(ids, ((), ()))
    given = np.array([int(e.labels) for e in source.examples])
    wanted = suggest(case.merits_CN, given, least=case.least)
    return tuple(
        Suspect(
            id=source.ids[n],
            label=case.names[given[n]],
            suggested=case.names[wanted[n]] if wanted[n] != given[n] else None,
            suspicion=float(own[n]),
            parts={name: float(values[n]) for name, values in case.parts.items()},
            supports=near[source.ids[n]][0],
            opposes=near[source.ids[n]][1],
        )
        for n in order
    )
