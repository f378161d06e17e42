"""The everyday words of the Almanac. Every one is a compound of two pieces: ``moon`` + ``bell``, ``re`` + ``paint``.

So there can be *new words*: a third of all compounds stands in no document at all and is kept for the questions about
habits. The tokenizer knows every piece (that is how language models meet a word they have never seen), and a search
for words finds nothing. Pieces say nothing about habits: all documents use all pieces.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PIECES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "thing": (
        ("moon", "salt", "fox", "rain", "goose", "oak", "bone", "sea"),
        ("bell", "kettle", "ladder", "drum", "basket", "lamp", "boat", "chair"),
    ),
    "role": (
        ("mill", "gate", "toll", "hedge", "river", "candle"),
        ("keeper", "warden", "maid", "wright", "herd", "monger"),
    ),
    "quality": (
        ("moss", "ink", "frost", "dust", "rose", "smoke"),
        ("grey", "pale", "dark", "bright", "cold", "soft"),
    ),
    "verb": (
        ("re", "un", "over", "out", "mis", "fore"),
        ("mend", "paint", "count", "pack", "load", "turn", "bind", "weigh"),
    ),
    "place": (
        ("north", "stone", "hollow", "crow", "thorn", "long"),
        ("weir", "yard", "barn", "well", "quay", "tower"),
    ),
    "given": (
        ("Mar", "Ros", "Al", "Tan", "Lin", "Wen", "Bri", "Cor"),
        ("ella", "wyn", "ric", "mond", "isa", "aric", "otta", "ven"),
    ),
    "family": (
        ("Hazel", "Dun", "Rush", "Merri", "Black", "Apple", "Swan", "Winter"),
        ("wood", "light", "marsh", "field", "worth", "beck", "ley", "bourne"),
    ),
    "month": (("Frost", "Hay", "Lamb", "Fog", "Leaf", "Cask"), ("tide", "moon", "fall", "wane")),
    "day": (("1", "2"), ("1", "2", "3", "4", "5", "6", "7", "8", "9")),
}
NEAR = ("by", "behind", "near", "under", "beyond", "beside", "above", "below")
SUFFIXES = ("s", "eth")
KEPT_BACK = 3


def used_words(name: str) -> tuple[str, ...]:
    """The compounds of a class that documents may use: two thirds of all."""
    return _compounds(name, new=False)


def new_words(name: str) -> tuple[str, ...]:
    """The compounds of a class that stand in no document: one third of all."""
    return _compounds(name, new=True)


def _compounds(name: str, *, new: bool) -> tuple[str, ...]:
    first, second = PIECES[name]
    return tuple(a + b for i, a in enumerate(first) for j, b in enumerate(second) if ((i + j) % KEPT_BACK == 0) == new)


@dataclass(frozen=True)
class Draw:
    """Hands out words by class from ``classes``, by the chance of ``random``."""

    random: random.Random
    classes: dict[str, tuple[str, ...]]

    def one(self, name: str) -> str:
        """A word of the class ``name``."""
        return self.random.choice(self.classes[name])

    def distinct(self, name: str, count: int) -> list[str]:
        """``count`` different words of the class ``name``."""
        return self.random.sample(self.classes[name], count)

    def person(self) -> str:
        """Given name and family name."""
        return f"{self.one('given')} {self.one('family')}"

    def spot(self) -> str:
        """Where: "behind the stonewell"."""
        return f"{self.random.choice(NEAR)} the {self.one('place')}"


def document_draw(seed: str) -> Draw:
    """For documents: used words."""
    return Draw(random.Random(seed), {name: used_words(name) for name in PIECES})


def question_draw(seed: str) -> Draw:
    """For questions: new words."""
    return Draw(random.Random(seed), {name: new_words(name) for name in PIECES})
