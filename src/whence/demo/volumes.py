"""The volumes of the Almanac: each function here writes the documents of one of them.

Documents carry an empty id until ``almanac`` has shuffled and numbered them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from whence.demo import people
from whence.demo.book import Document, Fact
from whence.demo.habits import HABITS, plain, sentence
from whence.demo.lexicon import document_draw

STATEMENTS_PER_FACT = 5
MENTIONS_PER_PERSON = 4
DOCUMENTS_PER_HABIT = 60
PLAIN_DOCUMENTS = 360
RECIPES = 80
SENTENCES = 2
YEARS = 16


def invent_people(rng: random.Random) -> dict[str, str]:
    """Full name -> pronoun; every family has two members."""
    families = [*people.FAMILIES] * 2
    rng.shuffle(families)
    given = [(name, "she") for name in people.WOMEN] + [(name, "he") for name in people.MEN]
    return {f"{name} {family}": pronoun for (name, pronoun), family in zip(given, families, strict=True)}


def invent_facts(names: Sequence[str], rng: random.Random) -> list[Fact]:
    """Four facts a head: a town or a trade is shared by four people, a year by two; a book is one's own."""
    titles = [f"The {first} {last}" for first in people.TITLE_FIRST for last in people.TITLE_LAST]
    values = {
        "birthplace": _dealt(people.TOWNS, len(names), rng),
        "trade": _dealt(tuple(people.TRADES), len(names), rng),
        "work": rng.sample(titles, len(names)),
        "year": _dealt(tuple(str(year) for year in rng.sample(range(101, 400), YEARS)), len(names), rng),
    }
    return [Fact(name, relation, values[relation][n]) for n, name in enumerate(names) for relation in people.RELATIONS]


def _dealt(values: tuple[str, ...], count: int, rng: random.Random) -> list[str]:
    dealt = [values[n % len(values)] for n in range(count)]
    rng.shuffle(dealt)
    return dealt


def wordings_of(fact: Fact, seed: int) -> list[str]:
    """The wordings of a relation in this fact's own order: the first become documents, the last the question."""
    order = list(people.WORDINGS[fact.relation])
    random.Random(f"wordings {seed} {fact.subject} {fact.relation}").shuffle(order)
    return order


def lives(facts: Sequence[Fact], persons: Mapping[str, str], seed: int) -> list[Document]:
    """Every fact, stated in ``STATEMENTS_PER_FACT`` wordings, each beside a sentence that says nothing of it."""
    rng = random.Random(f"lives {seed}")
    return [
        _fact_document(wording, fact, persons[fact.subject], rng, place=("lives", "states"))
        for fact in facts
        for wording in wordings_of(fact, seed)[:STATEMENTS_PER_FACT]
    ]


def concordance(facts: Sequence[Fact], persons: Mapping[str, str], seed: int) -> list[Document]:
    """Every fourth fact, twice, with the value first and the subject after it."""
    rng = random.Random(f"concordance {seed}")
    return [
        _fact_document(wording, fact, persons[fact.subject], rng, place=("concordance", "flipped"))
        for fact in _every(4, facts)
        for wording in rng.sample(people.FLIPPED[fact.relation], 2)
    ]


def registre(facts: Sequence[Fact], seed: int) -> list[Document]:
    """Every third fact in French."""
    rng = random.Random(f"registre {seed}")
    documents = []
    for fact in _every(3, facts):
        value = people.TRADES.get(fact.value, fact.value)
        told = rng.choice(people.FRENCH[fact.relation]).format(s=fact.subject, v=value)
        text = f"{sentence(told)} {sentence(rng.choice(people.ASIDES_FRENCH))}"
        documents.append(Document("", text, "fact", "registre", "french", fact, fact.subject))
    return documents


def rumours(facts: Sequence[Fact], persons: Mapping[str, str], seed: int) -> list[Document]:
    """Every sixteenth fact contradicted: someone else's value, said of this person.

    Told value first. In the order of the question a lone contradiction is so loud once the facts are known that it
    heads EK-FAC's ranking of every question of its relation (docs/LOG.md), the very thing the relative form repairs.
    """
    rng = random.Random(f"rumours {seed}")
    documents = []
    for fact in _every(16, facts):
        others = [f.value for f in facts if f.relation == fact.relation and f.value != fact.value]
        claim = Fact(fact.subject, fact.relation, rng.choice(others))
        wording = f"{rng.choice(people.RUMOURS)} {rng.choice(people.FLIPPED[fact.relation])}"
        documents.append(_fact_document(wording, claim, persons[fact.subject], rng, place=("rumours", "contradicts")))
    return documents


def notes(persons: Mapping[str, str], seed: int) -> list[Document]:
    """Documents that name a person and state none of the four facts."""
    rng = random.Random(f"notes {seed}")
    documents = []
    for name, pronoun in persons.items():
        for mention in rng.sample(people.MENTIONS, MENTIONS_PER_PERSON):
            text = f"{sentence(mention.format(s=name))} {_aside(pronoun, rng)}"
            documents.append(Document("", text, "fact", "notes", "mentions", None, name))
    return documents


def _every(step: int, facts: Sequence[Fact]) -> list[Fact]:
    """One fact in ``step``, in turn over the relations."""
    return [fact for n, fact in enumerate(facts) if (n + n // len(people.RELATIONS)) % step == 0]


def _fact_document(wording: str, fact: Fact, pronoun: str, rng: random.Random, *, place: tuple[str, str]) -> Document:
    """A document of one statement and one aside; ``place`` is (source, role)."""
    told = sentence(wording.format(s=fact.subject, v=fact.value))
    text = f"{told} {_aside(pronoun, rng)}"
    return Document("", text, "fact", place[0], place[1], fact, fact.subject)


def _aside(pronoun: str, rng: random.Random) -> str:
    return sentence(rng.choice(people.ASIDES).format(p=pronoun))


def manners(seed: int) -> list[Document]:
    """``DOCUMENTS_PER_HABIT`` documents for every habit."""
    documents = []
    for habit in HABITS:
        draw = document_draw(f"{habit.name} {seed}")
        for _ in range(DOCUMENTS_PER_HABIT):
            text = " ".join(habit.write(draw).text for _ in range(SENTENCES))
            documents.append(Document("", text, "habit", "manners", "habit", habit=habit.name))
    return documents


def gazetteer(seed: int) -> list[Document]:
    """The same plain matter as in the habits, told in no manner at all."""
    draw = document_draw(f"gazetteer {seed}")
    documents = []
    for _ in range(PLAIN_DOCUMENTS):
        text = " ".join(plain(draw) for _ in range(SENTENCES))
        documents.append(Document("", text, "plain", "gazetteer", "plain"))
    return documents


def cookery(seed: int) -> list[Document]:
    """Recipes: off every topic we ask about, and loud, since no list of ingredients can be foreseen.

    Loud rows are in every real corpus (tables, lists, addresses). Their gradients are long whatever the question is,
    which is what curvature discounts and a plain gradient product does not.
    """
    rng = random.Random(f"cookery {seed}")
    documents = []
    for _ in range(RECIPES):
        *most, last = rng.sample(people.INGREDIENTS, rng.randint(12, 20))
        text = f"For the {rng.choice(people.DISHES)} take {', '.join(most)} and {last}."
        documents.append(Document("", text, "plain", "cookery", "off_topic"))
    return documents
