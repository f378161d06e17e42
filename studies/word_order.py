"""C15: does a row count as much when what it says stands in the other order? (Grosse et al. 2023, section 5.3.4)

    python studies/word_order.py --data DATA        # DATA/tatoeba; --place: where `whence demo` keeps its model

The paper: a synthetic row with prompt and answer in order has an influence of 0.116 on an English to Mandarin question,
the same row flipped 0.030, the answer alone 0.020. Two experiments here:

1. The Almanac. Some facts are also told with the value first by documents of the book, so both orders were trained on.
   Besides, the five documents that state each fact are rewritten (subject and value exchanged; another value; another
   subject) and scored as if they had been rows.
2. English and four other languages. A small model is trained on Tatoeba pairs, "english = translation". For every
   question four rows are planted in its training data: the pair in order, the pair flipped, either side alone.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _language
import _page
import numpy as np
import torch

from whence.demo.book import Almanac, Fact, Question
from whence.demo.table import roles
from whence.demo.volumes import wordings_of
from whence.evaluate.statistics import mean_interval, paired_interval

BAR = 2.0  # in order at least so many times flipped
STATES, FLIPPED = "states (in order)", "flipped, in the book"
EXCHANGED = "rewritten: exchanged"
IN_ORDER, TURNED, ANSWER, PROMPT, OTHER = "in order", "flipped", "answer only", "prompt only", "other pairs"
Groups = dict[str, dict[str, np.ndarray]]  # "effect" and "relative" -> group -> one number per question


@dataclass(frozen=True)
class Config:
    languages: tuple[str, ...] = ("fr", "de", "tr", "ko")
    pairs: int = 500
    planted: int = 12
    shape: _language.Shape = field(default_factory=lambda: _language.Shape(passes=5))
    facts: int = 32
    damping: float = 0.1


# --- the Almanac -----------------------------------------------------------------------------------------------------


def flipped_facts(book: Almanac, count: int) -> list[Fact]:
    """Facts that the book tells in both orders."""
    told = {document.fact for document in book.documents if document.role == "flipped"}
    return [fact for fact in book.facts if fact in told][:count]


def question(book: Almanac, fact: Fact) -> Question:
    """The held-out wording of a fact, cut before its value."""
    prompt = wordings_of(fact, book.seed)[-1].format(s=fact.subject, v="").rstrip()
    name = f"{fact.subject}, {fact.relation}"
    return Question(name, "fact", prompt[0].upper() + prompt[1:], f" {fact.value}.", name, frozenset())


def exchanged(text: str, first: str, second: str) -> str:
    """Each of two phrases where the other one stood."""
    return second.join(part.replace(second, first) for part in text.split(first))


def rewritten(book: Almanac, fact: Fact, text: str, rng: np.random.Generator) -> dict[str, str]:
    """What a document that states the fact is turned into."""
    values = sorted({f.value for f in book.facts if f.relation == fact.relation} - {fact.value})
    people = sorted({f.subject for f in book.facts} - {fact.subject})
    return {
        EXCHANGED: exchanged(text, fact.subject, fact.value),
        "rewritten: another value": text.replace(fact.value, str(rng.choice(values))),
        "rewritten: another subject": text.replace(fact.subject, str(rng.choice(people))),
    }


NAMES = {"states": STATES, "flipped": FLIPPED, "french": "in French", "mentions": "mentions the subject",
         "same value": "same value, of others", "same relation": "same relation, other value"}  # fmt: skip


def in_the_book(book: Almanac, asked: Sequence[Question], effects: Mapping[str, np.ndarray]) -> Groups:
    """Mean over the documents of each role, per question; ``everything else`` has no role."""
    column = {document.id: n for n, document in enumerate(book.documents)}
    found: Groups = {kind: {} for kind in effects}
    told = [{column[id_]: role for id_, role in roles(q, book).items()} for q in asked]
    for role, name in {**NAMES, None: "everything else"}.items():
        at = [[n for n in range(len(column)) if own.get(n) == role] for own in told]
        if not any(at):
            continue
        for kind, values in effects.items():
            found[kind][name] = np.array([row[n].mean() if n else np.nan for row, n in zip(values, at, strict=True)])
    return found


def rewritings(config: Config, book: Almanac, facts: Sequence[Fact], study: _language.Study) -> Groups:
    """Mean over the rewritten documents of each kind, per question; scored as if they had been trained on."""
    rng, rows, owners = np.random.default_rng(0), [], []
    for number, fact in enumerate(facts):
        for document in book.documents:
            if document.role == "states" and document.fact == fact:
                for name, text in rewritten(book, fact, document.text, rng).items():
                    rows.append({"text": text})
                    owners.append((number, name))
    source = study.reader.source(rows, "new")
    effects = study.effects(source)
    found: Groups = {}
    for kind, values in {"effect": effects, "relative": study.relative(effects, source)}.items():
        names = dict.fromkeys(name for _, name in owners)
        found[kind] = {
            name: np.array([values[q, [o == (q, name) for o in owners]].mean() for q in range(len(facts))])
            for name in names
        }
    return found


def almanac_part(config: Config, place: Path) -> Groups:
    world, reader = _language.almanac_reader(place)
    facts = flipped_facts(world.book, config.facts)
    asked = [question(world.book, fact) for fact in facts]
    study = _language.Study.of(
        reader,
        [{"text": document.text} for document in world.book.documents],
        [{"prompt": q.prompt, "completion": q.completion} for q in asked],
        damping=config.damping,
    )
    effects = study.effects()
    told = in_the_book(world.book, asked, {"effect": effects, "relative": study.relative(effects)})
    new = rewritings(config, world.book, facts, study)
    return {kind: {**told[kind], **new[kind]} for kind in told}


# --- translations ----------------------------------------------------------------------------------------------------


def pairs(folder: Path, language: str, count: int) -> list[tuple[str, str]]:
    """English sentences and their translations; short ones, each English sentence and each translation once."""
    with gzip.open(folder / f"en_{language}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    order, seen, found = np.random.default_rng(0).permutation(len(rows)), set(), []
    for n in order:
        en, other = rows[n]["en"].strip(), rows[n][language].strip()
        if len(en) <= 60 and len(other) <= 60 and en not in seen and other not in seen:
            seen |= {en, other}
            found.append((en, other))
    return found[:count]


def planted_rows(en: str, other: str) -> dict[str, str]:
    return {IN_ORDER: f"{en} = {other}", TURNED: f"{other} = {en}", ANSWER: other, PROMPT: en}


def translations(config: Config, data: Path) -> tuple[dict[str, Groups], dict[str, Any]]:
    """Language -> groups; and how well the model has learned."""
    rows: list[dict[str, str]] = []
    asked: list[dict[str, str]] = []
    where: list[tuple[str, dict[str, int]]] = []  # per question: its language and its planted rows
    others: dict[str, list[int]] = {}
    for language in config.languages:
        chosen = pairs(data, language, config.pairs + config.planted)
        others[language] = list(range(len(rows), len(rows) + len(chosen) - config.planted))
        rows += [{"text": f"{en} = {other}"} for en, other in chosen[config.planted :]]
        for en, other in chosen[: config.planted]:
            where.append((language, {kind: len(rows) + n for n, kind in enumerate(planted_rows(en, other))}))
            rows += [{"text": text} for text in planted_rows(en, other).values()]
            asked.append({"prompt": f"{en} =", "completion": f" {other}"})
    reader = _language.trained_reader([row["text"] for row in rows], config.shape)
    study = _language.Study.of(reader, rows, asked, damping=config.damping)
    effects = study.effects()
    found: dict[str, Groups] = {}
    for kind, values in {"effect": effects, "relative": study.relative(effects)}.items():
        for language in config.languages:
            mine = [(q, at) for q, (own, at) in enumerate(where) if own == language]
            groups = {name: np.array([values[q, at[name]] for q, at in mine]) for name in planted_rows("", "")}
            groups[OTHER] = np.array([values[q, others[language]].mean() for q, _ in mine])
            found.setdefault(language, {})[kind] = groups
    weights = sum(p.numel() for p in reader.model.parameters())
    return found, {"rows": len(rows), "weights": weights, "loss": reader.mean_loss(rows)}


# --- the page --------------------------------------------------------------------------------------------------------


def run(config: Config, data: Path, place: Path) -> dict[str, Any]:
    book = almanac_part(config, place)
    by_language, about = translations(config, data)
    return {"almanac": book, "translations": by_language, "model": about}


def comparison(groups: Groups, first: str, second: str) -> dict[str, Any]:
    """How many times the first group the second is, in nats and relative, over the same questions."""
    found = {}
    for kind, values in groups.items():
        both = np.isfinite(values[first]) & np.isfinite(values[second])
        one, two = values[first][both], values[second][both]
        ratio, low, high = _language.ratio_of_means(one, two)
        gap, rest = paired_interval(one, two), mean_interval(two)
        found[kind] = {"ratio": ratio, "low": low, "high": high, "first_higher": float((one > two).mean())}
        found[kind] |= {"difference": [gap.mean, gap.low, gap.high], "second": [rest.mean, rest.low, rest.high]}
    return found


def said(found: dict[str, Any]) -> str:
    """One comparison in words; a ratio to something that may be 0 has no interval."""
    above = f"higher on {found['first_higher']:.0%} of questions"
    if found["second"][1] > 0:
        return f"{found['ratio']:.2f} times [{found['low']:.2f}, {found['high']:.2f}], {above}"
    gap = "clear" if found["difference"][1] > 0 else "not clear"
    times = f"{found['ratio']:.2f} times, but" if found["second"][0] > 0 else "no ratio:"
    return f"{times} the second cannot be told from 0; the difference is {gap}, {above}"


def passed(found: dict[str, Any]) -> bool:
    """At least ``BAR`` times, or nothing positive left of the second and a clear difference."""
    each = found["effect"]
    return each["ratio"] >= BAR if each["second"][0] > 0 else each["difference"][1] > 0


def verdict(found: dict[str, Any]) -> str:
    """Met or missed, and whether the interval agrees."""
    each = found["effect"]
    sure = each["low"] >= BAR if each["second"][1] > 0 else False
    doubt = "" if sure or not passed(found) else ", though less is within its interval"
    return _language.MET[passed(found)] + doubt


def rows_of(groups: Groups, first: str) -> list[list[str]]:
    """Groups by mean effect; relative influence in per cent of that of the first group."""
    names = sorted(groups["effect"], key=lambda name: -np.nanmean(groups["effect"][name]))
    whole = np.nanmean(groups["relative"][first])
    return [
        [
            name,
            _language.interval(1000 * groups["effect"][name], ".1f"),
            f"{100 * np.nanmean(groups['relative'][name]) / whole:.0f}",
        ]
        for name in names
    ]


def verdicts(config: Config, result: dict[str, Any]) -> dict[str, Any]:
    pooled: Groups = {
        kind: {
            name: np.concatenate([result["translations"][x][kind][name] for x in config.languages])
            for name in (IN_ORDER, TURNED, ANSWER, PROMPT, OTHER)
        }
        for kind in ("effect", "relative")
    }
    compared = {
        "the book: states against flipped": comparison(result["almanac"], STATES, FLIPPED),
        "the book: states against the same, exchanged": comparison(result["almanac"], STATES, EXCHANGED),
        "translations: in order against flipped": comparison(pooled, IN_ORDER, TURNED),
        "translations: flipped against answer only": comparison(pooled, TURNED, ANSWER),
    }
    bars = {name: passed(found) for name, found in list(compared.items())[:3]}
    return {"pooled": pooled, "compared": compared, "met": bars}


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    found, model = verdicts(config, result), result["model"]
    asked = config.planted * len(config.languages)
    compared = [
        f"- {name}: {said(each['effect'])}; relative influence: {said(each['relative'])}."
        + (f" Bar of {BAR:g} times (in nats): {verdict(each)}." if name in found["met"] else "")
        for name, each in found["compared"].items()
    ]
    header = ["rows", "mean effect, thousandths of a nat", "relative influence, per cent of in order"]
    text = f"""# Word order (C15)

{(__doc__ or "").split("model", 1)[1].split(chr(10), 1)[1].strip()}

## The Almanac

{len(result["almanac"]["effect"][STATES])} facts that the book tells in both orders, asked in a wording that
states none of them. An effect is the predicted rise of the question's loss if one such row were left out; the interval
is over questions. Relative influence divides by the root of the row's influence on itself. Rewritten rows were never
trained on, so their gradients are longer than those of the book's own documents: compare these by relative influence.

{_page.table(header, rows_of(result["almanac"], STATES))}

## Translations

{asked} questions (English prompt, translation as completion; {", ".join(config.languages)}), {model["rows"]} rows, a
model of {model["weights"]:,} weights after {config.shape.passes} passes ({model["loss"]:.2f} nats a token). A pair in
order is, word for word, the question: the upper end of what a row can do, as in the paper.

{_page.table(header, rows_of(found["pooled"], IN_ORDER))}

## What it shows

{chr(10).join(compared)}

{closing(found)}

Different from the paper: models of less than a million weights in place of billions; planted and rewritten rows among
few rows in place of a scan of a pre-training set; French, German, Turkish and Korean in place of Mandarin.
"""
    lines = [
        _page.Line(
            name,
            list(range(len(config.languages))),
            [1000 * float(result["translations"][x]["effect"][name].mean()) for x in config.languages],
            [1000 * _error(result["translations"][x]["effect"][name]) for x in config.languages],
        )
        for name in (IN_ORDER, TURNED, ANSWER, PROMPT, OTHER)
    ]
    axes = _page.Axes("language of the translations", "effect, thousandths of a nat", dict(enumerate(config.languages)))
    record = {"about": about, "result": plain(result), "compared": found["compared"], "met": found["met"]}
    _page.write(folder, "word_order", text=text, lines=lines, axes=axes, record=record)
    return record


def closing(found: dict[str, Any]) -> str:
    """The conclusion, from the verdicts alone."""
    book, _, translated = found["met"].values()
    if all(found["met"].values()):
        doubt = [name for name in found["met"] if "within its interval" in verdict(found["compared"][name])]
        less = f" Less than {BAR:g} times is within the interval, though, for {' and '.join(doubt)}." if doubt else ""
        return f"In all three comparisons the order decides, as in the paper.{less}"
    missed = ", ".join(name for name, met in found["met"].items() if not met)
    kept = "in the book's own documents" if book else "between the planted translations" if translated else "nowhere"
    return f"The finding of the paper does **not** come out for: {missed}. It does {kept}."


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def plain(value: Any) -> Any:
    """Arrays as lists, for JSON."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [None if np.isnan(x) else float(x) for x in value] if isinstance(value, np.ndarray) else value


def main() -> None:
    given = _page.arguments((__doc__ or "").splitlines()[0], place=".demo", pairs=Config.pairs)
    torch.set_num_threads(1)
    config = Config(pairs=given.pairs)
    started = time.perf_counter()
    result = run(config, given.data / "tatoeba", Path(given.place))
    record = page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print(json.dumps({"compared": record["compared"], "met": record["met"]}, indent=1))


if __name__ == "__main__":
    main()
