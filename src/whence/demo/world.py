"""The Almanac made ready: written to files, and a model that has read it, trained once and reused.

Shared by ``whence demo`` and by the evaluations that run on it when nothing else is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from whence.demo.almanac import almanac, questions
from whence.demo.book import Almanac, Question
from whence.demo.train import Recipe, train_almanac_model
from whence.loading.guards import quiet
from whence.store import atomic
from whence.watch import Silent, Watcher

DONE = "recipe.json"  # written last: a model folder without it is half a model


@dataclass(frozen=True)
class World:
    """Everything there is to ask about.

    Attributes:
        book / asked: the Almanac and the questions put to it.
        volumes: files of training rows, one per volume.
        questions: file of the questions.
        model: folder of the trained model.
    """

    book: Almanac
    asked: tuple[Question, ...]
    volumes: list[str]
    questions: str
    model: Path


def prepare(
    place: Path, *, seed: int = 0, fresh: bool = False, recipe: Recipe | None = None, watch: Watcher | None = None
) -> World:
    """Write the book, and train the model unless it is there.

    Args:
        place: folder for everything.
        seed: of the book and of the training.
        fresh: train again even if the model is there.
        recipe: how to train; its seed is replaced by ``seed``.
        watch: hears about progress.
    """
    watch = watch or Silent()
    book = almanac(seed)
    asked = questions(book)
    volumes, question_file = _write_book(place / "almanac", book, asked)
    watch.note("book", f"almanac   {len(book.documents):,} documents, {len(book.facts)} facts, {len(asked)} questions")
    recipe = replace(recipe or Recipe(), seed=seed)
    model = _trained_model(place / f"model-{recipe.digest(book)}", book, recipe, fresh=fresh, watch=watch)
    return World(book, asked, volumes, question_file, model)


def _write_book(folder: Path, book: Almanac, asked: Sequence[Question]) -> tuple[list[str], str]:
    """One file per volume, read back by ``attribute`` like anybody's data."""
    files = []
    for source in dict.fromkeys(document.source for document in book.documents):
        rows = [{"id": d.id, "text": d.text} for d in book.documents if d.source == source]
        atomic.write_jsonl(folder / f"{source}.jsonl", rows)
        files.append(str(folder / f"{source}.jsonl"))
    query = folder / "questions.jsonl"
    atomic.write_jsonl(query, [{"id": q.id, "prompt": q.prompt, "completion": q.completion} for q in asked])
    return files, str(query)


def _trained_model(folder: Path, book: Almanac, recipe: Recipe, *, fresh: bool, watch: Watcher) -> Path:
    """The folder of the trained model; trains unless it is there and finished."""
    if (folder / DONE).is_file() and not fresh:
        watch.note("train", f"train     reusing {folder.name}", reused=True)
        return folder
    trained = train_almanac_model(book, recipe, step=lambda done, total: watch.step("train", done, total))
    with quiet():
        trained.model.save_pretrained(folder)
        trained.tokenizer.save_pretrained(folder)
    atomic.write_json(folder / DONE, {**asdict(recipe), "loss": trained.loss, "seconds": trained.seconds})
    said = f"train     {recipe.passes} passes in {trained.seconds:.0f} s, {trained.loss:.2f} nats a token"
    watch.note("train", said, reused=False, seconds=trained.seconds, loss=trained.loss)
    return folder
