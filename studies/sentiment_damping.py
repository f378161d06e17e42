"""Damping and flipped labels on a sentiment classifier (the experiments of pyDVL's influence notebook, here in full).

    python studies/sentiment_damping.py --data DATA        # DATA/rt_polarity

A small encoder trained on film review sentences is fine-tuned on further ones, a fifth of them with the wrong label.
First: how do the scores of one EK-FAC fit change with the damping, over all layers and layer by layer (rank and linear
correlation of neighbouring values)? Then: what sign has the influence of rows with right and with flipped labels on
clean questions of the same and of the other class, at every damping?
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import _page
import numpy as np
import torch
from _lora import Config as Sentences
from _lora import Corpus, accuracy, corpus, pretrained, train, wrong_labels

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.evaluate.damping import DAMPINGS, PLAIN, STABLE, DampingStudy, Sweep, study, sweep
from whence.evaluate.statistics import auroc
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.scores.score import collect
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches


@dataclass(frozen=True)
class Config:
    rows: int = 600
    questions: int = 60
    flipped: float = 0.2
    seeds: int = 2
    epochs: int = 5
    rate: float = 1e-3
    method: str = "ekfac"


GROUPS = ("same class", "same class, flipped", "other class", "other class, flipped")  # class of the sentence


@dataclass(frozen=True)
class Found:
    """One seed: the sweep's study, and per damping the share of rows with positive mean influence, by group."""

    study: DampingStudy
    shares: list[dict[str, float]]
    auc: list[float]
    fits: dict[str, float]


def examine(config: Config, sentences: Sentences, data: Corpus, seed: int) -> Found:
    """Fine-tune with flipped labels, fit once, sweep the damping."""
    rows, wrong = wrong_labels(sentences, data.rows, seed)
    torch.manual_seed(seed)
    model = pretrained(sentences, data)
    train(model, data.task, rows, epochs=config.epochs, rate=config.rate, batch=sentences.batch)
    asked = [e for e in data.asked if _right(model, data, e)][: config.questions]
    layers = find_layers(model, ("*encoder*",))

    def source(examples: list[Example]) -> LiveGradients:
        plan = plan_batches([e.length for e in examples], token_budget=4096)
        return LiveGradients(model, data.task, examples, plan, layers)

    queries, kept = collect(source(asked)), collect(source(rows), "true")
    method = get_method(config.method)
    factors = fit(source(rows), method, FitOptions(rows="all", seed=seed))
    operator = method.operator(factors, Problem(source(rows), "sampled", seed))
    swept = sweep(operator, DAMPINGS, queries=(queries.ids, queries.grads), rows=(kept.ids, kept.grads))
    shares, auc = signs(swept, rows, asked, wrong)
    fits = {"validation": accuracy(model, data.task, data.asked), "given labels": accuracy(model, data.task, rows)}
    return Found(study(swept), shares, auc, fits)


def _right(model: torch.nn.Module, data: Corpus, example: Example) -> bool:
    return accuracy(model, data.task, [example]) == 1.0


def signs(
    swept: Sweep, rows: list[Example], asked: list[Example], wrong: np.ndarray
) -> tuple[list[dict[str, float]], list[float]]:
    """Per damping: share of (row, question) pairs with positive influence by group, and the AUC for flipped rows of
    minus the mean influence on all questions."""
    at = {e.id: n for n, e in enumerate(rows)}
    order = [at[id_] for id_ in swept.train_ids]
    given_N = np.array([int(rows[n].labels) for n in order])
    wrong_N = wrong[order]
    label = {e.id: int(e.labels) for e in asked}
    same_QN = np.array([label[id_] for id_ in swept.query_ids])[:, None] == given_N[None, :]
    right_N = ~wrong_N
    # a flipped row that bears the question's label is a sentence of the other class
    members = (same_QN & right_N, ~same_QN & wrong_N, ~same_QN & right_N, same_QN & wrong_N)
    shares, auc = [], []
    for scores_QN in swept.total_DQN():
        shares.append({g: float((scores_QN[m] > 0).mean()) for g, m in zip(GROUPS, members, strict=True)})
        auc.append(auroc(-scores_QN.mean(0), wrong_N))
    return shares, auc


def run(config: Config, folder: Path) -> list[Found]:
    """Every seed, other flips and another fine-tuning each."""
    sentences = Sentences(rows=config.rows, flipped=config.flipped)
    data = corpus(sentences, folder)
    return [examine(config, sentences, data, seed) for seed in range(config.seeds)]


def page(config: Config, found: list[Found], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    names, values = found[0].study.dampings, found[0].study.values
    pairs = [(found[0].study.neighbours[n], n) for n in range(len(names) - 1)]
    mean = {
        key: [float(np.mean([getattr(f.study.neighbours[n], key) for f in found])) for _, n in pairs]
        for key in ("spearman", "pearson")
    }
    layers = [np.mean([f.study.neighbours[n].layers_spearman for f in found], axis=0) for _, n in pairs]
    plain = [float(np.mean([f.study.to_plain[d] for f in found])) for d in range(len(names))]
    shares = {g: [float(np.mean([f.shares[d][g] for f in found])) for d in range(len(names))] for g in GROUPS}
    auc = [[f.auc[d] for f in found] for d in range(len(names))]
    stable = [names[n] for n in range(len(names) - 1) if mean["spearman"][n] >= STABLE and plain[n] < PLAIN]
    record = {
        "dampings": names,
        "neighbours": mean,
        "layers_spearman": [each.tolist() for each in layers],
        "layer_names": found[0].study.layers,
        "to_plain": plain,
        "positive_share": shares,
        "auc": auc,
        "accuracy": [f.fits for f in found],
        "recommended": [vars(f.study.recommended) for f in found],
        "about": about,
    }
    text = "\n\n".join(
        (
            "# Damping and flipped labels on a sentiment classifier",
            _setting(config, found),
            "## How much the scores depend on the damping",
            _stability(names, mean, layers, plain, stable),
            "## What sign the influence has",
            _signs(names, shares, auc),
        )
    )
    lines = [
        _page.Line("rank correlation with the next value", values[:-1], mean["spearman"]),
        _page.Line("the least stable layer", values[:-1], [float(each.min()) for each in layers]),
        _page.Line("with the gradient dot product", values, plain),
        _page.Line("AUC, flipped labels", values, [float(np.mean(each)) for each in auc]),
    ]
    axes = ("damping x mean eigenvalue", "correlation, AUC")
    _page.write(folder, "sentiment_damping", text=text, lines=lines, axes=axes, record=record)
    return record


def _setting(config: Config, found: list[Found]) -> str:
    right = np.mean([f.fits["validation"] for f in found])
    given = np.mean([f.fits["given labels"] for f in found])
    return (
        f"A two-block encoder of width 64 is fine-tuned on {config.rows} film review sentences, {config.flipped:.0%} "
        f"of them with the wrong label ({given:.0%} of the given labels are learned, {right:.0%} of the validation "
        f"rows are right); {config.questions} validation sentences that it answers rightly are the questions. "
        f"`{config.method}`, sampled labels, means over {config.seeds} seeds."
    )


def _stability(
    names: tuple[str, ...],
    mean: dict[str, list[float]],
    layers: list[np.ndarray],
    plain: list[float],
    stable: list[str],
) -> str:
    rows = [
        (
            name,
            *(f"{mean[key][n]:.3f}" if n < len(names) - 1 else "" for key in ("spearman", "pearson")),
            f"{layers[n].min():.3f}" if n < len(names) - 1 else "",
            f"{plain[n]:.3f}",
        )
        for n, name in enumerate(names)
    ]
    head = (
        "damping",
        "Spearman to the next",
        "Pearson to the next",
        "least stable layer",
        "to the gradient dot product",
    )
    said = (
        f"Neighbouring values (half a decade apart) agree to {STABLE} in rank, while curvature still counts (below "
        f"{PLAIN} to the gradient dot product), from {stable[0]} to {stable[-1]}."
        if stable
        else "No value has stable neighbours and differs from the gradient dot product."
    )
    rising = all(b >= a for a, b in pairwise(plain))
    more = "rises at every step" if rising else "does not rise at every step"
    return f"{said} The correlation with the gradient dot product {more} with the damping.\n\n{_page.table(head, rows)}"


def _signs(names: tuple[str, ...], shares: dict[str, list[float]], auc: list[list[float]]) -> str:
    middle = names.index("relative:0.1")
    at = {g: shares[g][middle] for g in GROUPS}
    splits = at["same class"] > 0.5 > at["other class"]
    turned = at["same class, flipped"] < 0.5 < at["other class, flipped"]
    head = ("damping", *GROUPS, "AUC of minus the mean influence")
    rows = [
        (name, *(f"{shares[g][n]:.0%}" for g in GROUPS), " ".join(f"{value:.3f}" for value in auc[n]))
        for n, name in enumerate(names)
    ]
    return (
        "Share of (row, question) pairs with positive influence (a proponent: training more on the row lowers the "
        "question's loss), by the class that the row's *sentence* has, whatever its label says. "
        f"At {names[middle]}: rows with a right label "
        + ("help questions of their class and harm the others" if splits else "do **not** split by class as expected")
        + f" ({at['same class']:.0%} against {at['other class']:.0%} positive); a flipped label "
        + ("turns the sign of both" if turned else "does **not** turn the sign of both")
        + f" ({at['same class, flipped']:.0%} and {at['other class, flipped']:.0%}). The last column: how well the "
        f"rows that harm the questions are the flipped ones, per seed.\n\n{_page.table(head, rows)}"
    )


def main() -> None:
    given = _page.arguments(__doc__ or "", rows=Config.rows, seeds=Config.seeds)
    torch.set_num_threads(1)
    config = replace(Config(), rows=given.rows, seeds=given.seeds)
    started = time.perf_counter()
    found = run(config, given.data / "rt_polarity")
    record = page(config, found, _page.circumstances(config, time.perf_counter() - started), given.docs)
    middle = record["dampings"].index("relative:0.1")
    print({g: round(v[middle], 3) for g, v in record["positive_share"].items()}, "AUC", record["auc"][middle])


if __name__ == "__main__":
    main()
