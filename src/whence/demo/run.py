"""``whence demo``: write the Almanac, train on it, ask it questions, and judge the answers.

The folder it leaves behind::

    .demo/
    ├── almanac/       the book: one .jsonl per volume, and questions.jsonl
    ├── model-DIGEST/  the trained model, named by book and recipe; reused as long as neither changes
    ├── run/           scores, provenance and report of ``whence.attribute``
    └── report.html    the same report with the table of methods
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from whence.api import attribute
from whence.demo.book import Almanac, Question
from whence.demo.table import (
    BM25,
    COSINE,
    DOT,
    EKFAC,
    METHODS,
    PAGE,
    RANDOM,
    RELATIVE,
    TOP,
    Line,
    plain_words,
    score_table,
    standings,
)
from whence.demo.train import Recipe, completes, one_thread
from whence.demo.world import prepare
from whence.loading import load_model
from whence.present import page
from whence.report import Extras
from whence.report.records import Table
from whence.results import Scores
from whence.scores.relative import relative_scores
from whence.store import atomic
from whence.watch import Silent, Watcher

SHOWN = 3  # documents shown on the terminal for each example question
KIND_NAMES = {"fact": "facts", "habit": "habits"}


class Speaker(Watcher, Protocol):
    """What the demo needs of the command line's voice."""

    out: Console
    json: bool

    def say(self, text: str, style: str = "") -> None:
        """One line of prose."""
        ...

    def emit(self, record: Any) -> None:
        """One machine-readable record, where those are wanted."""
        ...


@dataclass(frozen=True)
class Demonstration:
    """Everything the demo found out, as plain data.

    Attributes:
        book / asked: the Almanac and the questions put to it.
        completed: share of the fact questions that the model completes by itself.
        scores: the run of the default method.
        rankings: method -> Q x N scores of every method in the table.
        table: one line per kind and method.
        standing: role -> median rank of the documents of that role (EK-FAC, BM25).
        seconds: stage -> wall-clock seconds.
    """

    book: Almanac
    asked: tuple[Question, ...]
    completed: float
    scores: Scores
    rankings: dict[str, np.ndarray]
    table: list[Line]
    standing: dict[str, tuple[float, float]]
    seconds: dict[str, float]


def demo(*, out: str | Path, fresh: bool = False, seed: int = 0, voice: Speaker) -> int:
    """The verb: run the demonstration, print the answers and the table, write the report."""
    place = Path(out).expanduser()
    found = demonstrate(place, seed=seed, fresh=fresh, watch=voice)
    tables = report_tables(found)
    atomic.write_text(place / "report.html", page(found.scores, Extras(title="The Almanac", tables=tables)))
    for line in found.table:
        voice.emit({"type": "table", **asdict(line)})
    if not voice.json:
        _print_examples(found, voice.out)
        _print_table(found, voice.out)
    taken = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found.seconds.items())
    voice.note("demo", f"time      {taken}", **found.seconds)
    voice.emit({"type": "done", "report": str(place / "report.html")})
    voice.say(f"next: open {place / 'report.html'} in a browser", "bold")
    voice.say(f"      whence info {place / 'run'}    what was computed, and how to repeat it")
    return 0


def demonstrate(
    place: Path, *, seed: int = 0, fresh: bool = False, recipe: Recipe | None = None, watch: Watcher | None = None
) -> Demonstration:
    """Write, train (or reuse), attribute, judge.

    Args:
        place: folder for everything.
        seed: of the book and of the training.
        fresh: train again even if the model is there.
        recipe: how to train; its seed is replaced by ``seed``.
        watch: hears about progress.
    """
    watch = watch or Silent()
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    world = prepare(place, seed=seed, fresh=fresh, recipe=recipe, watch=watch)
    book, asked, model = world.book, world.asked, world.model
    seconds["model"] = time.perf_counter() - began
    completed = _completed(model, asked, watch)
    began = time.perf_counter()
    common: dict[str, Any] = {"train": world.volumes, "query": world.questions, "self_influence": True}
    with one_thread():
        scores = attribute(str(model), **common, out=place / "run", watch=watch)
        seconds["EK-FAC"], began = time.perf_counter() - began, time.perf_counter()
        plain = attribute(str(model), **common, method="identity", watch=Silent())
        seconds["gradient dot"] = time.perf_counter() - began
    rankings = _rankings(scores, plain, seed)
    table = score_table(rankings, asked, scores.train_ids)
    own, lexical = (standings(rankings[name], asked, book, scores.train_ids) for name in (EKFAC, BM25))
    standing = {role: (own[role], lexical[role]) for role in own}
    return Demonstration(book, asked, completed, scores, rankings, table, standing, seconds)


def _completed(folder: Path, asked: Sequence[Question], watch: Watcher) -> float:
    loaded = load_model(str(folder))
    known = [completes(loaded.model, loaded.tokenizer, question) for question in asked if question.kind == "fact"]
    share = sum(known) / len(known)
    said = f"facts     the model completes {sum(known)} of {len(known)} facts that it is asked in a new wording"
    watch.note("facts", said, completed=share)
    return share


def _rankings(scores: Scores, plain: Scores, seed: int) -> dict[str, np.ndarray]:
    """Every method's Q x N scores, in the columns of ``scores``."""
    assert scores.self_influence is not None and plain.self_influence is not None and scores.lexical is not None
    assert plain.train_ids == scores.train_ids and plain.query_ids == scores.query_ids
    return {
        EKFAC: scores.values,
        RELATIVE: relative_scores(scores.values, scores.self_influence),
        DOT: plain.values,
        # the norm of the query would only rescale a row: it cannot change a ranking
        COSINE: relative_scores(plain.values, plain.self_influence),
        BM25: scores.lexical,
        RANDOM: np.random.default_rng(seed).random(scores.values.shape),
    }


def report_tables(found: Demonstration) -> list[Table]:
    """The demo's tables for the report."""
    columns = ("method", f"recall@{TOP}", f"precision@{PAGE}", "MRR")
    said = plain_words(found.table)
    tables = []
    for kind in dict.fromkeys(line.kind for line in found.table):
        lines = [line for line in found.table if line.kind == kind]
        rows = tuple((x.method, round(x.recall, 2), round(x.precision, 2), round(x.mrr, 2)) for x in lines)
        note = " ".join(text for text in said if text.startswith(KIND_NAMES[kind].capitalize()))
        tables.append(Table(f"{KIND_NAMES[kind].capitalize()}: {lines[0].questions} questions", columns, rows, note))
    rows = tuple((role, own, lexical) for role, (own, lexical) in found.standing.items())
    note = f"1 is first of {len(found.book.documents):,}. Flipped: value before subject. Same value: of somebody else."
    tables.append(Table("Median rank: documents about a fact", ("role", EKFAC, BM25), rows, note))
    return tables


def _print_examples(found: Demonstration, console: Console) -> None:
    """One fact and one habit: the question and the documents that EK-FAC puts first."""
    texts = {document.id: document for document in found.book.documents}
    for kind in KIND_NAMES:
        question = next(q for q in found.asked if q.kind == kind)
        console.print()
        console.print(Text.assemble(question.prompt, (question.completion, "bold underline")))
        for line in found.scores.proponents(question.id, SHOWN):
            document = texts[line.train_id]
            mark = "✓" if document.id in question.relevant else " "
            console.print(
                Text(f"  {line.rank}. {mark} {line.score:9.3g}  {document.id:<17} {document.text}"), soft_wrap=True
            )


def _print_table(found: Demonstration, console: Console) -> None:
    """The table of methods, and what it shows in plain words."""
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    grid.add_column("")
    grid.add_column("method")
    for name in (f"recall@{TOP}", f"precision@{PAGE}", "MRR"):
        grid.add_column(name, justify="right")
    last = ""
    for line in found.table:
        kind = KIND_NAMES[line.kind] if line.kind != last else ""
        numbers = (f"{value:.2f}" for value in (line.recall, line.precision, line.mrr))
        grid.add_row(kind, line.method, *numbers, end_section=line.method == METHODS[-1])
        last = line.kind
    console.print()
    console.print(grid)
    console.print()
    for text in plain_words(found.table):
        console.print(Text(text))
    told = ", ".join(f"{role} {own:,.0f}" for role, (own, _) in found.standing.items())
    console.print(Text(f"Median rank by EK-FAC of documents about a fact: {told} (of {len(found.book.documents):,})."))
