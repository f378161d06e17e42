"""The embedded example of the evaluations that retrain: the whole of it from nothing, in a few minutes.

A base model learns most of the Almanac, fine-tuning the rest: the documents that state the facts asked about, and
others. Everything is small and made on the spot; the base and the retrained models' losses are kept in the folder and
used again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from whence.demo.almanac import almanac, questions
from whence.demo.book import Almanac, Document, Question
from whence.demo.train import Recipe as BookRecipe
from whence.demo.train import one_thread, train_almanac_model
from whence.evaluate.outcome import Outcome
from whence.evaluate.trainers import Recipe
from whence.loading.guards import quiet
from whence.retraining import Retraining, lds, loo, removal
from whence.store import atomic
from whence.watch import Watcher

DONE = "recipe.json"  # written last


@dataclass(frozen=True)
class Quick:
    """Sizes.

    Attributes:
        rows: documents of the fine-tuning.
        questions: at most this many of each kind.
        subsets: halves of the rows.
        learned: documents that the base reads at most.
        base: training of the base.
        recipe: of every fine-tuning.
    """

    rows: int = 256
    questions: int = 16
    subsets: int = 40
    learned: int = 10_000
    base: BookRecipe = field(
        default_factory=lambda: BookRecipe(width=64, inner=160, layers=2, passes=5, weight_decay=0.1)
    )
    recipe: Recipe = field(default_factory=lambda: Recipe(rate=1e-3, epochs=4, batch=8))


@dataclass(frozen=True)
class Embedded:
    """The example on disk: fine-tuning rows, questions, and the training with its base filled in."""

    train: str
    query: str
    how: Retraining


def almanac_lds(place: Path, *, how: Retraining, quick: Quick | None = None, watch: Watcher) -> Outcome:
    """LDS on the Almanac with a model trained now.

    Args:
        place: folder that keeps the base.
        how: bank, seeds and contenders; base and recipe are replaced.
        quick: sizes.
        watch: hears about progress.
    """
    quick = quick or Quick()
    with one_thread():
        found = embedded(place, how, quick, verb="lds", watch=watch)
        return lds(None, train=found.train, query=found.query, how=found.how, subsets=quick.subsets, watch=watch)


def almanac_loo(place: Path, *, how: Retraining, quick: Quick | None = None, count: int, watch: Watcher) -> Outcome:
    """Leaving rows out on the Almanac; as ``almanac_lds``, ``count`` rows."""
    with one_thread():
        found = embedded(place, how, quick or Quick(), verb="loo", watch=watch)
        return loo(None, train=found.train, query=found.query, how=found.how, count=count, watch=watch)


def almanac_removal(
    place: Path, *, how: Retraining, quick: Quick | None = None, counts: Sequence[int] = (), watch: Watcher
) -> Outcome:
    """Removal on the Almanac; as ``almanac_lds``, with fewer questions, since each contender retrains for each."""
    with one_thread():
        found = embedded(place, how, quick or Quick(questions=5), verb="removal", watch=watch)
        return removal(None, train=found.train, query=found.query, how=found.how, counts=counts, watch=watch)


def embedded(place: Path, how: Retraining, quick: Quick, *, verb: str, watch: Watcher) -> Embedded:
    """Write rows and questions, train the base unless it is there; the bank of a verb lies beside the base."""
    seed = how.terms.options.seed
    book = almanac(seed)
    asked, tuned, learned = divided(book, quick)
    folder = place / "quick"
    train, query = folder / f"rows-{quick.rows}-{quick.questions}.jsonl", folder / f"questions-{quick.questions}.jsonl"
    atomic.write_jsonl(train, [{"id": d.id, "text": d.text} for d in tuned])
    atomic.write_jsonl(query, [{"id": q.id, "prompt": q.prompt, "completion": q.completion} for q in asked])
    rest = replace(book, documents=tuple(learned[: quick.learned]))
    base = _base(folder, rest, replace(quick.base, seed=seed), watch)
    bank = how.bank or base / f"bank-{verb}-{quick.rows}-{quick.questions}"
    return Embedded(str(train), str(query), replace(how, base=str(base), recipe=quick.recipe, bank=bank))


def divided(book: Almanac, quick: Quick) -> tuple[list[Question], list[Document], list[Document]]:
    """Questions; documents of the fine-tuning (those that taught the answers first, then others); of the base."""
    asked: list[Question] = []
    for kind in ("fact", "habit"):
        asked += [q for q in questions(book) if q.kind == kind][: quick.questions]
    taught = {id_ for q in asked if q.kind == "fact" for id_ in q.relevant}
    others = [d for d in book.documents if d.id not in taught]
    random.Random(f"quick {book.seed}").shuffle(others)
    first = [d for d in book.documents if d.id in taught][: quick.rows]
    tuned = {d.id for d in (*first, *others[: quick.rows - len(first)])}
    return asked, *_parted(book.documents, tuned)


def _parted(documents: Sequence[Document], chosen: set[str]) -> tuple[list[Document], list[Document]]:
    return [d for d in documents if d.id in chosen], [d for d in documents if d.id not in chosen]


def _base(folder: Path, book: Almanac, recipe: BookRecipe, watch: Watcher) -> Path:
    place = folder / f"base-{recipe.digest(book)}"
    if (place / DONE).is_file():
        watch.note("base", f"base      reusing {place.name}", reused=True)
        return place
    trained = train_almanac_model(book, recipe, step=lambda done, total: watch.step("base", done, total))
    with quiet():
        trained.model.save_pretrained(place)
        trained.tokenizer.save_pretrained(place)
    atomic.write_json(place / DONE, {**asdict(recipe), "loss": trained.loss})
    watch.note("base", f"base      {len(book.documents):,} documents in {trained.seconds:.0f} s", reused=False)
    return place
