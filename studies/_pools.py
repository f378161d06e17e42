"""Pools of rows from several sources with one target task, and what a model trained on some of them knows of it."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence.demo.almanac import almanac
from whence.demo.habits import HABITS
from whence.demo.lexicon import document_draw, question_draw
from whence.demo.train import Recipe as BookRecipe
from whence.demo.train import train_almanac_model
from whence.evaluate.contenders import Contest, contenders
from whence.evaluate.trainers import BatchedTrainer, Recipe, from_checkpoint
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.tasks.rows import Row

TARGETS = 3  # habits of the Almanac that are asked about


@dataclass(frozen=True)
class Pool:
    """What there is to choose from.

    Attributes:
        name: for the page.
        base: the model before any of these rows.
        task: encodes rows.
        texts: N, of the rows; sources and examples likewise.
        good: sources that belong to the target task.
        dev: questions that rows are chosen by; test: questions that the choice is judged by; their texts.
        fields: N rows as a file has them, with ids; ``dev_fields``: the dev questions.
    """

    name: str
    base: nn.Module
    task: CausalLM
    texts: tuple[str, ...]
    sources: tuple[str, ...]
    rows: tuple[Example, ...]
    good: frozenset[str]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    dev_texts: tuple[str, ...]
    fields: tuple[Mapping[str, Any], ...]
    dev_fields: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    per_source: int = 60
    dev: int = 24
    test: int = 72
    tokens: int = 128
    short_tokens: int = 64  # of the pool of instructions, whose model is larger
    base: BookRecipe = field(
        default_factory=lambda: BookRecipe(width=64, inner=160, layers=2, passes=3, weight_decay=0.1)
    )


def almanac_pool(sizes: Sizes, seed: int = 0) -> Pool:
    """Three habits to be learned, among other habits, lives, recipes (off-topic) and habits gone wrong (bad).

    The base has read the plain matter and the people, no habit. A bad row begins as a target habit does and goes on as
    another one: nothing could be worse for the questions, and its words say nothing about it.
    """
    book, chance = almanac(seed), random.Random(f"pool {seed}")
    plain = [d for d in book.documents if d.source in ("gazetteer", "notes", "concordance")]
    target = [habit.name for habit in HABITS[:TARGETS]]
    by_source: dict[str, list[str]] = {}
    for document in book.documents:
        habit = document.habit
        name = "target habits" if habit in target else "other habits" if habit else document.source
        if name in ("target habits", "other habits", "lives", "cookery", "registre"):
            by_source.setdefault(name, []).append(document.text)
    by_source["bad"] = [_bad(n, seed) for n in range(sizes.per_source)]
    pairs = [(name, text) for name, texts in by_source.items() for text in _some(texts, sizes.per_source, chance)]
    chance.shuffle(pairs)
    trained = train_almanac_model(replace(book, documents=(*plain, *_extra(book))), sizes.base)
    task = CausalLM(trained.tokenizer, max_length=sizes.tokens)
    rows = [{"text": text} for _, text in pairs]
    asked = _habit_questions("dev", sizes.dev, seed), _habit_questions("test", sizes.test, seed)
    return _pool("the Almanac", trained.model, task, pairs, rows, good={"target habits"}, asked=asked)


def _extra(book: Any) -> list[Any]:
    """A few documents of every volume, so that the tokenizer knows every piece."""
    return [d for d in book.documents if d.source in ("lives", "cookery", "registre")][:60]


def _bad(n: int, seed: int) -> str:
    draw = document_draw(f"bad {n} {seed}")
    habit, other = HABITS[n % TARGETS], HABITS[TARGETS + n % (len(HABITS) - TARGETS)]
    return " ".join(f"{habit.write(draw).before}{other.write(draw).mark}{habit.write(draw).after}" for _ in range(2))


def _habit_questions(part: str, count: int, seed: int) -> list[dict[str, str]]:
    found = []
    for n in range(count):
        habit = HABITS[n % TARGETS]
        written = habit.write(question_draw(f"{part} {habit.name} {n} {seed}"))
        found.append({"prompt": written.before, "completion": written.mark})
    return found


def instruction_pool(sizes: Sizes, data: Path, *, target: str = "common_gen", seed: int = 0) -> Pool:
    """stories260K among instructions: one task of P3 is wanted; other tasks, sums and open instructions are not."""
    chance = random.Random(f"pool {seed}")
    by_source: dict[str, list[dict[str, str]]] = {}
    for row in _lines(data / "p3_instructions" / "train.jsonl.gz"):
        if len(row["prompt"]) + len(row["completion"]) < 2.6 * sizes.short_tokens:
            by_source.setdefault(row["task"], []).append({k: row[k] for k in ("prompt", "completion")})
    by_source = {k: v for k, v in by_source.items() if len(v) >= 40}
    asked = _some(by_source[target], len(by_source[target]), chance)
    held = min(sizes.dev, len(asked) // 4)
    others = [r for r in _lines(data / "p3_instructions" / "test.jsonl") if r["task"] == target]
    test = [{k: r[k] for k in ("prompt", "completion")} for r in others] + asked[held : held + sizes.test]
    by_source[target] = asked[held + min(sizes.test, len(asked) - held - 40) :]
    by_source["gsm8k"] = [
        {"prompt": r["question"].split(". ")[-1], "completion": "\n" + r["answer"]}
        for r in _lines(data / "gsm8k" / "train.jsonl.gz")[:600]
    ]
    by_source["self_instruct"] = [
        {"prompt": r["instruction"], "completion": "\n" + r["output"]}
        for r in _lines(data / "self_instruct" / "user_oriented.jsonl")
        if r["output"] and len(r["instruction"]) < 1.3 * sizes.short_tokens
    ]
    pairs = [(name, row) for name, rows in by_source.items() for row in _some(rows, sizes.per_source, chance)]
    chance.shuffle(pairs)
    folder = str(data / "stories260K")
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    task = CausalLM(AutoTokenizer.from_pretrained(folder), max_length=sizes.short_tokens)
    taken = {json.dumps(row) for _, row in pairs}
    test = [row for row in test if json.dumps(row) not in taken][: sizes.test]
    texts = [(name, f"{row['prompt']} {row['completion']}") for name, row in pairs]
    rows = [row for _, row in pairs]
    return _pool("instructions", model, task, texts, rows, good={target}, asked=(asked[:held], test))


def _pool(
    name: str, base: nn.Module, task: CausalLM, pairs: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]], *,
    good: set[str], asked: tuple[Sequence[Mapping[str, str]], Sequence[Mapping[str, str]]],
) -> Pool:  # fmt: skip
    encoded = [_encoded(task, f"row:{n}", row) for n, row in enumerate(rows)]
    usable = [n for n, example in enumerate(encoded) if example is not None]
    dev, test = ([_encoded(task, f"{part}:{n}", q) for n, q in enumerate(side)]
                 for part, side in zip(("dev", "test"), asked, strict=True))  # fmt: skip
    kept = [n for n, example in enumerate(dev) if example is not None]
    return Pool(
        name, base, task, tuple(pairs[n][1] for n in usable), tuple(pairs[n][0] for n in usable),
        tuple(encoded[n] for n in usable), frozenset(good), tuple(dev[n] for n in kept),
        tuple(e for e in test if e is not None),
        tuple(f"{asked[0][n]['prompt']}{asked[0][n]['completion']}" for n in kept),
        tuple({**rows[n], "id": f"row:{n}"} for n in usable), tuple(asked[0][n] for n in kept),
    )  # fmt: skip


def _encoded(task: CausalLM, id_: str, fields: Mapping[str, Any]) -> Any:
    """The row as an example; None where nothing of its answer is left within the length."""
    try:
        return task.encode(Row(id_, fields))
    except Exception:  # any verdict on the row: such rows are in no pool
        return None


def _some(items: Sequence[Any], count: int, chance: random.Random) -> list[Any]:
    return chance.sample(list(items), min(count, len(items)))


def _lines(path: Path) -> list[dict[str, Any]]:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in raw.decode().splitlines()]


# --- training and scoring ------------------------------------------------------------------------------------------


def trainer(pool: Pool, recipe: Recipe, *, copies: int = 1, at_once: int = 12) -> BatchedTrainer:
    """Trains the base on any of the rows; with ``copies`` a row can be read that many times a pass."""
    rows = [row for _ in range(copies) for row in pool.rows]
    return BatchedTrainer(from_checkpoint(pool.base), pool.task, rows, pool.test, recipe, at_once)


def source_of(pool: Pool, model: nn.Module, examples: Sequence[Example]) -> LiveGradients:
    """Gradients of rows or questions at a model."""
    plan = plan_batches([e.length for e in examples], token_budget=2048)
    return LiveGradients(model, pool.task, examples, plan, find_layers(model))


def score(pool: Pool, model: nn.Module, names: Sequence[str], *, damping: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores of all rows on the dev questions, by contender."""
    contest = Contest(damping=damping, seed=seed, query_texts=pool.dev_texts, row_texts=pool.texts)
    return contenders(names, source_of(pool, model, pool.rows), source_of(pool, model, pool.dev), contest)
