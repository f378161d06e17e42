"""The whole demonstration in small: one person, two habits, a model of sixteen dimensions."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from whence.demo import run, world
from whence.demo.almanac import almanac, questions
from whence.demo.table import EKFAC, METHODS
from whence.demo.train import Recipe, completes, new_model, train_almanac_model

TINY = Recipe(width=16, inner=32, heads=2, passes=2, batch=8, warm_up=5)
HABITS = ("old-tongue", "verb-last")


@pytest.fixture(scope="module")
def small():
    """A book of one person, the person's town fellows, and a few documents of two habits; and its questions."""
    book = almanac(0)
    asked = [question for question in questions(book) if question.also.keys() >= {"flipped", "french"}][:2]
    people = {question.about.split(", ")[0] for question in asked}
    asked += [question for question in questions(book) if question.about in HABITS][:: len(HABITS)]
    chosen = [d for d in book.documents if d.subject in people or d.habit in HABITS or d.source == "cookery"]
    ids = {document.id for document in chosen}
    asked = [replace(question, relevant=question.relevant & ids) for question in asked]
    return replace(book, documents=tuple(chosen)), tuple(asked)


class Voice:
    """Hears everything, prints to memory."""

    json = False

    def __init__(self):
        self.page = io.StringIO()
        self.out = Console(file=self.page, width=100)
        self.notes, self.records = [], []

    def note(self, kind, text, **facts):
        self.notes.append((kind, text))

    def step(self, stage, done, total):
        assert 0 <= done <= total

    def say(self, text, style=""):
        self.notes.append(("say", text))

    def emit(self, record):
        self.records.append(record)


def test_training_is_deterministic_and_learns(small):
    book, asked = small
    state = torch.random.get_rng_state()
    first, second = (train_almanac_model(book, TINY) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    untrained = new_model(TINY, len(first.tokenizer)).eval()
    longer = train_almanac_model(book, replace(TINY, passes=30))
    assert longer.loss < first.loss - 1.0
    known = [sum(completes(model, first.tokenizer, q) for q in asked) for model in (untrained, longer.model)]
    assert known[0] <= known[1] > 0


def test_recipe_is_named_by_everything_that_decides(small):
    book, _ = small
    names = {
        TINY.digest(book),
        replace(TINY, seed=1).digest(book),
        replace(TINY, passes=3).digest(book),
        TINY.digest(replace(book, documents=book.documents[1:])),
    }
    assert len(names) == 4
    assert TINY.digest(book) == replace(TINY).digest(book)


def test_demo_from_book_to_report_and_again(small, tmp_path, monkeypatch):
    book, asked = small
    monkeypatch.setattr(world, "almanac", lambda seed: book)
    monkeypatch.setattr(world, "questions", lambda book: asked)
    monkeypatch.setattr(world, "Recipe", lambda: TINY)
    voice = Voice()
    assert run.demo(out=tmp_path / "demo", voice=voice) == 0
    printed = voice.page.getvalue()
    assert all(method in printed for method in METHODS)
    assert "Facts:" in printed and "Habits:" in printed
    lines = [record for record in voice.records if record["type"] == "table"]
    assert [line["method"] for line in lines] == [*METHODS, *METHODS]
    page = (tmp_path / "demo" / "report.html").read_text("utf-8")
    assert page.startswith("<!doctype html>") and len(page.encode()) < 1_500_000
    volume = (tmp_path / "demo" / "almanac" / "manners.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["id"] for line in volume} == {d.id for d in book.documents if d.source == "manners"}

    again = run.demonstrate(tmp_path / "demo", watch=(second := Voice()))
    assert any("reusing" in text for _, text in second.notes)
    assert not any("passes in" in text for _, text in second.notes)
    assert [line.recall for line in again.table] == [line["recall"] for line in lines]
    assert again.rankings[EKFAC].shape == (len(asked), len(book.documents))
    assert np.isfinite(again.rankings[EKFAC]).all()
    assert [table.title.split(":")[0] for table in run.report_tables(again)] == ["Facts", "Habits", "Median rank"]

    fresh = run.demonstrate(tmp_path / "demo", fresh=True, watch=(third := Voice()))
    assert any("passes in" in text for _, text in third.notes)
    assert fresh.completed == again.completed
