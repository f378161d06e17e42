"""The page of the LoRA study: tables, bars and what fell short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _page
import numpy as np
from _lora import Config

NAMES = {
    "exact_block": "exact, per matrix",
    "kernel": "exact, all matrices together",
    "datainf": "DataInf",
    "ekfac": "EK-FAC",
    "lissa": "LiSSA",
    "identity": "gradient dot product",
}
COMPARED = ("datainf", "ekfac", "lissa", "identity", "kernel")


def mean(result: dict[str, Any], rank: int, *path: Any) -> float:
    """Mean over the seeds of one figure of a rank."""
    values = []
    for seed in result["seeds"]:
        value = seed[rank]
        for key in path:
            value = value[key]
        values.append(value)
    return float(np.mean(values))


def verdicts(config: Config, result: dict[str, Any]) -> dict[str, list[bool]]:
    """The three bars, rank by rank (means over seeds)."""
    own, small = config.dampings[0], config.dampings[-1]
    found: dict[str, list[bool]] = {"correlation": [], "correlation, small damping": [], "auc": [], "lissa": []}
    for rank in config.ranks:
        for key, damping in (("correlation", own), ("correlation, small damping", small)):
            pair = [mean(result, rank, "correlation", damping, n, "questions") for n in ("datainf", "identity")]
            found[key].append(pair[0] > pair[1])
        aucs = {n: mean(result, rank, "auc", n) for n in ("datainf", "identity", "lissa")}
        found["auc"].append(aucs["datainf"] >= aucs["identity"])
        found["lissa"].append(aucs["lissa"] >= max(aucs["datainf"], aucs["identity"]))
    return found


def said(config: Config, held: list[bool]) -> str:
    """Where a bar holds, in words."""
    ranks = [str(rank) for rank, yes in zip(config.ranks, held, strict=True) if yes]
    if len(ranks) == len(held):
        return f"**met** at every rank measured ({', '.join(ranks)})"
    return f"**missed** (holds at rank {', '.join(ranks)} only)" if ranks else "**missed** at every rank"


def correlation_table(config: Config, result: dict[str, Any], damping: float) -> str:
    rows = []
    for name in COMPARED:
        cells = [
            f"{mean(result, r, 'correlation', damping, name, 'questions'):.3f} / "
            f"{mean(result, r, 'correlation', damping, name, 'validation'):.3f}"
            for r in config.ranks
        ]
        rows.append([NAMES[name], *cells])
    return _page.table(["", *(f"rank {r}" for r in config.ranks)], rows)


def auc_table(config: Config, result: dict[str, Any]) -> str:
    rows = []
    for name in ("exact_block", *COMPARED):
        rows.append([NAMES[name], "validation loss", *(f"{mean(result, r, 'auc', name):.3f}" for r in config.ranks)])
    for name in ("exact_block", "datainf", "ekfac"):
        rows.append([NAMES[name], "itself", *(f"{mean(result, r, 'self_auc', name):.3f}" for r in config.ranks)])
    for name, words in (("loss", "loss (control)"), ("identity", "gradient norm (control)")):
        rows.append([words, "-", *(f"{mean(result, r, 'self_auc', name):.3f}" for r in config.ranks)])
    return _page.table(["score", "influence on", *(f"rank {r}" for r in config.ranks)], rows)


def words(config: Config, result: dict[str, Any]) -> str:
    """The page."""
    count = len(result["seeds"])
    right = [mean(result, r, "accuracy") for r in config.ranks]
    return f"""# DataInf on LoRA matrices (C6)

A two-block encoder of width {config.width} is pre-trained on other rt-polarity sentences (accuracy
{result["pretrained"]:.2f} on {config.validation} clean validation sentences); LoRA matrices on its value maps are
fine-tuned on {config.rows} sentences with {config.flipped:.0%} flipped labels (accuracy {min(right):.2f} to
{max(right):.2f}). Means over {count} seed{"s" * (count != 1)} (flipped labels, initial LoRA matrices, order of rows).

{solving(config, result)}
{finding(config, result)}
Smaller than published: a model of this size in place of RoBERTa-large, {config.epochs} epochs, {count}
seed{"s" * (count != 1)}; for class retrieval see [its study](class_retrieval.md).
{result.get("note", "")}
"""


def solving(config: Config, result: dict[str, Any]) -> str:
    """How near each way comes to the exact inverse."""
    own, small = config.dampings[0], config.dampings[-1]
    held = verdicts(config, result)
    left = [mean(result, r, "lissa", own, "residual") for r in config.ranks]
    return f"""## Correlation with the exact inverse, matrix by matrix

Pearson correlation with the inverse of each LoRA matrix's own empirical Fisher, at the same damping: mean over
{config.questions} validation sentences / of the influence on the mean validation loss.

Damping {own:g} x the mean eigenvalue, which is DataInf's own choice:

{correlation_table(config, result, own)}

A tenth of it:

{correlation_table(config, result, small)}

DataInf above the gradient dot product: {said(config, held["correlation"])} at its own damping;
{said(config, held["correlation, small damping"])} at {small:g}. LiSSA and the last line invert all matrices together,
so that they answer a slightly different question; LiSSA is stopped at {config.lissa_depth} steps, at a relative
residual of {min(left):.2g} to {max(left):.2g} (against its last mini-batch), and adds the damping.
"""


def finding(config: Config, result: dict[str, Any]) -> str:
    """How well each way finds the wrong labels."""
    held = verdicts(config, result)
    return f"""## Finding the flipped labels (AUC)

{auc_table(config, result)}

- DataInf at or above the gradient dot product (validation loss): {said(config, held["auc"])}.
- LiSSA with the right sign at or above both: {said(config, held["lissa"])}.

The bars are read off means over seeds, without a margin for noise: a standard error of an AUC here is about 0.02.
The AUC of the loss itself is the figure to beat.
"""


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    own = config.dampings[0]
    lines = []
    for name in COMPARED[:-1]:
        by_rank = [[s[r]["correlation"][own][name]["questions"] for s in result["seeds"]] for r in config.ranks]
        error = [float(np.ptp(values)) / 2 for values in by_rank]
        lines.append(_page.Line(NAMES[name], config.ranks, [float(np.mean(v)) for v in by_rank], error))
    record = {**result, "met": verdicts(config, result), "about": about}
    axes = ("LoRA rank", "Pearson with the exact inverse per matrix")
    _page.write(folder, "datainf_lora", text=words(config, result), lines=lines, axes=axes, record=record)
    return record
