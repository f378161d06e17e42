"""C1: influence is leave-one-out where training goes to the minimum (Koh & Liang 2017, figure 2).

    python studies/loo_convex.py --data DATA        # DATA/uci/concrete.csv, DATA/mnist

Ridge regression on UCI Concrete and multinomial logistic regression on MNIST digits averaged to 14 x 14. Some rows are
left out one at a time and the model is trained to its minimum again; the changes of the questions' losses are compared
with the scores of those rows.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _digits
import _page
import numpy as np
import torch
from torch import nn

from whence.curvature.base import Factors, Problem, get_method
from whence.evaluate.bank import open_bank, train_members
from whence.evaluate.contenders import Contest, contenders
from whence.evaluate.converged import ConvergedTrainer
from whence.evaluate.loo import agreement, changes, left_out, ridge_changes
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import absolute
from whence.scores.score import SelfInfluence, pairwise, prepare_queries
from whence.store.atomic import plain
from whence.tasks.base import Example, Task
from whence.tasks.batches import plan_batches
from whence.tasks.regression import Regression

METHODS = ("exact", "cg:steps=100", "lissa", "arnoldi", "ekfac", "kfac", "diagonal", "dot", "cosine", "random")
BARS = {"ridge": 0.99, "logistic": 0.95}
CLOSED = "exact, leverage corrected"


@dataclass(frozen=True)
class Config:
    ridge_rows: int = 800
    digit_rows: int = 2000
    left_out: int = 50
    questions: int = 10
    penalty: float = 1e-3
    minibatch: int = 200  # of LiSSA's products
    seed: int = 0


def concrete(config: Config, data: Path) -> tuple[list[Example], list[Example]]:
    """Standardised rows and questions; a constant feature instead of a bias."""
    table = np.loadtxt(data / "uci" / "concrete.csv", delimiter=",", skiprows=1)
    table = table[np.random.default_rng(config.seed).permutation(len(table))]
    table = (table - table.mean(0)) / table.std(0)
    x = np.concatenate([table[:, :-1], np.ones((len(table), 1))], axis=1)
    made = [Example(str(n), {"features": x[n]}, table[n, -1:], 1, 1) for n in range(len(table))]
    return made[: config.ridge_rows], made[config.ridge_rows : config.ridge_rows + config.questions]


def digits(config: Config, data: Path) -> tuple[list[Example], list[Example]]:
    """Rows of the training images, questions of the test images."""
    found = []
    for part, count in (("train", config.digit_rows), ("t10k", config.questions)):
        x, labels = _digits.pictures(data / "mnist", part), _digits.classes(data / "mnist", part)
        chosen = np.random.default_rng(config.seed).permutation(len(labels))[:count]
        pairs = enumerate(zip(x[chosen], labels[chosen], strict=True))
        found.append([Example(f"{part}{n}", {"features": f}, np.asarray(label), 1, 1) for n, (f, label) in pairs])
    return found[0], found[1]


def source(model: nn.Module, task: Task, rows: Sequence[Example], batch: int) -> LiveGradients:
    plan = plan_batches([1] * len(rows), token_budget=batch)
    return LiveGradients(model, task, list(rows), plan, find_layers(model, ("*",)))


def case(config: Config, trainer: ConvergedTrainer) -> dict[str, Any]:
    """Retrain, score, compare: every method's correlation per question."""
    n, seconds, started = len(trainer.rows), {}, time.perf_counter()
    chosen = np.sort(np.random.default_rng(config.seed).permutation(n)[: config.left_out])
    design = left_out(n, chosen.tolist())
    ids = [e.id for e in trainer.rows], [e.id for e in trainer.queries]
    bank = open_bank(None, design, trainer, train_ids=ids[0], query_ids=ids[1])
    train_members(bank, trainer)
    truth_QM = changes(bank.losses_MRQ)[:, 0]
    seconds["retraining"], started = time.perf_counter() - started, time.perf_counter()
    model = trainer.minimum()
    query = source(model, trainer.task, trainer.queries, n)
    found = {}
    for name in METHODS:
        train = source(model, trainer.task, trainer.rows, config.minibatch if name == "lissa" else n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # solves that stop at their step limit are what is compared here
            scores = contenders([name], train, query, Contest(f"absolute:{config.penalty}", seed=config.seed))[name]
        found[name] = agreement(scores[:, chosen], truth_QM, n)
        seconds[name], started = time.perf_counter() - started, time.perf_counter()
    result: dict[str, Any] = {"seconds": seconds, "losses": list(query.losses().values())}
    if isinstance(trainer.task, Regression):
        predicted = closed_form(config, trainer, query)[:, chosen]
        found[CLOSED] = agreement(predicted, truth_QM, 1)
        result["largest_difference"] = float(np.abs(predicted - truth_QM).max())
    return {**result, "agreement": found}


def closed_form(config: Config, trainer: ConvergedTrainer, query: LiveGradients) -> np.ndarray:
    """Ridge's changes without retraining: exact scores, leverage from self-influence."""
    train = source(query.model, trainer.task, trainer.rows, len(trainer.rows))
    inverse: Any = get_method("exact_block").operator(Factors({}), Problem(train)).power(-1, absolute(config.penalty))
    own = SelfInfluence(inverse)
    train.visit(own)
    influence_N = np.array([own.values[id_] for id_ in train.ids])
    losses_N, losses_Q = (np.array([s.losses()[id_] for id_ in s.ids]) for s in (train, query))
    return ridge_changes(pairwise(train, prepare_queries(query, inverse)), influence_N, losses_N, losses_Q)


def run(config: Config, data: Path) -> dict[str, Any]:
    """Both cases."""
    found = {}
    for name, (rows, asked), task, sizes in (
        ("ridge", concrete(config, data), Regression(), None),
        ("logistic", digits(config, data), _digits.Digits(), 10),
    ):
        torch.manual_seed(config.seed)
        width = len(rows[0].inputs["features"])
        model = nn.Linear(width, sizes or 1, bias=sizes is not None).double()
        found[name] = case(config, ConvergedTrainer(model, task, rows, asked, config.penalty))
        print(name, {n: round(a.pearson.mean, 3) for n, a in found[name]["agreement"].items()}, flush=True)
    return found


def page(config: Config, found: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    rows, held = [], {}
    for name, each in found.items():
        mean = each["agreement"]["exact"].pearson.mean
        held[name] = {"pearson": mean, "wanted": BARS[name], "holds": bool(mean >= BARS[name])}
        rows += [
            (name, f"`{m}`", str(a.pearson), str(a.spearman), f"{a.fit.slope:.3f}")
            for m, a in each["agreement"].items()
        ]
    difference = found["ridge"]["largest_difference"]
    record = plain(
        {
            "bars": held,
            "largest_difference": difference,
            "about": about,
            "cases": {n: numbers(c) for n, c in found.items()},
        }
    )
    verdicts = "; ".join(
        f"{name}: {each['pearson']:.3f} (wanted {each['wanted']}), **{'holds' if each['holds'] else 'does not hold'}**"
        for name, each in held.items()
    )
    text = (
        "# Influence against leaving rows out\n\n"
        f"{config.left_out} rows are left out one at a time; the model is trained to its minimum each time, and the "
        f"change of {config.questions} questions' losses is compared with the rows' scores at absolute damping "
        f"{config.penalty:g}, the penalty itself. Correlations run over the rows left out and are averaged over "
        f"questions, with 95 % intervals; the slope is of measured nats on score / N. Ridge: {config.ridge_rows} rows "
        f"of UCI Concrete. Logistic: {config.digit_rows} MNIST digits, 14 x 14, ten classes.\n\n"
        + _page.table(("case", "method", "Pearson", "Spearman", "slope"), rows)
        + f"\n\nPearson of `exact`: {verdicts}. For ridge the leverage-corrected closed form equals retraining to "
        f"{difference:.1e} nats, the largest difference of all pairs. LiSSA runs at its default depth on mini-batches "
        f"of {config.minibatch} rows."
    )
    x = list(range(1, len(METHODS) + 1))
    lines = [_page.Line(n, x, [c["agreement"][m].pearson.mean for m in METHODS]) for n, c in found.items()]
    _page.write(
        folder,
        "loo_convex",
        text=text,
        lines=lines,
        axes=("methods, in the order of the table", "Pearson"),
        record=record,
    )
    return record


def numbers(each: dict[str, Any]) -> dict[str, Any]:
    parts = {
        m: {"pearson": vars(a.pearson), "spearman": vars(a.spearman), "slope": a.fit.slope, "per_query": a.per_query}
        for m, a in each["agreement"].items()
    }
    return {**each, "agreement": parts}


def main() -> None:
    given = _page.arguments(__doc__ or "", left_out=Config.left_out, questions=Config.questions, seed=Config.seed)
    torch.set_num_threads(1)
    config = replace(Config(), left_out=given.left_out, questions=given.questions, seed=given.seed)
    started = time.perf_counter()
    found = run(config, given.data)
    record = page(config, found, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print((given.docs / "loo_convex.md").read_text())
    print(record["bars"])


if __name__ == "__main__":
    main()
