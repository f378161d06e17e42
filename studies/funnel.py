"""The funnel: how many of the exact top 10 are still there when only a few rows are scored exactly?

    python studies/funnel.py --data DATA          # DATA/wikitext2; --place: where `whence demo` keeps its model

Cheap filters choose rows, EK-FAC ranks what they let through; so what a funnel loses is the share of EK-FAC's own
first ten that a filter did not let through. Filters: BM25 and the TF-IDF of Grosse et al. 2023, mean last activations,
BM25 and activations in turn, an index of 2, 10 or 20 KB a row (whitened gradients, each row's strongest numbers), BM25
and the index in turn, and BM25 first with the index behind it. Questions: passages of WikiText-2 cut in two, asked of a
small model trained on other passages; and facts and habits of the Almanac, the example that comes along. At 5 % of the
rows the recall is also estimated as `whence trace --candidates` does it, from a sample of the rows that were not let
through.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _language
import _page
import filter_recall
import numpy as np
import torch

from whence.candidates.features import cosines, forward_features
from whence.candidates.funnel import fused, let_through, recall, sampled
from whence.candidates.lexical import bm25_scores, tfidf_scores
from whence.evaluate.statistics import mean_interval
from whence.gradients.source import LiveGradients
from whence.gradients.transforms import TransformedGradients, whitened
from whence.linalg.codes.base import Layout
from whence.linalg.codes.choose import choose
from whence.scores.score import Together, collect
from whence.store.index_shards import Encode

WIKI, FACTS, HABITS = filter_recall.WIKI, filter_recall.FACTS, filter_recall.HABITS
BAR, AT, INDEX = 0.95, 0.05, 10
STEPS = {"BM25, then the index": "BM25"}  # two filters, one behind the other


@dataclass(frozen=True)
class Config:
    rows: int = 800
    questions: int = 24
    words: int = 48
    top: int = 10
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    first: float = 0.3
    budgets: tuple[int, ...] = (2, 10, 20)
    audited: float = 0.1
    audits: int = 50
    shape: _language.Shape = field(default_factory=lambda: _language.Shape(passes=3, length=96))
    facts: int = 24
    habits: int = 12
    damping: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Scored:
    """Q x N: EK-FAC's scores, and those of the filters."""

    exact: np.ndarray
    filters: dict[str, np.ndarray]


def index_name(budget: int) -> str:
    return f"index, {budget} KB"


def indexed(study: _language.Study, asked: LiveGradients, budgets: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Scores from compressed whitened gradients: what ``whence ask`` computes."""
    sizes = study.train.layers.sizes
    source = TransformedGradients(study.train, (whitened(study.inverse, sizes),))
    layout = Layout(source.layers.sizes)
    whole = collect(asked).grads
    query_QD = layout.flat({name: study.inverse.layers[name].whiten(whole[name]).full() for name in sizes})
    columns = {id_: n for n, id_ in enumerate(study.train.ids)}
    visitors = {budget: Encode(choose(layout, budget * 1000), columns) for budget in budgets}
    source.visit(Together(list(visitors.values())))
    for budget, visitor in visitors.items():
        record = visitor.finished()
        scores = np.empty((len(query_QD), len(columns)))
        scores[:, record["row"].numpy()] = visitor.code.dot(record, query_QD).T.double().numpy()
        yield index_name(budget), scores


def scored(config: Config, reader: _language.Reader, texts: Sequence[str], asked: Sequence[_language.Fields]) -> Scored:
    """All rows exactly, and by every filter."""
    study = _language.Study.of(reader, [{"text": text} for text in texts], asked, damping=config.damping)
    source, said = reader.source(asked, "q"), [q["prompt"] + q["completion"] for q in asked]
    near, rows = forward_features(source), forward_features(study.train)
    filters = {
        "BM25": bm25_scores(said, texts),
        "TF-IDF": tfidf_scores(said, texts),
        "activations": cosines(near.vectors["activation"], rows.vectors["activation"]),
        **dict(indexed(study, source, config.budgets)),
    }
    filters["BM25 and activations"] = fused([filters["BM25"], filters["activations"]])
    filters["BM25 and the index"] = fused([filters["BM25"], filters[index_name(INDEX)]])
    return Scored(study.effects(), filters)


def passed(config: Config, of: Scored, name: str, count: int) -> np.ndarray:
    """Q x N: what a filter (or BM25 and then the index) lets through."""
    everyone = np.ones(of.exact.shape, dtype=bool)
    if name not in STEPS:
        return let_through(of.filters[name], everyone, count)
    first = max(count, round(config.first * of.exact.shape[1]))
    alive = let_through(of.filters[STEPS[name]], everyone, first)
    return let_through(of.filters[index_name(INDEX)], alive, count)


def measured(config: Config, of: Scored) -> dict[str, Any]:
    """Recall of the exact top by filter and share of the rows, per question and its interval over questions."""
    rows = of.exact.shape[1]
    ones, found = np.ones(rows), {}
    for name in (*of.filters, *STEPS):
        lines = []
        for share in config.shares:
            kept = passed(config, of, name, max(1, round(share * rows)))
            each = [recall(e[None], k[None], ones, top=config.top).value for e, k in zip(of.exact, kept, strict=True)]
            spread = mean_interval(np.array(each))
            lines.append({"share": share, "recall": spread.mean, "low": spread.low, "high": spread.high})
        found[name] = {"curve": lines, "estimated": estimated(config, of, name)}
    return {"rows": rows, "questions": len(of.exact), "filters": found}


def estimated(config: Config, of: Scored, name: str) -> dict[str, float]:
    """At ``AT`` of the rows: the truth, and estimates of it from samples of the other rows."""
    rows = of.exact.shape[1]
    kept = passed(config, of, name, max(1, round(AT * rows)))
    chosen = kept.any(0)
    others = np.flatnonzero(~chosen)
    truth = recall(of.exact, kept, np.ones(rows), top=config.top).value
    values, covered = [], []
    for seed in range(config.audits):
        drawn = sampled(others, max(1, round(config.audited * rows)), seed)
        weights = chosen.astype(float)
        weights[drawn] = len(others) / max(1, len(drawn))
        found = recall(np.where(weights > 0, of.exact, np.nan), kept, weights, top=config.top)
        values.append(found.value)
        covered.append(found.low <= truth <= found.high)
    means = {"mean": float(np.mean(values)), "covered": float(np.mean(covered)), "pooled": float(chosen.mean())}
    return {"truth": truth, **means}


def run(config: Config, data: Path, place: Path) -> dict[str, Any]:
    settings = filter_recall.Config(rows=config.rows, questions=config.questions, words=config.words, seed=config.seed)
    texts = filter_recall.passages(data, settings)
    rows, asked = texts[: config.rows], [filter_recall.halves(text) for text in texts[config.rows :]]
    reader = _language.trained_reader(rows, config.shape)
    found = {WIKI: measured(config, scored(config, reader, rows, asked))}
    world, reader = _language.almanac_reader(place)
    texts = [document.text for document in world.book.documents]
    kinds = {FACTS: ("fact", config.facts), HABITS: ("habit", config.habits)}
    chosen = [[q for q in world.asked if q.kind == kind][:count] for kind, count in kinds.values()]
    asked = [{"prompt": q.prompt, "completion": q.completion} for group in chosen for q in group]
    both, start = scored(config, reader, texts, asked), 0
    for name, group in zip(kinds, chosen, strict=True):
        part = slice(start, start + len(group))
        found[name] = measured(config, Scored(both.exact[part], {f: v[part] for f, v in both.filters.items()}))
        start += len(group)
    return found


def verdicts(config: Config, groups: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The bar, by group."""
    said, checks = [], {}
    at = config.shares.index(AT)
    for name, group in groups.items():
        values = {filter_: line["curve"][at] for filter_, line in group["filters"].items()}
        best = max(values, key=lambda f: values[f]["recall"])
        text = max(("BM25", "TF-IDF"), key=lambda f: values[f]["recall"])
        checks[name] = {"best": best, "recall": values[best]["recall"], "met": values[best]["recall"] >= BAR}
        v = values[best]
        said.append(
            f"- {name}: with {AT:.0%} of the rows scored exactly, {best} keeps {v['recall']:.3f} of the exact top "
            f"{config.top} (95 % interval over questions {v['low']:.3f} to {v['high']:.3f}; bar {BAR}: "
            f"{'**met**' if checks[name]['met'] else '**missed**'}); the better text filter alone ({text}) "
            f"{values[text]['recall']:.3f}."
        )
    return said, checks


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    said, checks = verdicts(config, result)
    header = ["filter", *(f"{100 * share:g} %" for share in config.shares), f"sampled at {AT:.0%}", "covered"]
    parts = []
    for name, group in result.items():
        rows = [
            [
                filter_,
                *(f"{point['recall']:.2f}" for point in line["curve"]),
                f"{line['estimated']['mean']:.2f}",
                f"{line['estimated']['covered']:.0%}",
            ]
            for filter_, line in group["filters"].items()
        ]
        title = f"### {name}: {group['questions']} questions, {group['rows']} rows"
        parts.append(title + "\n\n" + _page.table(header, rows))
    text = f"""# The funnel: few rows scored exactly

{(__doc__ or "").split("its model", 1)[1].strip()}

{chr(10).join(said)}

## Recall of the exact top {config.top} by the share of the rows scored exactly, per question

{(chr(10) * 2).join(parts)}

`sampled at {AT:.0%}`: mean of {config.audits} estimates from samples of {config.audited:.0%} of the rows among those
that no question's filter let through; `covered`: how many of their 95 % intervals hold the true recall (too few where
the lost rows are few and the same for many questions: a sample of rows seldom meets one). In the last line BM25 lets
{config.first:.0%} of the rows through to the index of {INDEX} KB. Words find rows that state what was asked, and miss
what acts without sharing words; whitened gradients miss little, and the less the more bytes a row they get.
"""
    names = ("BM25", "activations", *(index_name(b) for b in config.budgets))
    lines = [
        _page.Line(f"{f}, {name.split(',')[-1].strip()}", [100 * s for s in config.shares], [p["recall"] for p in
                   result[name]["filters"][f]["curve"]])
        for name in (WIKI, FACTS)
        for f in names[:: 1 if name == WIKI else 2]
    ]  # fmt: skip
    record = {"about": about, "checks": checks, "result": result}
    axes = ("per cent of the rows scored exactly", f"recall of the exact top {config.top}")
    _page.write(folder, "funnel", text=text, lines=lines, axes=axes, record=record)
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
