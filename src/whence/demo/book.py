"""The records of the Almanac: what a document, a fact and a question are. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fact:
    """One thing that is so (or, in a contradiction, is said to be so)."""

    subject: str
    relation: str
    value: str


@dataclass(frozen=True)
class Document:
    """One short text and everything we know about it.

    Attributes:
        id: unique: source and number.
        text: what the model reads.
        kind: ``fact``, ``habit`` or ``plain``.
        source: the volume: lives, concordance, registre, rumours, notes, manners, gazetteer, cookery.
        role: states, flipped, french, contradicts, mentions, habit, plain or off_topic.
        fact: what it states (for ``contradicts`` the untrue claim), else None.
        subject: the person it is about, "" if none.
        habit: the habit it teaches, "" if none.
    """

    id: str
    text: str
    kind: str
    source: str
    role: str
    fact: Fact | None = None
    subject: str = ""
    habit: str = ""


@dataclass(frozen=True)
class Question:
    """A prompt, the completion that the model should have learned, and the documents that taught it.

    Attributes:
        id: unique, readable.
        kind: ``fact`` or ``habit``.
        prompt: the beginning.
        completion: what follows, with its leading space.
        about: "subject, relation" or the name of the habit.
        relevant: ids of the documents that count as found.
        also: role -> ids of documents that say the same otherwise (``flipped``, ``french``). They are taken out of the
            ranking before it is judged, because they are neither right nor wrong.
    """

    id: str
    kind: str
    prompt: str
    completion: str
    about: str
    relevant: frozenset[str]
    also: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Almanac:
    """The documents, in a fixed shuffled order, and the facts that are true."""

    seed: int
    documents: tuple[Document, ...]
    facts: tuple[Fact, ...]
