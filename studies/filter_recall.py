"""C18: how much of the exact ranking does a text filter let through? (the candidates of Grosse et al. 2023)

    python studies/filter_recall.py --data DATA          # DATA/wikitext2; --place: where `whence demo` keeps its model

The paper scores only the 10,000 rows that share most with the question by TF-IDF, and does not say what is lost. Here
every row is scored, so the loss can be measured: of the k rows that EK-FAC puts first, the share that a filter keeps
when it lets through a share of the rows. Filters: the paper's TF-IDF, BM25, the similarity of mean last activations,
the plain gradient dot product, and chance. Questions: passages of WikiText-2 cut in two, asked of a small model trained
on other passages; and the facts and habits of the Almanac.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _language
import _page
import numpy as np
import torch

from whence.candidates.lexical import bm25_scores, tfidf_scores
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.evaluate.baselines import model_baselines, random_scores
from whence.linalg.damping import relative
from whence.scores.score import pairwise, prepare_queries

FILTERS = {"tfidf": "TF-IDF", "bm25": "BM25", "activation": "activations", "dot": "gradient dot", "random": "chance"}
WIKI, FACTS, HABITS = "WikiText-2", "Almanac, facts", "Almanac, habits"


@dataclass(frozen=True)
class Config:
    rows: int = 2000
    questions: int = 32
    words: int = 48
    top: int = 50
    few: int = 10
    shares: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    shape: _language.Shape = field(default_factory=lambda: _language.Shape(passes=3, length=96))
    facts: int = 32
    habits: int = 16
    damping: float = 0.1
    seed: int = 0


def passages(folder: Path, config: Config) -> list[str]:
    """Pieces of ``words`` words from the training text, headings left out, in a seeded order."""
    with gzip.open(folder / "train.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read(40 * config.words * (config.rows + config.questions) + 10_000)
    found = []
    for paragraph in text.splitlines():
        words = paragraph.split()
        if paragraph.strip().startswith("="):
            continue
        found += [" ".join(words[n : n + config.words]) for n in range(0, len(words) - config.words + 1, config.words)]
    order = np.random.default_rng(config.seed).permutation(len(found))
    return [found[n] for n in order[: config.rows + config.questions]]


def halves(text: str) -> dict[str, str]:
    """A passage as a question: its first half, and how it goes on."""
    words = text.split()
    middle = len(words) // 2
    return {"prompt": " ".join(words[:middle]), "completion": " " + " ".join(words[middle:])}


@dataclass(frozen=True)
class Scored:
    """Q x N scores of EK-FAC and of the filters."""

    exact: np.ndarray
    filters: dict[str, np.ndarray]


def scored(config: Config, reader: _language.Reader, texts: Sequence[str], asked: Sequence[_language.Fields]) -> Scored:
    study = _language.Study.of(reader, [{"text": text} for text in texts], asked, damping=config.damping)
    source, said = reader.source(asked, "q"), [q["prompt"] + q["completion"] for q in asked]
    plain = get_method("identity")
    unscaled = plain.operator(fit(study.train, plain), Problem(study.train)).power(-1, relative(config.damping))
    filters = {
        "tfidf": tfidf_scores(said, texts),
        "bm25": bm25_scores(said, texts),
        **model_baselines(study.train, source, ("activation",)),
        "dot": pairwise(study.train, prepare_queries(source, unscaled)),
        "random": random_scores(len(asked), len(texts), seed=config.seed),
    }
    return Scored(study.effects(), filters)


def recall(exact_QN: np.ndarray, filter_QN: np.ndarray, *, top: int, kept: int) -> np.ndarray:
    """Q shares of the ``top`` strongest rows that are among the ``kept`` rows a filter scores highest.

    Rows that a filter cannot tell apart (no shared word) come by chance: each counts by its odds of being kept.
    """
    found = []
    for exact, passed in zip(exact_QN, filter_QN.astype(np.float64), strict=True):
        wanted = np.argsort(-exact, kind="stable")[:top]
        limit = np.sort(passed)[::-1][kept - 1]
        above, level = passed > limit, passed == limit
        odds = above + level * (kept - above.sum()) / level.sum()
        found.append(odds[wanted].mean())
    return np.array(found)


def measured(config: Config, of: Scored) -> dict[str, Any]:
    """Mean recall of every filter at every share, for the ``top`` and for the ``few`` strongest."""
    rows = of.exact.shape[1]
    kept = [max(1, round(share * rows)) for share in config.shares]
    return {
        "rows": rows,
        "questions": len(of.exact),
        "recall": {
            str(top): {
                name: [float(recall(of.exact, values, top=top, kept=k).mean()) for k in kept]
                for name, values in of.filters.items()
            }
            for top in (config.top, config.few)
        },
    }


def run(config: Config, data: Path, place: Path) -> dict[str, Any]:
    texts = passages(data, config)
    rows, asked = texts[: config.rows], [halves(text) for text in texts[config.rows :]]
    reader = _language.trained_reader(rows, config.shape)
    found = {WIKI: measured(config, scored(config, reader, rows, asked))}
    loss = reader.mean_loss([{"text": text} for text in rows])
    world, reader = _language.almanac_reader(place)
    texts = [document.text for document in world.book.documents]
    for name, kind, count in ((FACTS, "fact", config.facts), (HABITS, "habit", config.habits)):
        chosen = [q for q in world.asked if q.kind == kind][:count]
        asked = [{"prompt": q.prompt, "completion": q.completion} for q in chosen]
        found[name] = measured(config, scored(config, reader, texts, asked))
    return {"loss": loss, "groups": found}


def remarks(config: Config, groups: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What a filter of a fifth and of a twentieth of the rows loses; whether the expectation (< 100 %) came out."""
    said, checks = [], {}
    fifth, little = config.shares.index(0.2), config.shares.index(0.05)
    for name, group in groups.items():
        mean = group["recall"][str(config.top)]
        lexical = max(("tfidf", "bm25"), key=lambda f: mean[f][fifth])
        best = max(mean, key=lambda f: mean[f][little])
        checks[name] = {"loses_at_a_fifth": mean[lexical][fifth] < 1.0, "lexical_at_a_fifth": mean[lexical][fifth]}
        loses = "**as expected, it loses rows**" if mean[lexical][fifth] < 1.0 else "**it loses none, not as expected**"
        said.append(
            f"- {name}: with a fifth of the rows let through, the better text filter ({FILTERS[lexical]}) keeps "
            f"{mean[lexical][fifth]:.0%} of EK-FAC's first {config.top}, chance {mean['random'][fifth]:.0%} ({loses}); "
            f"with a twentieth {mean[lexical][little]:.0%}. At a twentieth the best filter is {FILTERS[best]} "
            f"({mean[best][little]:.0%})."
        )
    return said, checks


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    said, checks = remarks(config, result["groups"])
    header = ["filter", *(f"{100 * share:g} %" for share in config.shares)]
    parts = []
    for name, group in result["groups"].items():
        for top in (config.top, config.few):
            rows = [[FILTERS[f], *(f"{v:.2f}" for v in line)] for f, line in group["recall"][str(top)].items()]
            most = [min(1.0, max(1, round(share * group["rows"])) / top) for share in config.shares]
            rows.insert(0, ["(the most possible)", *(f"{v:.2f}" for v in most)])
            parts.append(
                f"### {name}: {group['questions']} questions, {group['rows']} rows, EK-FAC's first {top}\n\n"
                + _page.table(header, rows)
            )
    text = f"""# What a text filter loses (C18)

{(__doc__ or "").split("its model", 1)[1].strip()}

{chr(10).join(said)}

## Recall by the share of the rows let through

{(chr(10) * 2).join(parts)}

Rows that a filter scores the same count by their odds. WikiText-2: passages of {config.words} words, a model of two
layers trained on them for {config.shape.passes} passes ({result["loss"]:.2f} nats a token). Different from the paper,
which has no such table: its filter keeps 10,000 of millions of rows (less than one in a hundred), and its models are
large enough to be influenced by more than shared words.
"""
    lines = [
        _page.Line(f"{FILTERS[f]}, {name.split(',')[-1].strip()}", [100 * s for s in config.shares], line)
        for name in (WIKI, FACTS)
        for f, line in result["groups"][name]["recall"][str(config.top)].items()
        if f in ("tfidf", "bm25", "dot")
    ]
    record = {"about": about, "checks": checks, "result": result}
    axes = ("per cent of the rows let through", f"recall of the first {config.top}")
    _page.write(folder, "filter_recall", text=text, lines=lines, axes=axes, record=record)
    return record


def main() -> None:
    given = _page.arguments((__doc__ or "").splitlines()[0], place=".demo", rows=Config.rows)
    torch.set_num_threads(1)
    config = Config(rows=given.rows)
    started = time.perf_counter()
    result = run(config, given.data / "wikitext2", Path(given.place))
    record = page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print(json.dumps(record["checks"], indent=1))


if __name__ == "__main__":
    main()
