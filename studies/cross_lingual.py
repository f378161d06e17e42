"""C15: does what was read in one language count in another? (Grosse et al. 2023, section 5.3.3)

    python studies/cross_lingual.py --data DATA          # DATA/udhr, DATA/tatoeba

The paper: the ten English rows that matter most to an English question have almost no influence on the same question in
Korean or Turkish at 810 million weights, and more the larger the model. A small model is trained on five languages, no
row in more than one of them: first halves of the articles of the Universal Declaration of Human Rights, and both sides
of Tatoeba pairs as rows of their own. Asked are the second halves of the articles, and English sides of the pairs.
Three measurements: the place of the same article's row among the rows of each language; the place of a sentence's
translation; and the paper's own. BM25 stands beside: names and loan words are shared without any understanding.
"""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _language
import _page
import numpy as np
import torch

from whence.candidates.lexical import bm25_scores
from whence.evaluate.statistics import mean_interval

EN = "en"
SMALLEST = 810e6  # weights of the paper's smallest model
NO_MORE = "what crosses languages here is no more than word overlap."


@dataclass(frozen=True)
class Config:
    languages: tuple[str, ...] = ("fr", "de", "tr", "ko")
    articles: int = 20
    pairs: int = 220
    asked: int = 16
    top: int = 10
    shape: _language.Shape = field(default_factory=lambda: _language.Shape(vocabulary=3000, passes=16, length=80))
    damping: float = 0.1

    @property
    def all(self) -> tuple[str, ...]:
        return (EN, *self.languages)


@dataclass
class Texts:
    """Rows and questions, and where what belongs together stands.

    Attributes:
        rows / questions: texts.
        language: of every row.
        article: (language, article) -> row; ``half`` the same for questions.
        pair: question of a sentence -> (language, row of the sentence, row of its translation).
    """

    rows: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=list)
    article: dict[tuple[str, int], int] = field(default_factory=dict)
    half: dict[tuple[str, int], int] = field(default_factory=dict)
    pair: dict[int, tuple[str, int, int]] = field(default_factory=dict)

    def add(self, text: str, language: str) -> int:
        self.rows.append(text)
        self.language.append(language)
        return len(self.rows) - 1

    def ask(self, text: str) -> int:
        self.questions.append(text)
        return len(self.questions) - 1


def read(config: Config, data: Path) -> Texts:
    texts = Texts()
    with (data / "udhr" / "articles.jsonl").open(encoding="utf-8") as file:
        articles = [json.loads(line) for line in file]
    for number, article in enumerate(articles):
        for language in config.all:
            first, second = in_two(article[language])
            texts.article[language, number] = texts.add(first, language)
            if number < config.articles:
                texts.half[language, number] = texts.ask(second)
    for language in config.languages:
        with gzip.open(data / "tatoeba" / f"en_{language}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        chosen = [lines[n] for n in np.random.default_rng(0).permutation(len(lines))]
        long = [line for line in chosen if 12 <= len(line[EN]) <= 80 and len(line[language]) <= 80][: config.pairs]
        for number, line in enumerate(long):
            own, other = texts.add(line[EN], EN), texts.add(line[language], language)
            if number < config.asked:
                texts.pair[texts.ask(line[EN])] = (language, own, other)
    return texts


def in_two(text: str) -> tuple[str, str]:
    """Two halves, cut between words."""
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def place(scores: np.ndarray, at: int) -> float:
    """Share of the other rows that one row is above: 1 = first, 0.5 = chance; ties half."""
    others = np.delete(scores, at)
    return float((others < scores[at]).mean() + 0.5 * (others == scores[at]).mean())


def article_places(config: Config, texts: Texts, scores_QN: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Question language -> row language -> place of the article's first half among all articles of that language."""
    count = max(number for _, number in texts.article) + 1
    return {
        asked: {
            read_in: [
                place(scores_QN[texts.half[asked, a], [texts.article[read_in, n] for n in range(count)]], a)
                for a in range(config.articles)
            ]
            for read_in in config.all
        }
        for asked in config.all
    }


def pair_places(config: Config, texts: Texts, scores_QN: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Language -> ``itself`` and ``translation`` -> place of that row among the rows of its language.

    ``control`` is the place of the translation for the *other* sentences, on average: a row that is loud, or long,
    stands high for every question.
    """
    of = {x: [n for n, own in enumerate(texts.language) if own == x] for x in config.all}
    found: dict[str, dict[str, list[float]]] = {
        x: {"itself": [], "translation": [], "control": []} for x in config.languages
    }
    for question, (language, own, other) in texts.pair.items():
        rows, row = of[language], of[language].index(other)
        strangers = [q for q, (own_language, _, _) in texts.pair.items() if own_language == language and q != question]
        found[language]["control"].append(float(np.mean([place(scores_QN[q, rows], row) for q in strangers])))
        for name, row, rows in (("itself", own, of[EN]), ("translation", other, of[language])):
            found[language][name].append(place(scores_QN[question, rows], rows.index(row)))
    return found


def carried(config: Config, texts: Texts, effects_QN: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """The paper's measure: mean effect of an English question's first English rows, in nats.

    On the question itself, on its translation, and (``other``) on the translation of another article.
    """
    english = [n for n, language in enumerate(texts.language) if language == EN]
    found: dict[str, dict[str, list[float]]] = {x: {"itself": [], "translation": [], "other": []} for x in config.all}
    for a in range(config.articles):
        own = effects_QN[texts.half[EN, a], english]
        first = [english[n] for n in np.argsort(-own, kind="stable")[: config.top]]
        for language in config.all:
            found[language]["itself"].append(float(own[np.argsort(-own)[: config.top]].mean()))
            for name, article in (("translation", a), ("other", (a + 1) % config.articles)):
                found[language][name].append(float(effects_QN[texts.half[language, article], first].mean()))
    return found


def run(config: Config, data: Path) -> dict[str, Any]:
    texts = read(config, data)
    reader = _language.trained_reader(texts.rows, config.shape)
    rows = [{"text": text} for text in texts.rows]
    study = _language.Study.of(reader, rows, [{"text": text} for text in texts.questions], damping=config.damping)
    effects = study.effects()
    scores = {
        "EK-FAC": effects,
        "EK-FAC, relative": study.relative(effects),
        "BM25": bm25_scores(texts.questions, texts.rows).astype(np.float64),
    }
    return {
        "rows": len(rows),
        "weights": sum(p.numel() for p in reader.model.parameters()),
        "loss": reader.mean_loss(rows),
        "articles": {name: article_places(config, texts, values) for name, values in scores.items()},
        "pairs": {name: pair_places(config, texts, values) for name, values in scores.items()},
        "carried": carried(config, texts, effects),
    }


# --- the page --------------------------------------------------------------------------------------------------------


def grouped(config: Config, places: dict[str, dict[str, list[float]]]) -> dict[str, np.ndarray]:
    """Same language and other language: one mean per article, over the languages."""
    same = np.mean([places[x][x] for x in config.all], axis=0)
    other = np.mean([places[x][y] for x in config.all for y in config.all if x != y], axis=0)
    return {"same language": same, "other language": other}


def against_chance(values: np.ndarray) -> str:
    found = mean_interval(values)
    if found.low > 0.5:
        return "above chance"
    return "below chance" if found.high < 0.5 else "not to be told from chance"


def paper_rows(config: Config, result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for language, each in result["carried"].items():
        own, translated, other = (np.array(each[k]) for k in ("itself", "translation", "other"))
        share, low, high = _language.ratio_of_means(translated, own)
        gap = mean_interval(translated - other)
        rows.append(
            [
                language,
                f"{share:.1%} [{low:.1%}, {high:.1%}]",
                f"{other.mean() / own.mean():.1%}",
                f"{gap.mean / own.mean():.1%} [{gap.low / own.mean():.1%}, {gap.high / own.mean():.1%}]",
            ]
        )
    return rows


def findings(config: Config, result: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The sentences, and what they rest on."""
    said, record = [], {}
    for name in result["articles"]:
        parts = {**grouped(config, result["articles"][name])}
        pooled = result["pairs"][name]
        parts["translation of a sentence"] = np.concatenate([pooled[x]["translation"] for x in config.languages])
        control = np.concatenate([pooled[x]["control"] for x in config.languages])
        lift = parts["translation of a sentence"] - control
        record[name] = {k: [*_three(v)] for k, v in parts.items()} | {"lift": [*_three(lift)]}
        said.append(
            f"- {name}: "
            + "; ".join(
                f"{k} {_language.interval(v)}" + (f", {against_chance(v)}" if k != "same language" else "")
                for k, v in parts.items()
            )
            + f"; the same rows for other sentences {control.mean():.3f}, so that {_language.interval(lift)} is owed "
            f"to the sentence ({against_chance(lift + 0.5)})."
        )
    carried_by = [
        float(np.mean(result["carried"][x]["translation"]) / np.mean(result["carried"][x]["itself"]))
        for x in config.languages
    ]
    record["carried"] = dict(zip(config.languages, carried_by, strict=True))
    own = float(np.mean(result["carried"][EN]["itself"]))
    content = {
        x: [v / own for v in _three(np.subtract(result["carried"][x]["translation"], result["carried"][x]["other"]))]
        for x in config.languages
    }
    clear = [x for x, (_, low, _) in content.items() if low > 0]
    record |= {"content": content, "clear": clear}
    said.append(
        f"- The paper's measure: what matters to the English question matters to its translation by up to "
        f"{max(carried_by):.1%} as much ({config.languages[int(np.argmax(carried_by))]}). What the same rows do to "
        "*another* article in that language is "
        + (
            f"clearly less for {', '.join(clear)}: some content crosses."
            if clear
            else "as much within its error for every language: nothing of it can be said to be owed to the content. "
            "That is the paper's finding for small models."
        )
    )
    ours, words = (grouped(config, result["articles"][n])["other language"].mean() for n in ("EK-FAC", "BM25"))
    lifts = record["EK-FAC"]["lift"][0], record["BM25"]["lift"][0]
    more = ours > words or lifts[0] > lifts[1]
    said.append(
        f"- Between languages, shared words alone place the same article at {words:.3f} (EK-FAC {ours:.3f}) and lift a "
        f"translation by {lifts[1]:.3f} (EK-FAC {lifts[0]:.3f}): "
        + ("in one of the two EK-FAC finds more than word overlap." if more else NO_MORE)
    )
    return said, record


def _three(values: np.ndarray) -> tuple[float, float, float]:
    found = mean_interval(values)
    return found.mean, found.low, found.high


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    said, found = findings(config, result)
    matrix = result["articles"]["EK-FAC"]
    rows = [[f"asked in {x}", *(f"{np.mean(matrix[x][y]):.2f}" for y in config.all)] for x in config.all]
    kinds = {"itself": "itself", "translation": "translation", "control": "for others"}
    pair_rows = [
        [language, *(f"{np.mean(result['pairs'][n][language][k]):.2f}" for n in result["pairs"] for k in kinds)]
        for language in config.languages
    ]
    names = [f"{n}: {k}" for n in result["pairs"] for k in kinds.values()]
    text = f"""# Across languages (C15)

{(__doc__ or "").split("tatoeba", 1)[1].strip()}

{chr(10).join(said)}

## The same article in another language

Place of the article's first half among the first halves of all articles in the language of the column (1 = first, 0.5 =
chance), for its second half as the question; EK-FAC, mean over {config.articles} articles.

{_page.table(["", *(f"rows in {y}" for y in config.all)], rows)}

## The translation of a sentence

Place of the sentence's own row among the English rows, of its translation's row among the rows of that language, and
of that same row for the other sentences; {config.asked} sentences each.

{_page.table(["translation", *names], pair_rows)}

## The paper's measure

Mean effect of the {config.top} English rows that matter most to an English question, on the question in other
languages, as a share of that on the English one; beside it their effect on *another* article in that language, and the
difference, which is what the content carries.

{_page.table(["language", "on the same article", "on another article", "difference"], paper_rows(config, result))}

{result["rows"]} rows, a model of {result["weights"]:,} weights, {result["loss"]:.2f} nats a token after
{config.shape.passes} passes. Different from the paper: a model {SMALLEST / result["weights"]:,.0f} times smaller
than its smallest, real sentences in place of questions about AI, and French and German beside Korean and Turkish.
Growth with size, the paper's main point, cannot be seen at one size.
"""
    x = list(range(len(config.all)))
    lines = [
        _page.Line(
            f"rows in {y}", x, [float(np.mean(matrix[asked][y])) for asked in config.all],
            [float(np.std(matrix[asked][y], ddof=1) / config.articles**0.5) for asked in config.all],
        )
        for y in config.all
    ]  # fmt: skip
    axes = _page.Axes("language of the question", "place of the same article", dict(enumerate(config.all)))
    record = {"about": about, "findings": found, "result": result}
    _page.write(folder, "cross_lingual", text=text, lines=lines, axes=axes, record=record)
    return record


def main() -> None:
    given = _page.arguments((__doc__ or "").splitlines()[0], pairs=Config.pairs)
    torch.set_num_threads(1)
    config = Config(pairs=given.pairs)
    started = time.perf_counter()
    result = run(config, given.data)
    record = page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print(json.dumps(record["findings"], indent=1))


if __name__ == "__main__":
    main()
