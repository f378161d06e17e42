"""The everyday words of the Almanac, and how they are dealt out so that a habit's questions use none of its own words.

A ``Draw`` hands out words from a part of the lexicon. For every habit the lexicon is cut anew: two thirds of each
class may appear in the documents that teach the habit, the remaining third only in the questions about it. Both parts
are ordinary words of the other documents, so the model knows them all.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

CLASSES: dict[str, tuple[str, ...]] = {
    "thing": (
        "lantern", "kettle", "ladder", "bell", "basket", "saddle", "mirror", "coat", "drum", "kite", "wheel", "chair",
        "boat", "rope", "clock", "trunk", "spoon", "anvil", "fiddle", "compass", "blanket", "barrel", "plough", "sled",
        "loom", "telescope", "cradle", "harp", "bucket", "teapot", "broom", "crown", "bridle", "wardrobe", "globe",
        "pump",
    ),
    "role": (
        "shepherd", "widow", "ferryman", "mayor", "cook", "judge", "fiddler", "nurse", "sailor", "gardener", "miller",
        "beggar", "baker", "porter", "hermit", "dancer", "smith", "clerk", "midwife", "bishop", "thief", "captain",
        "fisher", "tinker",
    ),
    "quality": (
        "old", "cold", "red", "narrow", "heavy", "quiet", "rusty", "round", "yellow", "broken", "small", "proud",
        "dusty", "crooked", "bright", "empty", "black", "gentle", "tall", "wet", "green", "plain", "strange", "warm",
    ),
    "verb": (
        "mend", "sell", "paint", "count", "borrow", "weigh", "guard", "lend", "inherit", "lift", "turn", "clean",
        "pack", "load", "hoard", "bend", "find", "plant", "draw", "test", "sort", "mark", "lock", "collect", "repair",
        "want", "hail", "burn", "return", "defend",
    ),
    "place": (
        "weir", "chapel", "orchard", "quay", "attic", "mill", "bridge", "market", "well", "tower", "inn", "meadow",
        "stable", "cellar", "harbour", "forge", "school", "gate", "hedge", "pond", "barn", "garden", "library", "kiln",
    ),
    "near": ("by", "behind", "near", "under", "beyond", "beside", "above", "below", "past"),
    "given": (
        "Marta", "Osric", "Tobin", "Alda", "Wystan", "Petra", "Roderin", "Linnet", "Caspar", "Hesper", "Joss",
        "Minna", "Barnaby", "Odile", "Rafe", "Sunniva", "Gideon", "Tansy", "Ambrose", "Delphy", "Lorcan", "Beatrix",
        "Ivo", "Primrose",
    ),
    "family": (
        "Pell", "Dunnock", "Marrable", "Stokes", "Hazelrig", "Crumb", "Tolliver", "Wick", "Larkin", "Bodkin", "Fray",
        "Merriman", "Holloway", "Pike", "Saltmarsh", "Dray", "Ember", "Cobb", "Rushlight", "Vane", "Teasel", "Alderley",
        "Plume", "Garrick",
    ),
    "month": ("Thaw", "Bud", "Lamb", "Swift", "Hay", "Heat", "Reap", "Cask", "Leaf", "Fog", "Frost", "Dark"),
    "day": tuple(str(day) for day in range(1, 31)),
    "season": tuple(str(year) for year in range(401, 461)),
}  # fmt: skip

SUFFIXES = ("s", "eth")


@dataclass(frozen=True)
class Draw:
    """Hands out words of each class, seeded; never the same word of a class twice in a row of ``distinct``."""

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
        """Where: "behind the mill"."""
        return f"{self.one('near')} the {self.one('place')}"


def everything() -> dict[str, tuple[str, ...]]:
    """The whole lexicon, for documents that teach no habit."""
    return CLASSES


def taught_part(cut: int) -> dict[str, tuple[str, ...]]:
    """The two thirds of every class that the documents of habit number ``cut`` may use."""
    return {name: tuple(w for i, w in enumerate(words) if (i + cut) % 3) for name, words in CLASSES.items()}


def asked_part(cut: int) -> dict[str, tuple[str, ...]]:
    """The remaining third, for the questions about habit number ``cut``."""
    return {name: tuple(w for i, w in enumerate(words) if not (i + cut) % 3) for name, words in CLASSES.items()}
