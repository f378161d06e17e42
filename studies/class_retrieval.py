"""C6, second half: are rows of the same template put first? DataInf on LoRA, ten templates, as in its paper.

    python studies/class_retrieval.py --data DATA        # DATA/stories260K

A small story model learns, by LoRA on its query and value maps, ten ways to answer a sentence: 90 rows each. For each
of 10 further rows of every template, the AUC of its signed scores separates rows of its own template from all others.
Twice: with prompts that do not say what is asked for, so that only the answer shows the template, and with prompts that
name it, as published.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import _page
import _retrieval
import _templates
import numpy as np
import torch
from _templates import Config

from whence.candidates.lexical import bm25_scores
from whence.evaluate.statistics import mean_interval
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches

BAR = 0.95
WORDS = "bm25"
NAMES = {**_retrieval.NAMES, WORDS: "shared words (BM25)"}
SETTINGS = {"unnamed": "Only the answer shows the template", "named": "The prompt names it too"}


def measure(config: Config, folder: Path, *, setting: str, seed: int) -> dict[str, Any]:
    """Contender -> AUC and recall of every question, and the loss the model was trained to."""
    model, task = _templates.base(folder)
    train, test, classes = _templates.rows(config, task, seed=seed, named=setting == "named")
    model, loss = _templates.adapted(config, model, task, train, seed=seed)
    layers = find_layers(model)

    def source(part: list[Example]) -> LiveGradients:
        return LiveGradients(model, task, part, plan_batches([e.length for e in part], token_budget=2048), layers)

    rows, asked = source(train), source(test)
    scores = _retrieval.contenders(rows, asked, config.damping)
    texts = [[task.tokenizer.decode(e.inputs["input_ids"], skip_special_tokens=True) for e in p] for p in (test, train)]
    scores[WORDS] = bm25_scores(*texts)
    # Plans put long rows first; the sources keep the order of the examples, which is that of the classes.
    owners = [n for n in range(len(_templates.TEMPLATES)) for _ in range(config.train)]
    judged = _retrieval.judge(scores, classes, owners)
    return {**judged, "loss": loss, "parameters": layers.parameters}


def words(config: Config, result: dict[str, list[dict[str, Any]]]) -> str:
    """The page."""
    parts = []
    for setting, title in SETTINGS.items():
        if result[setting]:
            found = result[setting]
            loss = float(np.mean([seed["loss"] for seed in found]))
            table = f"{_retrieval.table(found, NAMES)}\n\n{verdict(found)}"
            parts.append(f"## {title}\n\nTraining loss {loss:.2f} nats a token.\n\n{table}")
    first = result["unnamed"][0]
    count = len(result["unnamed"])
    return f"""# DataInf and class retrieval (C6)

A story model of 260,000 parameters learns ten ways to answer a sentence by LoRA of rank {config.rank} on its query and
value maps ({first["parameters"]:,} numbers): {config.train} rows of each, {config.epochs} epochs, {count}
seed{"s" * (count != 1)}. {config.test} further rows of each are the questions. AUC: the chance that a row of the
question's own template has a higher signed score than a row of another. Recall: the share of the question's own rows
among the {config.train} strongest. Means over questions.

{chr(10).join(parts)}

Smaller than published: their model has 13 billion parameters. DataInf uses the empirical Fisher, EK-FAC labels drawn
from the model; damping {config.damping:g} of the mean eigenvalue for both.
"""


def verdict(found: list[dict[str, Any]]) -> str:
    """Whether the bar holds, and what else is to be said."""
    values = {name: float(_retrieval.pooled(found, name, "auc").mean()) for name in NAMES}
    met = "**met**" if values[_retrieval.DATAINF] >= BAR else "**missed**"
    dot = "above" if values[_retrieval.DATAINF] > values[_retrieval.DOT] else "not above"
    return (
        f"DataInf at {BAR:g} or more: {met} ({values[_retrieval.DATAINF]:.3f}); it is {dot} the gradient dot product.\n"
    )


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    lines = []
    for name, title in NAMES.items():
        found = [mean_interval(_retrieval.pooled(result[s], name, "auc")) for s in SETTINGS if result[s]]
        lines.append(
            _page.Line(title, range(len(found)), [f.mean for f in found], [(f.high - f.low) / 2 for f in found])
        )
    axes = _page.Axes("", "AUC of rows of the same template", {0: "only the answer", 1: "the prompt too"})
    record = {**result, "about": about}
    _page.write(folder, "class_retrieval", text=words(config, result), lines=lines, axes=axes, record=record)
    return record


def main() -> None:
    given = _page.arguments((__doc__ or "").splitlines()[0], seeds=Config.seeds)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config = replace(Config(), seeds=given.seeds)
    started, result = time.perf_counter(), {setting: [] for setting in SETTINGS}
    for seed in range(config.seeds):
        for setting in SETTINGS:
            result[setting].append(measure(config, given.data / "stories260K", setting=setting, seed=seed))
            print(setting, verdict(result[setting]), flush=True)
            about = _page.circumstances(replace(config, seeds=seed + 1), time.perf_counter() - started)
            page(config, result, about, given.docs)


if __name__ == "__main__":
    main()
