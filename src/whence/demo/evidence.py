"""The Almanac as the default of ``whence evaluate``: what is known about its questions, and its rows with labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from whence.demo.almanac import almanac
from whence.demo.train import one_thread
from whence.demo.world import World, prepare
from whence.evaluate.bag import BagSettings, WordTokenizer, train_bag
from whence.evaluate.outcome import Outcome
from whence.evaluating import Known, Sample, StepSettings, Terms, check_terms, pbrf, retrieval, tailpatch
from whence.tasks.classification import SequenceClassification
from whence.tasks.records import Row
from whence.watch import Watcher

QUESTIONS, ROWS, WORDS, HIDDEN = 24, 800, 200, 8  # of the proximal responses: about 1,700 parameters
KIND_NAMES = {"fact": "facts", "habit": "habits"}


def known(world: World) -> dict[str, Known]:
    """Documents that taught each answer; those that say it otherwise, or mention it, are neither right nor wrong."""
    return {
        question.id: Known(
            question.relevant, frozenset().union(*question.also.values()), KIND_NAMES.get(question.kind, question.kind)
        )
        for question in world.asked
    }


def almanac_retrieval(place: Path, *, terms: Terms, watch: Watcher) -> Outcome:
    """``retrieval`` on the Almanac and the model of ``whence demo``, trained now if it is not in this folder."""
    check_terms(terms)
    world = prepare(place, seed=terms.options.seed, watch=watch)
    with one_thread():
        return retrieval(
            str(world.model), train=world.volumes, query=world.questions, known=known(world), terms=terms, watch=watch
        )


def almanac_tailpatch(place: Path, *, terms: Terms, settings: StepSettings, watch: Watcher) -> Outcome:
    """``tailpatch`` on the Almanac and the model of ``whence demo``."""
    check_terms(terms)
    world = prepare(place, seed=terms.options.seed, watch=watch)
    with one_thread():
        return tailpatch(
            str(world.model), train=world.volumes, query=world.questions, terms=terms, settings=settings, watch=watch
        )


def almanac_pbrf(*, terms: Terms, sample: Sample, watch: Watcher) -> Outcome:
    """``pbrf`` on a small classifier of the Almanac's volumes, trained now.

    The language model of ``whence demo`` would take minutes per row; here the exact matrix can be formed.
    """
    check_terms(terms)
    rows = labelled(terms.options.seed)
    asked, rows = rows[:QUESTIONS], rows[QUESTIONS : QUESTIONS + ROWS]
    tokenizer = WordTokenizer.of([row["text"] for row in rows], most=WORDS)
    names = {name: n for n, name in enumerate(sorted({row["label"] for row in (*rows, *asked)}))}
    task = SequenceClassification(tokenizer, label2id=names)
    examples = [task.encode(Row(row["id"], row)) for row in rows]
    settings = BagSettings(hidden=HIDDEN, seed=terms.options.seed)
    with one_thread():
        model = train_bag(task, examples, sizes=(tokenizer.size, len(names)), settings=settings).double()
        own = replace(terms, task=task)
        return pbrf(model, train=rows, query=asked, terms=own, sample=sample, watch=watch)


def labelled(seed: int = 0) -> list[dict[str, Any]]:
    """The Almanac's documents labelled by the volume they stand in."""
    return [{"id": d.id, "text": d.text, "label": d.source} for d in almanac(seed).documents]
