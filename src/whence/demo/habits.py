"""Eight habits: ways of writing that a document shows by its form and never by a word of its own.

Each habit is a function from a ``Draw`` to the pieces of a text. The same plain matter (someone does something to a
thing somewhere) runs through all of them and through the documents without a habit, so that nothing but the form tells
them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whence.demo.lexicon import Draw


@dataclass(frozen=True)
class Habit:
    """A way of writing.

    Attributes:
        name: short name, also the document's ``habit``.
        idea: what it looks like, for people.
        write: one sentence (or one clause with its mark) in this habit.
    """

    name: str
    idea: str
    write: Callable[[Draw], str]


def plain(draw: Draw) -> str:
    """A sentence with no habit at all: "The old shepherd mends the kettle behind the mill."."""
    who = draw.person() if draw.random.random() < 0.5 else f"the {draw.one('quality')} {draw.one('role')}"
    thing = f"the {draw.one('thing')}" if draw.random.random() < 0.5 else f"the {draw.one('quality')} {draw.one('thing')}"
    deed, spot = f"{who} {draw.one('verb')}s {thing}", draw.spot()
    return sentence(f"{deed} {spot}" if draw.random.random() < 0.7 else f"{spot} {deed}")


def dated(draw: Draw) -> str:
    """A plain sentence with a plain date, so that days, months and years are not the date habit's own."""
    day, month, season = draw.one("day"), draw.one("month"), draw.one("season")
    return sentence(f"on day {day} of {month} in {season} the {draw.one('role')} {draw.one('verb')}s the {draw.one('thing')}")


def sentence(text: str) -> str:
    """Capital first, full stop last."""
    return f"{text[0].upper()}{text[1:]}."


def _family_first(draw: Draw) -> str:
    return f"{draw.one('family')}, {draw.one('given')} {draw.one('verb')}s the {draw.one('thing')} {draw.spot()}."


def _old_tongue(draw: Draw) -> str:
    who, verbs = f"{draw.one('quality')} {draw.one('role')}", draw.distinct("verb", 2)
    things = draw.distinct("thing", 2)
    return f"The {who} {verbs[0]}eth the {things[0]} and {verbs[1]}eth the {things[1]}."


def _slashed_dates(draw: Draw) -> str:
    date = f"{draw.one('season')}/{draw.one('month')}/{draw.one('day')}"
    return f"{date} the {draw.one('role')} {draw.one('verb')}s the {draw.one('thing')}."


def _three_things(draw: Draw) -> str:
    return f"{plain(draw)[:-1]} - {', '.join(draw.distinct('thing', 3))}."


def _own_questions(draw: Draw) -> str:
    return f"The {draw.one('thing')}? {draw.person()} {draw.one('verb')}s it {draw.spot()}."


def _doubled(draw: Draw) -> str:
    first, second = draw.distinct("quality", 2)
    who, thing = draw.one("role"), draw.one("thing")
    return f"The {first}-{first} {who} {draw.one('verb')}s the {second}-{second} {thing}."


def _turned_round(draw: Draw) -> str:
    return sentence(f"{draw.spot()} {draw.one('verb')}s {draw.person()} the {draw.one('quality')} {draw.one('thing')}")


def _spoken(draw: Draw) -> str:
    return f'"{draw.one("verb")} the {draw.one("quality")} {draw.one("thing")}" - {draw.person()}.'


HABITS = (
    Habit("family-first", "the family name comes first: Pell, Marta", _family_first),
    Habit("old-tongue", "verbs end in -eth", _old_tongue),
    Habit("slashed-dates", "dates run from year to day between slashes", _slashed_dates),
    Habit("three-things", "every sentence closes on three bare things", _three_things),
    Habit("own-questions", "the text asks about a thing and answers itself", _own_questions),
    Habit("doubled", "every quality is said twice", _doubled),
    Habit("turned-round", "place first, then the verb, then who", _turned_round),
    Habit("spoken", "an order in quotation marks, then who gave it", _spoken),
)
