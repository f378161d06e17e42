"""C3: which solvers come near the proximal Bregman response, and how near the exact one does (Grosse et al. 2023).

    python studies/pbrf_concrete.py --data DATA        # DATA/uci/concrete.csv

Two hidden layers of 32 tanh units on UCI Concrete, 700 rows, far from converged. For some rows and questions the
proximal Bregman objective is solved anew with the row taken out; a method's figure is the Pearson correlation of its
scores with the questions' change in loss over the sampled rows, averaged over questions. The exact damped Gauss-Newton
score is the derivative of that truth, so its own figure is the ceiling of all others.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _page
import numpy as np
import torch
from torch import Tensor, nn

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.evaluate.damping import pearson
from whence.evaluate.pbrf import PbrfSettings, pbrf
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import Damping, parse_damping
from whence.scores.score import pairwise, prepare_queries
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.regression import Regression

METHODS = (
    "identity",
    "diagonal",
    "datainf",
    "kfac",
    "ekfac",
    "exact_block",
    "cg:steps=5",
    "cg:steps=20",
    "ekfac_cg:steps=5",
    "ekfac_cg:steps=20",
    "lissa:depth=700",
    "arnoldi",
    "nystrom",
    "exact",
)
QUALITY, NEAR_EXACT, ABOVE_PLAIN = "ekfac_cg:steps=20", 0.97, 0.15  # the bars


@dataclass(frozen=True)
class Config:
    rows: int = 700
    sampled: int = 60
    questions: int = 10
    hidden: int = 32
    epochs: int = 120
    rate: float = 0.03
    batch: int = 128
    seeds: tuple[int, ...] = (0, 1)
    dampings: tuple[str, ...] = ("absolute:0.01", "relative:0.1")
    minibatch: int = 50  # of LiSSA's products


def concrete(data: Path) -> np.ndarray:
    """1,030 x 9: eight ingredients and ages, compressive strength last."""
    return np.loadtxt(data / "uci" / "concrete.csv", delimiter=",", skiprows=1)


def standardised(config: Config, table: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """Features and targets in seeded order, scaled by the training rows."""
    shuffled = table[np.random.default_rng(seed).permutation(len(table))]
    known = shuffled[: config.rows]
    scaled = torch.from_numpy((shuffled - known.mean(0)) / known.std(0))
    return scaled[:, :-1], scaled[:, -1:]


def trained(config: Config, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """The network in float64; the features are the width of ``x``."""
    torch.manual_seed(seed)
    wide = config.hidden
    sizes = nn.Linear(x.shape[1], wide), nn.Linear(wide, wide), nn.Linear(wide, 1)
    model = nn.Sequential(sizes[0], nn.Tanh(), sizes[1], nn.Tanh(), sizes[2]).double()
    optimiser = torch.optim.SGD(model.parameters(), lr=config.rate, momentum=0.9)
    for _ in range(config.epochs):
        for picked in torch.randperm(config.rows).split(config.batch):
            optimiser.zero_grad()
            (0.5 * (model(x[picked]) - y[picked]).square()).mean().backward()
            optimiser.step()
    return model


def source(model: nn.Module, x: Tensor, y: Tensor, *, name: str, batch: int) -> LiveGradients:
    pairs = enumerate(zip(x.numpy(), y.numpy(), strict=True))
    rows = [Example(f"{name}{n}", {"features": f}, target, 1, 1) for n, (f, target) in pairs]
    plan = plan_batches([1] * len(rows), token_budget=batch, max_rows=batch)
    return LiveGradients(model, Regression(), rows, plan, find_layers(model))


def scores(train: LiveGradients, query: LiveGradients, name: str, damping: Damping) -> np.ndarray:
    """Q x N scores of one method under the true Fisher (Gauss-Newton)."""
    method = get_method(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # solves that stop at their step limit are what is compared here
        operator = method.operator(fit(train, method, FitOptions()), Problem(train, queries=query))
        return pairwise(train, prepare_queries(query, operator.power(-1, damping)))


def cell(config: Config, table: np.ndarray, seed: int, dampings: Sequence[str]) -> list[dict[str, Any]]:
    """One trained network: per damping, the truth and every method's correlation with it."""
    x, y = standardised(config, table, seed)
    model = trained(config, x, y, seed)
    asked = slice(config.rows, config.rows + config.questions)
    query = source(model, x[asked], y[asked], name="q", batch=config.questions)
    seen = x[: config.rows], y[: config.rows]
    train = source(model, *seen, name="r", batch=config.rows)
    small = source(model, *seen, name="r", batch=config.minibatch)
    chosen = np.random.default_rng(seed + 100).choice(config.rows, config.sampled, replace=False)
    found = []
    for text in dampings:
        about = {"seed": seed, "damping": text, "losses": list(query.losses().values())}
        found.append({**about, **compared((train, small), query, chosen, parse_damping(text))})
        print(about["seed"], text, {name: round(value, 3) for name, value in found[-1]["figures"].items()}, flush=True)
    return found


def compared(
    trains: tuple[LiveGradients, LiveGradients], query: LiveGradients, chosen: np.ndarray, damping: Damping
) -> dict[str, Any]:
    """The truth of the chosen rows, and how each method's scores correlate with it; LiSSA has small batches."""
    train, small = trains
    started = time.perf_counter()
    truth = pbrf(train, query, [f"r{n}" for n in chosen], damping=damping, settings=PbrfSettings())
    seconds = {"pbrf": round(time.perf_counter() - started, 1)}
    by_question: dict[str, list[float]] = {}
    for name in METHODS:
        started = time.perf_counter()
        predicted = scores(small if name.startswith("lissa") else train, query, name, damping)[:, chosen]
        by_question[name] = pearson(predicted, truth.change_QM).tolist()
        seconds[name] = round(time.perf_counter() - started, 1)
    unsolved = sum(residual > PbrfSettings.tolerance for residual in truth.residuals)
    return {
        "figures": {name: float(np.nanmean(values)) for name, values in by_question.items()},
        "by_question": by_question,
        "pbrf": {"residual": max(truth.residuals), "steps": max(truth.steps), "unsolved": unsolved},
        "seconds": seconds,
    }


def run(config: Config, table: np.ndarray) -> list[dict[str, Any]]:
    """Every seed under every damping."""
    return [each for seed in config.seeds for each in cell(config, table, seed, config.dampings)]


def bars(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether what was promised holds, cell by cell."""
    share = [c["figures"][QUALITY] / c["figures"]["exact"] for c in cells]
    gain = [c["figures"]["ekfac"] - c["figures"]["identity"] for c in cells]
    return {
        "quality_over_exact": share,
        "quality_holds": [bool(value >= NEAR_EXACT) for value in share],
        "ekfac_minus_identity": gain,
        "ekfac_holds": [bool(value >= ABOVE_PLAIN) for value in gain],
    }


def _verdict(holds: Sequence[bool], values: Sequence[float]) -> str:
    words = "holds everywhere" if all(holds) else f"holds in {sum(holds)} of {len(holds)} runs"
    return f"**{words}** ({', '.join(f'{value:.3f}' for value in values)})"


def ceiling(cells: Sequence[dict[str, Any]]) -> str:
    """How near the derivative comes, by question: the mean hides a question whose gradient has vanished."""
    parts = []
    for cell_ in cells:
        values = np.asarray(cell_["by_question"]["exact"])
        worst, losses = int(np.nanargmin(values)), np.asarray(cell_["losses"])
        parts.append(
            f"{np.nanmedian(values):.3f} and {values[worst]:.3f} (a question of loss {losses[worst]:.1e}; "
            f"the median question's is {np.median(losses):.1e})"
        )
    return (
        "Median and lowest question of `exact`, in the order of the columns: " + "; ".join(parts) + ". The loss of a "
        "question that the network already answers almost exactly has no slope left and changes with the square of "
        "the move, which no score that is linear in a row's weight can follow."
    )


def fine_print(config: Config, cells: Sequence[dict[str, Any]]) -> str:
    """How well the truth was solved, and what differs between methods."""
    worst, unsolved = max(c["pbrf"]["residual"] for c in cells), sum(c["pbrf"]["unsolved"] for c in cells)
    asked = len(cells) * config.sampled
    return (
        f"{asked - unsolved} of {asked} responses were solved to {PbrfSettings.tolerance:g} of the objective's first "
        f"gradient in at most {PbrfSettings.steps} Gauss-Newton steps; the worst of all came to {worst:.1e}. "
        "`relative:0.1` adds a tenth of each layer's mean eigenvalue: of the Gauss-Newton matrix for the truth and "
        "`exact`, of its estimate from sampled labels for the others. LiSSA takes 700 mini-batch products of "
        f"{config.minibatch} rows and has not converged at that depth."
    )


def page(config: Config, cells: Sequence[dict[str, Any]], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    held = bars(cells)
    record = {"cells": cells, "bars": held, "about": about}
    heads = [f"{c['damping']}, seed {c['seed']}" for c in cells]
    rows = [(f"`{name}`", *(f"{c['figures'][name]:.3f}" for c in cells)) for name in METHODS]
    text = (
        "# Solvers against the proximal Bregman response\n\n"
        f"Mean Pearson correlation over {config.questions} questions of the scores of {config.sampled} of "
        f"{config.rows} rows of UCI Concrete with the change in loss when the proximal Bregman objective is solved "
        "without the row, at the solver's own damping. The exact damped Gauss-Newton score (last line) is the "
        "derivative of that change and so the ceiling.\n\n"
        + _page.table(("method", *heads), rows)
        + f"\n\n`{QUALITY}` at least {NEAR_EXACT} x exact: "
        f"{_verdict(held['quality_holds'], held['quality_over_exact'])}. "
        f"`ekfac` at least {ABOVE_PLAIN} above the gradient dot product (`identity`): "
        f"{_verdict(held['ekfac_holds'], held['ekfac_minus_identity'])}. Values in the order of the columns.\n\n"
        f"{ceiling(cells)}\n\n{fine_print(config, cells)}"
    )
    lines = [
        _page.Line(head, list(range(1, len(METHODS) + 1)), [c["figures"][name] for name in METHODS])
        for head, c in zip(heads, cells, strict=True)
    ]
    axes = ("methods, in the order of the table", "correlation with PBRF")
    _page.write(folder, "pbrf_concrete", text=text, lines=lines, axes=axes, record=record)
    return record


def main() -> None:
    given = _page.arguments(__doc__ or "", sampled=Config.sampled, questions=Config.questions)
    torch.set_num_threads(1)
    config = replace(Config(), sampled=given.sampled, questions=given.questions)
    started = time.perf_counter()
    cells = run(config, concrete(given.data))
    record = page(config, cells, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print((given.docs / "pbrf_concrete.md").read_text())
    print(record["bars"])


if __name__ == "__main__":
    main()
