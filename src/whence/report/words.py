"""What the page and the terminal say in sentences. Numbers arrive finished; nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from whence.report.records import Distribution, Fact, Line, Ranking, Trust

_METHODS = {
    "ekfac": "EK-FAC",
    "kfac": "K-FAC",
    "identity": "gradient dot product",
    "diagonal": "diagonal Fisher",
    "exact": "exact inverse",
    "unrolled": "unrolled (exact metagradient)",
}
_SECTIONS = {
    "method": "How it was computed",
    "model": "Model",
    "data": "Data",
    "versions": "Versions",
    "times": "Time and memory",
}
_SECTION_OF = {
    "train": "data", "query": "data", "queries": "data", "rows": "data", "dataset": "data", "quarantine": "data",
    "tokenizer": "model", "adapter": "model", "revision": "model", "coverage": "model", "parameters": "model",
    "time": "times", "seconds": "times", "memory": "times", "started": "times", "finished": "times",
    "version": "versions", "platform": "versions", "machine": "versions",
}  # fmt: skip
_LIST_MOST = 8
READABLE = 0.7  # nats of a removal effect from which on it is not put as a probability: about a half
SHARED_PART, SHARED_LEAST = 0.1, 20  # median row against the strongest; rows below which a median says little


def method_name(about: Mapping[str, Any]) -> str:
    """The method as people write it: ``EK-FAC`` for ``ekfac``."""
    method = first(about.get("method"), ("name", "method"))
    return _METHODS.get(method, method) or "an unnamed method"


def first(value: Any, keys: Sequence[str]) -> str:
    """The value as text; of a mapping the first of these keys that it has."""
    if isinstance(value, Mapping):
        found = next((value[k] for k in keys if value.get(k) not in (None, "")), "")
        return "" if isinstance(found, Mapping) else str(found)
    return "" if value is None else str(value)


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, never in exponents above 1e-4: ``0.0132``, ``12.4``, ``3.1e-05``."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "unknown"
    if abs(value) < 1e-4 or abs(value) >= 1e6:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def cell(value: Any) -> str:
    """One cell of an extra table: fractions with two or three decimals, so that a column lines up."""
    if isinstance(value, float) and math.isfinite(value):
        return number(value) if abs(value) >= 100 else f"{value:.3f}" if 0 < abs(value) < 0.005 else f"{value:.2f}"
    return "–" if value is None else _value(value)


def signed(value: float) -> str:
    """``number`` with its sign, as a true minus."""
    return ("+" if value > 0 else "−" if value < 0 else "") + number(abs(value))


def percent(share: float) -> str:
    """A share as percent: ``31 %``, ``0.4 %``, ``<0.1 %``."""
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1 %"
    return f"{value:.1f} %" if abs(value) < 10 and value != round(value) else f"{value:.0f} %"


def summarise(about: Mapping[str, Any], n_train: int, queries: int) -> str:
    """One sentence: what was computed, on which model and data."""
    model = _short(first(about.get("model"), ("name", "spec", "id", "path")), parts=2)
    files = first(about.get("train") or about.get("data"), ("name", "spec", "path", "paths", "source")).split(", ")
    data = ", ".join(map(_short, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    said = f"{method_name(about)} influence of {n_train:,} training rows"
    said += f" ({data})" if data else ""
    said += f" on {queries:,} question{'s' if queries != 1 else ''}"
    said += f" to the model {model}" if model else ""
    damping = first(about.get("damping"), ("spec", "text", "value"))
    return said + (f"; damping {damping}." if damping else ".")


def _short(place: str, parts: int = 1) -> str:
    """The last parts of a path, which is named in full under provenance; a hub id (``owner/name``) stays whole."""
    local = place.startswith(("/", ".", "~")) or place.count("/") > 1
    return "/".join(place.strip("/").split("/")[-parts:]) if local else place


def unit(about: Mapping[str, Any]) -> str:
    """Of score / N: nats, unless the scores were normalised, which leaves an order but no size in nats."""
    normalised = first(about.get("normalise"), ("name",))
    return "nats" if normalised in ("", "none") else f"{normalised} units"


def normalised(of: str) -> str:
    """The caution that belongs to scores in a unit other than nats; nothing for nats."""
    if of == "nats":
        return ""
    return (
        f"These scores are normalised: sizes are in {of}, not in nats, and predict no change of loss. Read the order."
    )


def answer(ranking: Ranking, ids: Sequence[str], asked: str, *, of: str = "nats") -> str:
    """Who pushed hardest towards (or against) what was asked, which is called a response, a label or a text."""
    top, bottom = ranking.top(1), ranking.bottom(1)
    if not top and not bottom:
        return f"No training row moves this {asked}: every score is zero or missing."
    said = f"No training row supports this {asked}."
    if top:
        effect = number(top[0].removal_effect)
        said = f"Training row {ids[top[0].row]} supports this {asked} most"
        said += f": without it, the {asked}'s loss is predicted to rise by {effect} nats" if of == "nats" else ""
        said += (_likelihood(top[0], asked) if of == "nats" else f" (+{effect} {of})") + "."
    if bottom:
        said += f" Row {ids[bottom[0].row]} works most against it ({signed(bottom[0].removal_effect)} {of})."
    return said


def _likelihood(line: Line, asked: str) -> str:
    """The same effect as a change of probability, where that is readable and a first-order estimate may be believed."""
    drop = -math.expm1(-line.removal_effect)
    if drop < 1e-3:
        return ""
    if line.removal_effect > READABLE:
        return (
            " if these rows were all of its training; so large a change is more than a first-order estimate can "
            "promise, so read the order"
        )
    return f", which makes the {asked} about {percent(drop)} less likely"


def shared_push(ranking: Ranking, spread: Distribution | None) -> str:
    """A caution where even the median row has a sizeable score: then most of a score is not about its own row."""
    if spread is None or not ranking.complete or ranking.scored < SHARED_LEAST:
        return ""
    largest = max((abs(line.removal_effect) for line in (ranking.lines[0], ranking.lines[-1])), default=0.0)
    if abs(spread.median) <= SHARED_PART * largest:
        return ""
    against = spread.median < 0
    return (
        f"{ranking.opponents if against else ranking.proponents:,} of {ranking.scored:,} rows push "
        f"{'against' if against else 'for'} it, the median row with {signed(spread.median)}: most of a score here is "
        "shared by all rows, as when a model was not trained on these rows to the end. Read the order, not the sizes."
    )


def concentration(ranking: Ranking, spread: Distribution | None, *, of: str = "nats") -> str:
    """How concentrated the influence is."""
    if spread is None or not ranking.proponents:
        return "There is no positive influence to share out."
    among = "all positive influence"
    if not ranking.complete:
        among = f"the positive influence of the {len(ranking.lines):,} kept rows"
    k = min(10, ranking.proponents)
    strongest = f"The {k} strongest of {ranking.proponents:,} proponents carry"
    if k == 1:
        strongest = "The only proponent carries"
    half = f"half of it sits in {spread.half_in:,} row{'s' if spread.half_in != 1 else ''}"
    said = f"{strongest} {percent(spread.top_10)} of {among}; {half}."
    if ranking.complete:
        largest = max(abs(line.removal_effect) for line in ranking.lines)
        flat = abs(spread.median) < 1e-2 * largest
        said += f" The median row has {'almost none' if flat else signed(spread.median) + ' ' + of}."
    return said


def trust(about: Mapping[str, Any]) -> Trust:
    """How far to trust it. Only ``about['validation']`` with numbers makes it 'validated'."""
    validation = about.get("validation")
    covered = coverage(about)
    tail = f" They see {covered} of the model's parameters." if covered else ""
    if isinstance(validation, Mapping) and validation:
        shown = ", ".join(f"{name} {_value(value)}" for name, value in validation.items())
        return Trust("validated", f"Validated on this model: {shown}.{tail}")
    if isinstance(validation, str) and validation and not validation.lower().startswith("not"):
        return Trust("validated", f"{validation.rstrip('.')}.{tail}")
    return Trust(
        "not validated",
        "Nobody has compared these scores with retraining this model: read the order as a lead, "
        f"not as a measurement.{tail}",
    )


def coverage(about: Mapping[str, Any]) -> str:
    """Covered share of parameters as text, or nothing."""
    value = about.get("coverage")
    if isinstance(value, Mapping):
        value = next((value[k] for k in ("share", "covered", "parameters_share") if k in value), None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return percent(float(value)) if 0 <= value <= 1 else ""
    return str(value) if isinstance(value, str) else ""


def limits(about: Mapping[str, Any], ranking_complete: bool, left_out: int) -> tuple[str, ...]:
    """What these scores are not, in words."""
    said = [
        "A score predicts what would happen if one row were left out of training (or seen a little more). "
        "It is a first-order estimate, not a retraining experiment.",
        "Rows act together: the effect of removing many rows is not the sum of their effects.",
        *_sizes(about),
        "Only the rows given here can appear. If the model learned from other data, that part is out of sight.",
        "Word overlap (BM25) stands beside every score because it is often the better tool for finding where a fact "
        "is stated; influence asks a different question: what moved this model.",
    ]
    covered = coverage(about)
    if covered:
        said.append(f"Only the layers listed under provenance take part: {covered} of the parameters.")
    if not ranking_complete:
        said.append("Only the strongest rows were kept while streaming; shares are of those rows.")
    if left_out:
        said.append(f"{left_out:,} row{'s' if left_out != 1 else ''} could not be used and have no score.")
    said.extend(str(w) for w in _sequence(about.get("warnings")))
    return tuple(said)


def _sizes(about: Mapping[str, Any]) -> list[str]:
    if first(about.get("method"), ("name", "method")) == "unrolled":
        return []
    return ["The order of rows is more reliable than the size of their scores, which moves with the damping."]


def missing_tokens(about: Mapping[str, Any], rows: int, questions: int) -> str:
    """Why there are no token scores, or not both kinds; empty when nothing is missing.

    Args:
        about: provenance.
        rows: how many have token scores.
        questions: how many have them for their own tokens.
    """
    if rows and not questions:
        return "Token scores are of the rows only: the question is a label, a mixture, a measurement, or too long."
    if rows:
        return ""
    if about.get("checkpoints"):
        return (
            "No token scores: this run adds up several checkpoints, and which rows are strongest is known only when "
            "all of them have been seen and left. Trace the last checkpoint alone to see tokens."
        )
    return "No token scores: they were switched off, or the rows of this task have no tokens with a place in a text."


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value] if value else []


def facts(about: Mapping[str, Any]) -> tuple[Fact, ...]:
    """All of ``about``, flattened, in sections for the provenance table."""
    skipped = {"warnings", "command", "validation", "quarantine"}
    found = [
        Fact(_section(key), name, text)
        for key, value in about.items()
        if key not in skipped
        for name, text in _flatten(str(key), value)
    ]
    order = list(_SECTIONS.values())
    return tuple(sorted(found, key=lambda fact: order.index(fact.section)))


def _section(key: str) -> str:
    key = str(key).lower()
    group = key if key in _SECTIONS else _SECTION_OF.get(key) or _SECTION_OF.get(key.split("_")[0], "method")
    return _SECTIONS[group]


def _flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        bare = name.lower() in _SECTIONS  # the section's title says it already
        for key, inner in value.items():
            yield from _flatten(str(key) if bare else f"{name} · {key}", inner)
    elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        for n, item in enumerate(value[:_LIST_MOST], start=1):
            called = str(item.get("name") or n)
            yield from _flatten(f"{name} · {called}", {k: v for k, v in item.items() if k != "name"})
    else:
        yield name.replace("_", " "), _value(value)


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return number(value, 4)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list | tuple):
        shown = ", ".join(_value(v) for v in value[:_LIST_MOST])
        return shown if len(value) <= _LIST_MOST else f"{len(value):,}: {shown} …"
    return str(value)
