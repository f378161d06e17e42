"""Evaluations of the user's model and rows: opens both, lets the contenders score, and judges them. Plain data out.

::

    from whence import evaluating

    found = evaluating.retrieval("model", train="train.jsonl", query="questions.jsonl", known="relevant.jsonl")
    found.rows

Every verb returns an ``Outcome``; ``whence.report.evaluation.write_outcome`` makes a folder with a page of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from whence.errors import DataError
from whence.evaluate.contenders import EVERYONE, Contest, check_shuffled, contenders, parse_contender
from whence.evaluate.journal import Journal
from whence.evaluate.outcome import Outcome
from whence.evaluate.pbrf import PbrfSettings
from whence.evaluate.retrieval import Provenance
from whence.evaluate.retrieval import retrieval as judge_retrieval
from whence.evaluate.solvers import BESIDE, ceiling_of, sample_rows, sampled_responses, solver_board
from whence.evaluate.tailpatch import StepSettings
from whence.evaluate.tailpatch import tailpatch as step_on
from whence.linalg.damping import parse_damping
from whence.loading.fingerprints import tensor_digest
from whence.options import TraceOptions
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.store.provenance import environment
from whence.suspecting import Labels, suspect
from whence.tasks.base import Task
from whence.tasks.rows import row_view
from whence.watch import Silent, Watcher

MOST_KNOWN = 256 << 20  # bytes of a file of relevant ids


@dataclass(frozen=True)
class Terms:
    """How an evaluation is held.

    Attributes:
        contenders: who takes part (see ``whence.evaluate.contenders``); () = the verb's own choice.
        options: layers, damping, fisher, fit_rows, seed, dtype, columns ...; its method plays no part.
        task: for models whose task cannot be told from them, as ``whence.attribute(task=...)``.
        work: folder that keeps finished pieces of long work; the same call again goes on from there. None = nowhere.
    """

    contenders: tuple[str, ...] = ()
    options: TraceOptions = field(default_factory=TraceOptions)
    work: str | Path | None = None
    task: Task | None = None


@dataclass(frozen=True)
class Opened:
    """A model with its training rows and questions, ready for the contenders.

    Attributes:
        subject: the model.
        train, asked: usable rows of both sides.
        contest: the terms, with the texts that word overlap looks at.
        began: when opening began, ``time.perf_counter`` seconds.
    """

    subject: Subject
    train: Material
    asked: Material
    contest: Contest
    began: float

    def journal(self, terms: Terms, verb: str, settings: Mapping[str, Any]) -> Journal:
        """Where this verb keeps finished pieces; of another model, rows, questions or settings it is refused.

        Raises:
            StoreError: names the fields that differ.
        """
        if terms.work is None:
            return Journal()
        plan = {
            "verb": verb,
            "model": tensor_digest(self.subject.loaded.model),
            "layers": list(self.subject.layers.names),
            "task": self.subject.task.fingerprint(),
            "train": self.train.rows.fingerprint,
            "query": self.asked.rows.fingerprint,
            **settings,
        }
        return Journal.open(Path(terms.work) / verb, plan)

    def about(self, model: Any) -> dict[str, Any]:
        """Settings, versions, machine and seconds, for the record of an outcome."""
        options = self.subject.options
        return {
            "model": str(model)[:200] if isinstance(model, (str, Path)) else type(self.subject.loaded.model).__name__,
            "train": self.train.about(),
            "query": self.asked.about(),
            "layers": list(self.subject.layers.names),
            "options": options.model_dump(exclude_defaults=True, exclude={"method"}),
            "damping": options.damping,
            "seed": options.seed,
            "environment": environment(threads=torch.get_num_threads()),
            "seconds": round(time.perf_counter() - self.began, 2),
        }


def check_terms(terms: Terms) -> None:
    """Refuse contenders and dampings that do not exist before anything is loaded or trained.

    Raises:
        OptionError: names them.
    """
    check_shuffled([parse_contender(name) for name in terms.contenders])
    parse_damping(terms.options.damping)


def open_both(model: Any, train: Any, query: Any, *, terms: Terms, watch: Watcher) -> Opened:
    """Open model, rows and questions.

    Raises:
        WhenceError: as ``whence.attribute``.
    """
    check_terms(terms)
    began = time.perf_counter()
    subject = open_subject(model, terms.options, watch, task=terms.task)
    rows, asked = open_rows(subject, train, what="train"), open_rows(subject, query, what="query")
    return Opened(subject, rows, asked, contest_of(terms, rows, asked, watch), began)


def contest_of(terms: Terms, rows: Material, asked: Material, watch: Watcher) -> Contest:
    """The terms for contenders, with everybody's texts."""
    options = terms.options
    return Contest(
        damping=options.damping,
        fisher=options.fisher,
        fit_rows=options.fit_rows,
        seed=options.seed,
        query_texts=texts_of(asked),
        row_texts=texts_of(rows),
        watch=watch,
    )


def texts_of(material: Material) -> tuple[str, ...]:
    """Texts of the usable rows, in the order of their gradients."""
    rows = material.by_id()
    return tuple(row_view(rows[id_]).text for id_ in material.source.ids)


# --- retrieval -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What is known about one question: ids of rows that taught it, ids that do not count, and its kind."""

    relevant: frozenset[str]
    ignored: frozenset[str] = frozenset()
    kind: str = ""


def retrieval(
    model: Any, *, train: Any, query: Any, known: Any, terms: Terms | None = None, watch: Watcher | None = None
) -> Outcome:
    """Are the rows found that are known to have taught the answer? MRR, recall and precision.

    Args:
        model: as ``whence.attribute``.
        train: its training rows.
        query: the questions.
        known: question id -> ``Known`` (or ids of relevant rows), or a file for ``read_known``.
        terms: who takes part, and how.
        watch: hears about progress.

    Raises:
        DataError: ids that do not exist; questions of which nothing is known are left out, not refused.
        WhenceError: as ``whence.attribute``.
    """
    terms, watch = terms or Terms(), watch or Silent()
    facts = read_known(known) if isinstance(known, (str, Path)) else {id_: _as_known(k) for id_, k in known.items()}
    opened = open_both(model, train, query, terms=terms, watch=watch)
    asked = opened.asked.source.ids
    for id_ in facts:
        if id_ not in asked:
            raise DataError(f"relevant rows of a question {id_!r}", wanted="ids of the questions asked")
    nothing = Known(frozenset())
    found = [facts.get(id_, nothing) for id_ in asked]
    kinds = tuple(each.kind or "other" for each in found) if any(each.kind for each in found) else ()
    provenance = Provenance(tuple(k.relevant for k in found), tuple(k.ignored for k in found), kinds)
    scores = contenders(terms.contenders or EVERYONE, opened.train.source, opened.asked.source, opened.contest)
    rows = opened.train.source.ids
    return judge_retrieval(scores, provenance, train_ids=rows, query_ids=asked, about=opened.about(model))


def _as_known(value: Any) -> Known:
    return value if isinstance(value, Known) else Known(frozenset(map(str, value)))


def read_known(path: str | Path) -> dict[str, Known]:
    """Relevant ids of questions from JSONL, a line ``{"id": question, "relevant": [row ids]}`` per question.

    Optional per line: ``ignored`` (row ids that are neither right nor wrong), ``kind`` (questions judged apart).

    Raises:
        DataError: no such file, or a line that is not of this form.
    """
    place = Path(path).expanduser()
    form = '{"id": "q1", "relevant": ["row-7", "row-9"]}'
    try:
        if place.stat().st_size > MOST_KNOWN:
            raise DataError(f"{place} is larger than {MOST_KNOWN >> 20} MB", wanted="one line per question")
        lines = place.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"relevant rows {place}: {error}", wanted="a JSONL file", try_=form) from error
    found: dict[str, Known] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            lists = [record["relevant"], record.get("ignored", [])]
            if not all(isinstance(each, list) for each in lists) or record["id"] in found:
                raise ValueError("a question twice, or ids that are not a list")
            relevant, ignored = (frozenset(map(str, ids)) for ids in lists)
            found[str(record["id"])] = Known(relevant, ignored, str(record.get("kind", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{place}:{number}: {said}", wanted="one JSON object per question", try_=form) from error
    return found


# --- one step, one response ----------------------------------------------------------------------------------------


def tailpatch(
    model: Any,
    *,
    train: Any,
    query: Any,
    terms: Terms | None = None,
    settings: StepSettings | None = None,
    watch: Watcher | None = None,
) -> Outcome:
    """Does one training step on the rows put first make the answer likelier?

    Args:
        model: as ``whence.attribute``.
        train: its training rows.
        query: the questions.
        terms: who takes part, and how; rows once stepped on are kept in ``terms.work``.
        settings: optimiser, rate and number of rows.
        watch: hears about progress.

    Raises:
        StoreError: the work folder belongs to another question.
        WhenceError: as ``whence.attribute``.
    """
    terms, settings, watch = terms or Terms(), settings or StepSettings(), watch or Silent()
    opened = open_both(model, train, query, terms=terms, watch=watch)
    journal = opened.journal(terms, "tailpatch", {"optimiser": settings.optimiser, "rate": settings.rate})
    rows, asked = opened.train.source, opened.asked.source
    scores = contenders(terms.contenders or EVERYONE, rows, asked, opened.contest)
    found = step_on(rows, asked, scores, settings=settings, journal=journal, watch=watch)
    return replace(found, about={**found.about, **opened.about(model)})


def pbrf(
    model: Any,
    *,
    train: Any,
    query: Any,
    terms: Terms | None = None,
    sample: Sample | None = None,
    watch: Watcher | None = None,
) -> Outcome:
    """Does the solver predict a short proximal retraining, row by row?

    Args:
        model: as ``whence.attribute``; every row is read hundreds of times.
        train: its training rows, all of which hold the model in place.
        query: the questions.
        terms: who takes part, and how; solved rows are kept in ``terms.work``.
        sample: how many rows get a response, and how these are taken.
        watch: hears about progress.

    Raises:
        StoreError: the work folder belongs to another question.
        WhenceError: as ``whence.attribute``.
    """
    terms, sample, watch = terms or Terms(), sample or Sample(), watch or Silent()
    opened = open_both(model, train, query, terms=terms, watch=watch)
    rows, asked = opened.train.source, opened.asked.source
    exact = ceiling_of(rows)
    journal = opened.journal(terms, "pbrf", {"damping": terms.options.damping, **vars(sample.settings)})
    names = dict.fromkeys((exact, *(terms.contenders or BESIDE)))
    scores = contenders(tuple(names), rows, asked, opened.contest)
    truth = sampled_responses(
        rows,
        asked,
        sample_rows(rows.ids, sample.rows, seed=terms.options.seed),
        damping=parse_damping(terms.options.damping),
        settings=sample.settings,
        listening=(journal, watch),
    )
    return solver_board(scores, truth, train_ids=rows.ids, ceiling=exact, about=opened.about(model))


@dataclass(frozen=True)
class Sample:
    """Which rows get a response: ``rows`` of them at random, taken as ``settings`` say."""

    rows: int = 20
    settings: PbrfSettings = field(default_factory=PbrfSettings)


# --- labels --------------------------------------------------------------------------------------------------------


def mislabel(
    model: Any = None,
    *,
    data: Any,
    validation: Any = None,
    labels: Labels | None = None,
    terms: Terms | None = None,
    watch: Watcher | None = None,
) -> Outcome:
    """Are wrong labels found by influence, and better than by their loss?

    Args:
        model: a sequence classifier, as ``whence.attribute``; None = a small classifier over word counts, trained now
            on the labels as given, planted ones included.
        data: rows with ``text`` and ``label``.
        validation: rows with right labels; without a model a share of ``data`` is held out for it.
        labels: how many labels to plant wrongly, or the column with the true ones.
        terms: who takes part (see ``whence.evaluate.mislabel``), and how.
        watch: hears about progress.

    Raises:
        OptionError, DataError, TaskError: labels that cannot be flipped, a column that is not there, no classifier.
    """
    terms, watch = terms or Terms(), watch or Silent()
    told = (terms.contenders, terms.options)
    return suspect(model, data, validation, labels or Labels(), terms=told, watch=watch)
