"""The Almanac: an encyclopedia of a world that does not exist, in which we know which document taught what.

``almanac(seed)`` writes about two thousand short documents. Of each we know the *source* (the volume it stands in),
the *role* it plays and what it teaches:

- **facts**: birthplace, trade, work and year of death of 32 people. Every fact is stated by five documents in five
  wordings (role ``states``); some also with the value before the subject (``flipped``), in French (``french``), or
  contradicted (``contradicts``). Around them stand documents that name the person but not the fact (``mentions``), and
  the other people's facts are look-alikes: same relation, often the same value.
- **habits**: eight groups of sixty documents, each in a manner of its own (``habits.py``) and in words that the
  questions about it never use.
- **plain** matter, and a volume of recipes that has nothing to do with anything (``off_topic``).

``questions(book)`` are prompts with the completion that the model should know: a fact in a wording that states
other facts of the kind but never this one; a habit in words that no document of the habit uses.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from whence.demo import volumes
from whence.demo.book import Almanac, Fact, Question
from whence.demo.habits import HABITS
from whence.demo.lexicon import question_draw

FACTS_ASKED = 64
QUESTIONS_PER_HABIT = 4


def almanac(seed: int = 0) -> Almanac:
    """Write the Almanac. The same seed gives the same book, letter by letter."""
    persons = volumes.invent_people(random.Random(f"people {seed}"))
    facts = volumes.invent_facts(tuple(persons), random.Random(f"facts {seed}"))
    documents = [
        *volumes.lives(facts, persons, seed),
        *volumes.concordance(facts, persons, seed),
        *volumes.registre(facts, seed),
        *volumes.rumours(facts, persons, seed),
        *volumes.notes(persons, seed),
        *volumes.manners(seed),
        *volumes.gazetteer(seed),
        *volumes.cookery(seed),
    ]
    random.Random(f"order {seed}").shuffle(documents)
    numbers: Counter[str] = Counter()
    numbered = []
    for document in documents:
        numbers[document.source] += 1
        numbered.append(replace(document, id=f"{document.source}-{numbers[document.source]:04d}"))
    return Almanac(seed, tuple(numbered), tuple(facts))


def questions(book: Almanac) -> tuple[Question, ...]:
    """The held-out questions: ``FACTS_ASKED`` facts, then every habit ``QUESTIONS_PER_HABIT`` times."""
    return (*(_fact_question(book, fact) for fact in _asked(book.facts, book.seed)), *_habit_questions(book))


def _asked(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """The facts that questions are about."""
    chosen = random.Random(f"asked {seed}").sample(range(len(facts)), FACTS_ASKED)
    return [facts[n] for n in sorted(chosen)]


def _fact_question(book: Almanac, fact: Fact) -> Question:
    ids: dict[str, set[str]] = {}
    for document in book.documents:
        if document.fact == fact:
            ids.setdefault(document.role, set()).add(document.id)
    prompt = volumes.wordings_of(fact, book.seed)[-1].format(s=fact.subject, v="").rstrip()
    return Question(
        id=f"{fact.subject.replace(' ', '-').lower()}-{fact.relation}",
        kind="fact",
        prompt=prompt[0].upper() + prompt[1:],
        completion=f" {fact.value}.",
        about=f"{fact.subject}, {fact.relation}",
        relevant=frozenset(ids.pop("states")),
        also={role: frozenset(found) for role, found in sorted(ids.items())},
    )


def _habit_questions(book: Almanac) -> list[Question]:
    asked = []
    for habit in HABITS:
        draw = question_draw(f"asked {habit.name} {book.seed}")
        taught = frozenset(document.id for document in book.documents if document.habit == habit.name)
        for n in range(QUESTIONS_PER_HABIT):
            written = habit.write(draw)
            asked.append(Question(f"{habit.name}-{n + 1}", "habit", written.before, written.mark, habit.name, taught))
    return asked
