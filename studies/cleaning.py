"""Does a classifier know more after its labels were cleaned by influence? Against loss, word overlap and chance.

    python studies/cleaning.py --data DATA        # DATA/rt_polarity

A fifth of the labels is wrong. Everybody may point at as many rows as there are wrong labels; these are checked by
somebody who knows the right label, or given the label that is likelier to a model that has not seen the row, or left
out; a new classifier is trained on the result and judged on rows whose labels are right.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _page
import numpy as np
import torch

from whence.candidates.lexical import bm25_scores
from whence.cleaning import Cleaning, clean
from whence.demo.evidence import labelled
from whence.evaluate.bag import BagSettings, WordTokenizer, train_bag
from whence.evaluate.statistics import paired_interval
from whence.judging import Terms
from whence.select.amounts import Amount
from whence.tasks.classification import SequenceClassification
from whence.tasks.rows import Row

WAYS = ("influence", "loss", "bm25", "random", "oracle")
DONE = ("checked", "relabelled", "left out")


@dataclass(frozen=True)
class Config:
    rows: int = 1200
    test: int = 600
    flipped: float = 0.2
    seeds: int = 3
    folds: int = 4
    epochs: int = 4
    words: int = 1000
    neighbours: int = 10
    damping: str = "relative:0.1"


@dataclass(frozen=True)
class Trial:
    """One set of rows, a part of them with a wrong label."""

    texts: tuple[str, ...]
    given: np.ndarray
    right: np.ndarray
    test_texts: tuple[str, ...]
    test_labels: np.ndarray

    @property
    def classes(self) -> int:
        return int(max(self.right.max(), self.test_labels.max())) + 1


def reviews(config: Config, data: Path, seed: int) -> Trial:
    """rt_polarity: sentences, two labels."""
    known = gzip.decompress((data / "rt_polarity" / "train.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in known.splitlines()]
    asked = [json.loads(line) for line in (data / "rt_polarity" / "test.jsonl").read_text("utf-8").splitlines()]
    some = [rows[n] for n in np.random.default_rng(seed).permutation(len(rows))[: config.rows]]
    return flipped(
        config, [(r["sentence"], r["label"]) for r in some], [(r["sentence"], r["label"]) for r in asked], seed
    )


def volumes(config: Config, data: Path, seed: int) -> Trial:
    """The Almanac: which volume a document stands in."""
    rows = [row for row in labelled(0) if row["label"] in ("lives", "manners", "gazetteer", "notes")]
    names = sorted({row["label"] for row in rows})
    pairs = [(row["text"], names.index(row["label"])) for row in rows]
    mixed = [pairs[n] for n in np.random.default_rng(seed).permutation(len(pairs))]
    return flipped(config, mixed[: config.rows // 3], mixed[config.rows // 3 :], seed)


def flipped(config: Config, rows: Sequence[tuple[str, int]], asked: Sequence[tuple[str, int]], seed: int) -> Trial:
    """Another label for a part of the rows."""
    rng, right = np.random.default_rng([seed, 1]), np.array([label for _, label in rows])
    classes, given = int(right.max()) + 1, right.copy()
    wrong = rng.permutation(len(rows))[: round(config.flipped * len(rows))]
    given[wrong] = (right[wrong] + rng.integers(1, classes, len(wrong))) % classes
    asked = asked[: config.test]
    return Trial(
        tuple(text for text, _ in rows), given, right, tuple(text for text, _ in asked), np.array([y for _, y in asked])
    )


def judged(config: Config, trial: Trial, seed: int) -> dict[str, Any]:
    """Who points at what, and what the classifier trained afterwards knows."""
    wrong = trial.given != trial.right
    count = int(wrong.sum())
    pointed, merits = suspicions(config, trial, seed)
    likelier = merits.argmax(0)
    found: dict[str, Any] = {"pointed right": {}, "loss": {}, "accuracy": {}}
    for way in WAYS:
        chosen = np.zeros(len(wrong), dtype=bool)
        chosen[np.argsort(-(wrong * 1.0 if way == "oracle" else pointed[way]), kind="stable")[:count]] = True
        found["pointed right"][way] = float(wrong[chosen].mean())
        labels = {
            "checked": np.where(chosen, trial.right, trial.given),
            "relabelled": np.where(chosen, trial.right if way == "oracle" else likelier, trial.given),
            "left out": trial.given,
        }
        for done in DONE:
            kept = ~chosen if done == "left out" else np.ones(len(wrong), dtype=bool)
            losses, right = knows(config, trial, labels[done], kept, seed=seed)
            found["loss"][f"{way}, {done}"], found["accuracy"][f"{way}, {done}"] = losses, right
    losses, right = knows(config, trial, trial.given, np.ones(len(wrong), dtype=bool), seed=seed)
    found["loss"]["nothing done"], found["accuracy"]["nothing done"] = losses, right
    return found


def suspicions(config: Config, trial: Trial, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """N suspicions of everybody, and C x N log-probabilities of labels by models that have not seen the row."""
    rows = [
        {"id": f"{n}", "text": t, "label": str(y)}
        for n, (t, y) in enumerate(zip(trial.texts, trial.given, strict=True))
    ]
    settings = BagSettings(epochs=config.epochs, seed=seed)
    how = Cleaning(Amount(share=1.0), config.folds, 0, Terms("ekfac", config.damping, seed), settings)
    cleaned = clean(data=rows, how=how)
    influence = {suspect.id: suspect.suspicion for suspect in cleaned.suspects}
    merits = unseen_merits(config, trial, seed)
    own = merits[trial.given, np.arange(len(rows))]
    found = {
        "influence": np.array([influence[row["id"]] for row in rows]),
        "loss": -own,
        "bm25": disagreement(trial, config.neighbours),
        "random": np.random.default_rng([seed, 2]).random(len(rows)),
    }
    return found, merits


def unseen_merits(config: Config, trial: Trial, seed: int) -> np.ndarray:
    """Log-probabilities from classifiers trained on the other folds."""
    fold = np.random.default_rng([seed, 3]).permutation(len(trial.texts)) % config.folds
    found = np.empty((trial.classes, len(trial.texts)))
    for one in range(config.folds):
        inside, outside = np.flatnonzero(fold != one), np.flatnonzero(fold == one)
        model, task = trained(config, trial, trial.given, inside, seed=seed)
        found[:, outside] = logs(model, task, [trial.texts[n] for n in outside]).T
    return found


def trained(config: Config, trial: Trial, labels: np.ndarray, places: np.ndarray, *, seed: int) -> tuple[Any, Any]:
    """A classifier over word counts."""
    tokenizer = WordTokenizer.of([trial.texts[n] for n in places], most=config.words)
    task = SequenceClassification(tokenizer, {str(n): n for n in range(trial.classes)})
    rows = [task.encode(Row(f"{n}", {"text": trial.texts[n], "label": str(labels[n])})) for n in places]
    settings = BagSettings(epochs=config.epochs, seed=seed)
    return train_bag(task, rows, sizes=(tokenizer.size, trial.classes), settings=settings), task


def logs(model: Any, task: Any, texts: Sequence[str]) -> np.ndarray:
    """Rows x classes log-probabilities."""
    rows = [task.encode(Row(f"{n}", {"text": text, "label": "0"})) for n, text in enumerate(texts)]
    with torch.no_grad():
        return torch.log_softmax(task.outputs(model, task.collate(rows)).double(), 1).numpy()


def disagreement(trial: Trial, count: int) -> np.ndarray:
    """Share of another label among the rows whose words are most alike."""
    scores = bm25_scores(trial.texts, trial.texts)
    np.fill_diagonal(scores, -1)
    near = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return (trial.given[near] != trial.given[:, None]).mean(1)


def knows(
    config: Config, trial: Trial, labels: np.ndarray, kept: np.ndarray, *, seed: int
) -> tuple[list[float], float]:
    """Test losses (nats) and accuracy after training on these rows and labels."""
    model, task = trained(config, trial, labels, np.flatnonzero(kept), seed=seed + 100)
    found = logs(model, task, trial.test_texts)
    losses = -found[np.arange(len(found)), trial.test_labels]
    return losses.tolist(), float((found.argmax(1) == trial.test_labels).mean())


SETS = {"rt_polarity": reviews, "the Almanac's volumes": volumes}


def run(config: Config, data: Path) -> dict[str, list[dict[str, Any]]]:
    """Every set, every seed (of rows, flips and training)."""
    return {
        name: [judged(config, make(config, data, s), s) for s in range(config.seeds)] for name, make in SETS.items()
    }


RIVALS = ("random", "bm25", "loss")


def told_of(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one set, all that its section is written from."""
    names = list(trials[0]["accuracy"])
    told = {
        "accuracy": {n: float(np.mean([t["accuracy"][n] for t in trials])) for n in names},
        "loss": {n: float(np.mean([np.mean(t["loss"][n]) for t in trials])) for n in names},
        "pointed right": {w: float(np.mean([t["pointed right"][w] for t in trials])) for w in WAYS},
        "accuracy per seed": {n: [t["accuracy"][n] for t in trials] for n in names},
        "gains": {},
    }
    for done in DONE:
        for rival in RIVALS:
            means = [np.array([np.mean(t["loss"][f"{w}, {done}"]) for t in trials]) for w in (rival, "influence")]
            found = paired_interval(*means)
            key = f"{done}: influence over {rival}"
            told["gains"][key] = {"mean": found.mean, "low": found.low, "high": found.high}
    return told


def accuracy_gain(told: Mapping[str, Any], name: str, other: str) -> Any:
    """Test accuracy that one way has more than another: mean and interval over seeds."""
    return paired_interval(*(np.array(told["accuracy per seed"][n]) for n in (name, other)))


def page(config: Config, result: Mapping[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    record = {"about": about, "sets": {name: told_of(trials) for name, trials in result.items()}}
    return write_page(config, record, folder)


def write_page(config: Config, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The page of a record: nothing but the record is needed to write it again."""
    blocks = [section(name, told) for name, told in record["sets"].items()]
    lines = [
        _page.Line(name, range(len(WAYS)), [told["accuracy"][f"{way}, checked"] for way in WAYS])
        for name, told in record["sets"].items()
    ]
    text = (
        "# Cleaning labels: does a classifier trained afterwards know more?\n\n"
        f"{100 * config.flipped:g} % of the labels are wrong. Everybody points at as many rows as there are wrong "
        "labels: `influence` is what `whence clean` puts first (self-influence by models that have not seen the row), "
        "`loss` the loss by such models, `bm25` the share of other labels among the rows whose words are most alike, "
        "`oracle` the truth. The rows pointed at are checked by somebody who knows the right labels, or get the label "
        "that is likelier to a model that has not seen them, or are left out. Classifiers over word counts, "
        f"{config.seeds} seeds of rows, flips and training; gains are test accuracy with 95 % intervals over seeds, "
        "positive = better; what it does to the test loss is said below each table.\n\n"
        + "\n\n".join(blocks)
        + f"\n\n{WHY}"
    )
    places = {float(n): way for n, way in enumerate(WAYS)}
    axes = _page.Axes("checked by", "test accuracy", places)
    _page.write(folder, "cleaning", text=text, lines=lines, axes=axes, record=record)
    return record


WHY = (
    "Why influence does not beat everybody. For a classifier the self-influence of a row that the model has not seen, "
    "over what it would be under the other labels, is close to a function of the probability of the given label, so it "
    "points where the loss points. BM25 sees the same words as a classifier over word counts. Leaving rows out, or "
    "giving them the likelier label, gains less than checking them as long as most rows pointed at are right "
    "(sentences). Check the list, do not apply it blindly. On the sentences accuracy and loss part ways: correcting "
    "only what surprises the model raises accuracy and the test loss with it, by whomever it is pointed at; we read "
    "that as a model that becomes too sure, being right six times in ten."
)


def verdict(gain: Any) -> str:
    """In a word."""
    return "beats" if gain.low > 0 else "loses to" if gain.high < 0 else "cannot be told from"


def section(name: str, told: Mapping[str, Any]) -> str:
    """A table and what it shows."""
    rows = []
    for n in sorted(told["accuracy"], key=lambda n: -told["accuracy"][n]):
        way, _, done = n.partition(", ")
        others = [f"{rival}, {done}" for rival in RIVALS]
        gains = ["–" if not done or n == other else str(accuracy_gain(told, n, other)) for other in others]
        share = f"{100 * told['pointed right'][way]:.0f}%" if way in told["pointed right"] else "–"
        rows.append((n, f"{told['accuracy'][n]:.3f}", f"{told['loss'][n]:.3f}", share, *gains))
    header = ("done", "test accuracy", "test loss", "wrong among those pointed at", *(f"gain over {r}" for r in RIVALS))
    said = []
    for done in DONE:
        for rival in RIVALS:
            gain = accuracy_gain(told, f"influence, {done}", f"{rival}, {done}")
            said.append(f"{done}, influence {verdict(gain)} {rival} ({gain})")
    nats = "; ".join(f"{key} {g['mean']:.3f} [{g['low']:.3f}, {g['high']:.3f}]" for key, g in told["gains"].items())
    return (
        f"## {name}\n\n{_page.table(header, rows)}\n\nIn accuracy: {'; '.join(said)}.\n\n"
        f"In nats a test row (positive = lower loss): {nats}."
    )


def main() -> None:
    args = _page.arguments(__doc__ or "", seeds=Config.seeds)
    torch.set_num_threads(1)
    config, began = replace(Config(), seeds=args.seeds), time.perf_counter()
    result = run(config, args.data)
    page(config, result, _page.circumstances(config, time.perf_counter() - began), args.docs)


if __name__ == "__main__":
    main()
