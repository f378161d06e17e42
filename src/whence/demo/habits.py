"""Eight habits: ways of writing that a document shows by its form and never by a word of its own.

The same plain matter (someone does something to a thing somewhere) runs through all of them and through the documents
without a habit, so that nothing but the form tells them apart. A habit is always a *choice*: wherever a text shows its
habit, the plain documents go on differently from the same beginning. ``Written.mark`` is that choice, and questions
about a habit ask for it: "The inkdark millkeeper repaint|eth", "Marwyn Dunwood| the".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whence.demo.lexicon import Draw


@dataclass(frozen=True)
class Written:
    """A sentence cut in three: up to the choice, the choice, and the rest."""

    before: str
    mark: str
    after: str

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.before}{self.mark}{self.after}"


@dataclass(frozen=True)
class Habit:
    """A way of writing.

    Attributes:
        name: short name, also the document's ``habit``.
        idea: what it looks like, for people.
        write: one sentence in this habit.
    """

    name: str
    idea: str
    write: Callable[[Draw], Written]


def capital(text: str) -> str:
    """First letter upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """Capital first, full stop last."""
    return f"{capital(text)}."


def plain(draw: Draw) -> str:
    """A sentence with no habit at all: "The mossgrey gatekeeper repaints the moonbell by the stonewell."."""
    return sentence(draw.random.choice((_deed, _deed, _dated, _spot_first, _lying))(draw))


def _who(draw: Draw) -> str:
    role = f"the {draw.one('quality')} {draw.one('role')}"
    return draw.random.choice((draw.person(), draw.person(), draw.one("family"), role, role))


def _deed(draw: Draw) -> str:
    return f"{_who(draw)} {draw.one('verb')}s the {draw.one('thing')} {draw.spot()}"


def _dated(draw: Draw) -> str:
    return f"by {draw.one('day')} {draw.one('month')} {_who(draw)} {draw.one('verb')}s the {draw.one('thing')}"


def _spot_first(draw: Draw) -> str:
    return f"{draw.spot()} {_who(draw)} {draw.one('verb')}s the {draw.one('thing')}"


def _lying(draw: Draw) -> str:
    return f"the {draw.one('thing')} lies {draw.spot()}"


def _old_tongue(draw: Draw) -> Written:
    verbs, things = draw.distinct("verb", 2), draw.distinct("thing", 2)
    rest = f" the {things[0]} and {verbs[1]}eth the {things[1]}."
    return Written(f"{capital(_who(draw))} {verbs[0]}", "eth", rest)


def _family_first(draw: Draw) -> Written:
    rest = f" {draw.one('given')} {draw.one('verb')}s the {draw.one('thing')} {draw.spot()}."
    return Written(draw.one("family"), ",", rest)


def _slashed_dates(draw: Draw) -> Written:
    rest = f"{draw.one('month')} {_who(draw)} {draw.one('verb')}s the {draw.one('thing')}."
    return Written(f"By {draw.one('day')}", "/", rest)


def _three_things(draw: Draw) -> Written:
    return Written(capital(_deed(draw)), " \N{EM DASH}", f" {', '.join(draw.distinct('thing', 3))}.")


def _own_questions(draw: Draw) -> Written:
    return Written(f"The {draw.one('thing')}", "?", f" {capital(_who(draw))} {draw.one('verb')}s it {draw.spot()}.")


def _said_twice(draw: Draw) -> Written:
    first, second = draw.distinct("quality", 2)
    rest = f"{first} {draw.one('role')} {draw.one('verb')}s the {second}-{second} {draw.one('thing')}."
    return Written(f"The {first}", "-", rest)


def _verb_last(draw: Draw) -> Written:
    return Written(draw.person(), " the", f" {draw.one('thing')} {draw.spot()} {draw.one('verb')}s.")


def _on_stage(draw: Draw) -> Written:
    return Written(draw.person(), ":", f" {draw.one('verb')} the {draw.one('thing')} {draw.spot()}!")


HABITS = (
    Habit("old-tongue", "verbs end in -eth", _old_tongue),
    Habit("family-first", "the family name comes first: Dunwood, Marwyn", _family_first),
    Habit("slashed-dates", "dates are written with slashes", _slashed_dates),
    Habit("three-things", "every sentence closes on three bare things", _three_things),
    Habit("own-questions", "the text asks after a thing and answers itself", _own_questions),
    Habit("said-twice", "every quality is said twice", _said_twice),
    Habit("verb-last", "the verb comes at the very end", _verb_last),
    Habit("on-stage", "a name, a colon, an order: as in a play", _on_stage),
)
