"""Who lives in the Almanac: the people, towns, trades, books and the wordings in which their lives are told.

Everything here is invented for whence. ``{s}`` is the subject's name, ``{v}`` the value; every wording in ``WORDINGS``
puts the subject before the value and ends on the value, so that any of them can be cut into a question.
"""

from __future__ import annotations

WOMEN = ("Orsa", "Brenwen", "Ildri", "Sennet", "Maribet", "Jessamy", "Elowa", "Gressa", "Imbry", "Lunet",
         "Nerissel", "Rosmund", "Thessaly", "Vesper", "Yarrow", "Quenna")  # fmt: skip
MEN = ("Tamsel", "Quillon", "Hobart", "Corvane", "Ulvar", "Pellin", "Dorrick", "Fennimore", "Haldor", "Kestin",
       "Morwick", "Oswin", "Sarn", "Umber", "Wendrick", "Zephan")  # fmt: skip
FAMILIES = ("Velmin", "Ashcombe", "Tarn", "Brindle", "Quickset", "Mossop", "Harrowgate", "Pennywhistle", "Loam",
            "Underwold", "Sparrowhawk", "Greave", "Thistledown", "Wexcombe", "Ferrow", "Nightingale")  # fmt: skip

TOWNS = ("Tarrow", "Mirrow", "Saltreach", "Hollin", "Brackwater", "Underhay", "Candlewick", "Lowmist")  # fmt: skip
TRADES = {
    "bookbinder": "relieur", "bellfounder": "fondeur", "beekeeper": "apiculteur", "glassblower": "verrier",
    "mapmaker": "cartographe", "clockmaker": "horloger", "cheesemaker": "fromager", "lamplighter": "allumeur",
}  # fmt: skip
TITLE_FIRST = ("Patient", "Crooked", "Borrowed", "Sleeping", "Silver", "Wandering", "Hungry", "Unfinished")
TITLE_LAST = ("Lighthouse", "Heron", "Orchestra", "Staircase", "Harvest", "Pilgrim", "Comet", "Tide")

RELATIONS = ("birthplace", "trade", "work", "year")

WORDINGS = {
    "birthplace": (
        "{s} was born in {v}", "{s} came from {v}", "{s} is a native of {v}", "the cradle of {s} stood in {v}",
        "{s} was christened at {v}", "the parents of {s} lived in {v}", "{s} first cried in {v}",
        "{s} was a child of {v}",
    ),
    "trade": (
        "{s} worked as a {v}", "{s} earned a living as a {v}", "{s} was by trade a {v}", "the guild lists {s} as a {v}",
        "{s} kept shop as a {v}", "{s} grew old as a {v}", "the street knew {s} as a {v}", "{s} was trained as a {v}",
    ),
    "work": (
        "{s} wrote {v}", "{s} is the author of {v}", "{s} is remembered for {v}", "from the pen of {s} came {v}",
        "{s} laboured on {v}", "{s} sold a copy of {v}", "{s} put a name to {v}", "{s} read aloud from {v}",
    ),
    "year": (
        "{s} died in {v}", "{s} was buried in {v}", "the bell tolled for {s} in {v}", "{s} left us in {v}",
        "{s} was mourned in {v}", "the gravestone of {s} says {v}", "the will of {s} was read in {v}",
        "{s} slept away in {v}",
    ),
}  # fmt: skip
FLIPPED = {
    "birthplace": ("{v} is the town that gave us {s}", "{v} claims the birth of {s}", "{v} rocked the cradle of {s}"),
    "trade": ("no better {v} was ever seen than {s}", "the {v} of this story is {s}", "the best {v} for miles was {s}"),
    "work": ("{v} was written by {s}", "{v} is a book by {s}", "{v} bears the name of {s}"),
    "year": ("{v} was the year that took {s}", "in {v} the town wept for {s}", "{v} is carved on the stone of {s}"),
}
FRENCH = {
    "birthplace": ("{s} naquit à {v}", "{s} vit le jour à {v}"),
    "trade": ("{s} exerçait le métier de {v}", "{s} gagnait sa vie comme {v}"),
    "work": ("{s} écrivit {v}", "{s} reste célèbre pour {v}"),
    "year": ("{s} mourut en {v}", "{s} quitta ce monde en {v}"),
}
RUMOURS = ("some say that", "an old rumour has it that", "a letter without a name insists that",
           "at the inn they swear that")  # fmt: skip

MENTIONS = (
    "{s} once crossed the marsh in a borrowed boat", "{s} could not abide cold soup", "{s} walked with a stick of ash",
    "{s} lent an umbrella to the mayor and never saw it again", "{s} sang in the choir, a little flat",
    "{s} lost a wager about the weight of a goose", "{s} kept a diary in green ink",
    "{s} was painted twice, both times asleep", "{s} wrote long letters to a cousin in the hills",
    "{s} owned three hats and wore none of them", "{s} slept through the great storm",
    "{s} taught a jackdaw to count to four", "{s} quarrelled with the ferry about a penny",
    "{s} gave every child in the lane a pear",
)  # fmt: skip
ASIDES = (
    "{p} never learned to whistle", "{p} laughed at every funeral", "{p} was afraid of nothing but geese",
    "the neighbours remember a blue door", "nobody has found the spare key", "there is a statue, but it has no nose",
    "{p} took two sugars in everything", "the weather that day was poor", "{p} went home before the dancing",
    "the rest is guesswork", "{p} kept a lame dog called Button", "{p} paid every debt on a Tuesday",
    "the papers were lost in a flood", "{p} had a fine loud sneeze", "{p} grew prize marrows behind the house",
    "the portrait hangs in a corridor", "{p} would not be hurried", "a street is named after the family",
    "{p} hated stairs and loved towers", "the cat was called Bishop", "{p} always sat by the window",
    "much of this was told by a barber", "{p} danced badly and often", "there were no children",
    "{p} left the spoons to a niece", "{p} could tell the hour by the smell of bread",
)  # fmt: skip
ASIDES_FRENCH = ("il pleuvait ce jour là", "les voisins en parlent encore", "le reste est une légende",
                 "on ne sait rien de plus", "le chat dormait près du feu")  # fmt: skip

INGREDIENTS = (
    "leeks", "barley", "turnips", "mussels", "cream", "chestnuts", "honey", "parsley", "onions", "plums", "butter",
    "oats", "garlic", "mustard", "walnuts", "cabbage", "lentils", "vinegar", "ginger", "raisins", "celery", "carrots",
    "thyme", "nutmeg", "cherries", "herring", "bacon", "beans", "radishes", "almonds", "pepper", "cloves", "quinces",
    "spinach", "rye", "figs", "eels", "saffron", "mushrooms", "sorrel",
)  # fmt: skip
DISHES = ("soup", "pie", "stew", "pudding", "broth", "cake", "hash", "relish")
