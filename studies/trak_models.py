"""C13: TRAK gets better with the number of models (Park et al. 2023, figure 4; dattri's MLP: .115, .33, .45).

    python studies/trak_models.py --data DATA        # DATA/mnist

One hidden layer on MNIST digits averaged to 14 x 14. A bank of networks trained on random halves of the rows is the
truth: the linear datamodeling score (LDS) of a method is, per question, the rank correlation over halves between the
margin that was measured and the summed scores of the half's rows, averaged over questions. TRAK's own networks are
other halves with other seeds. Everything is paired: one bank, one set of questions for all numbers of models.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _page
import numpy as np
import torch
from _digits import Digits, classes, drawn_by_batch, pictures
from scipy.stats import rankdata
from torch import Tensor, nn

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.scores.ensemble import trak_part, trak_scores, with_model
from whence.scores.score import pairwise, prepare_queries
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches


@dataclass(frozen=True)
class Config:
    rows: int = 1000
    questions: int = 100
    bank: int = 100
    models: tuple[int, ...] = (1, 5, 20)
    hidden: int = 64
    size: int = 16  # TRAK's projection per layer side
    damping: float = 0.1
    steps: int = 300
    batch: int = 64
    rate: float = 0.1
    decay: float = 1e-3
    seed: int = 0


def digits(folder: Path, part: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``count`` images averaged to 14 x 14 (zero mean), and their classes."""
    images, labels = pictures(folder, part), classes(folder, part)
    chosen = np.random.default_rng(seed).choice(len(labels), count, replace=False)
    return torch.from_numpy(images[chosen] - 0.1307).float(), torch.from_numpy(labels[chosen].astype(np.int64))


def train_many(config: Config, x: Tensor, y: Tensor, halves: Tensor, seed: int) -> list[Tensor]:
    """M networks at once by batched products: [M, ...] weights of both layers. Row m of ``halves`` is what m sees."""
    generator = torch.Generator().manual_seed(seed)
    many, inputs = len(halves), x.shape[1]

    def start(*shape: int) -> Tensor:
        return (torch.randn(many, *shape, generator=generator) * shape[-1] ** -0.5).requires_grad_(True)

    zeros = [torch.zeros(many, 1, n, requires_grad=True) for n in (config.hidden, 10)]
    weights = [start(config.hidden, inputs), zeros[0], start(10, config.hidden), zeros[1]]
    optimiser = torch.optim.SGD(weights, lr=config.rate, momentum=0.9, weight_decay=config.decay)
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.rate * (1 - step / config.steps)
        picked = halves.gather(1, torch.randint(halves.shape[1], (many, config.batch), generator=generator))
        losses = nn.functional.cross_entropy(forward(weights, x[picked]).flatten(0, 1), y[picked].flatten())
        optimiser.zero_grad()
        (losses * many).backward()
        optimiser.step()
    return [w.detach() for w in weights]


def forward(weights: Sequence[Tensor], x_MBI: Tensor) -> Tensor:
    hidden = torch.tanh(x_MBI @ weights[0].transpose(1, 2) + weights[1])
    return hidden @ weights[2].transpose(1, 2) + weights[3]


def margins(weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """M x Q log-odds of the right class."""
    logits = forward(weights, x.expand(len(weights[0]), -1, -1))
    at = y.expand(len(logits), -1)[..., None]
    return logits.gather(2, at)[..., 0] - logits.scatter(2, at, float("-inf")).logsumexp(2)


def module(weights: Sequence[Tensor], number: int) -> nn.Module:
    """One of the networks as a torch module."""
    first, bias, second, last = (w[number] for w in weights)
    model = nn.Sequential(nn.Linear(first.shape[1], len(first)), nn.Tanh(), nn.Linear(second.shape[1], 10))
    for layer, weight, shift in ((model[0], first, bias), (model[2], second, last)):
        layer.weight.data, layer.bias.data = weight.clone(), shift[0].clone()
    return model


def source(model: nn.Module, x: Tensor, y: Tensor, name: str) -> LiveGradients:
    pairs = enumerate(zip(x.numpy(), y.numpy(), strict=True))
    rows = [Example(f"{name}{n}", {"features": f}, np.asarray(label), 1, 1) for n, (f, label) in pairs]
    return LiveGradients(
        model, Digits(drawn_by_batch), rows, plan_batches([1] * len(rows), token_budget=250), find_layers(model, ("*",))
    )


def halves_of(count: int, rows: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([rng.permutation(rows)[: rows // 2] for _ in range(count)]))


def lds(scores_QN: np.ndarray, halves: Tensor, truth_MQ: np.ndarray) -> np.ndarray:
    """Q rank correlations over halves: summed scores of a half against the margin measured after training on it."""
    member = np.zeros((len(halves), scores_QN.shape[1]))
    np.put_along_axis(member, halves.numpy(), 1.0, axis=1)
    predicted, measured = (rankdata(v, axis=0) for v in (member @ scores_QN.T, truth_MQ))
    predicted, measured = predicted - predicted.mean(0), measured - measured.mean(0)
    return (predicted * measured).sum(0) / np.sqrt((predicted**2).sum(0) * (measured**2).sum(0))


def run(config: Config, data: Path) -> dict[str, Any]:
    """LDS per question of TRAK with each number of models, of EK-FAC and of the gradient dot product (one model)."""
    x, y = digits(data, "train", config.rows, config.seed)
    xq, yq = digits(data, "t10k", config.questions, config.seed)
    bank, own = (
        halves_of(config.bank, config.rows, config.seed + 1),
        halves_of(max(config.models), config.rows, config.seed + 2),
    )
    # two networks per half of the bank: their agreement bounds what any method can reach
    truths = [margins(train_many(config, x, y, bank, seed), xq, yq).numpy() for seed in (11, 12)]
    truth = np.mean(truths, axis=0)
    weights = train_many(config, x, y, own, 13)
    first = module(weights, 0)
    train, query = source(first, x, y, "r"), source(first, xq, yq, "q")
    parts = []
    for number in range(max(config.models)):
        model = module(weights, number)
        method = f"trak:size={config.size},seed={number}"
        parts.append(
            trak_part(
                with_model(query, model), with_model(train, model), method=method, damping=relative(config.damping)
            )
        )
    found = {f"trak {m}": lds(trak_scores(parts[:m]), bank, truth) for m in config.models}
    for name in ("ekfac", "identity"):
        method = get_method(name)
        operator = method.operator(fit(train, method, FitOptions()), Problem(train))
        found[name] = lds(
            pairwise(train, prepare_queries(query, operator.power(-1, relative(config.damping)))), bank, truth
        )
    ceiling = np.mean(
        [np.corrcoef(rankdata(a), rankdata(b))[0, 1] for a, b in zip(truths[0].T, truths[1].T, strict=True)]
    )
    return {"lds": found, "reliability": ceiling, "correct": float((truth > 0).mean())}


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean over questions and its 95 % interval."""
    drawn = np.random.default_rng(seed).choice(values, (2000, len(values))).mean(1)
    return float(values.mean()), *(float(q) for q in np.quantile(drawn, (0.025, 0.975)))


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    figures = {name: bootstrap(values) for name, values in result["lds"].items()}
    ordered = [figures[f"trak {m}"][0] for m in config.models]
    steps = [
        result["lds"][f"trak {b}"] - result["lds"][f"trak {a}"]
        for a, b in zip(config.models, config.models[1:], strict=False)
    ]
    gains = [bootstrap(step) for step in steps]
    record = {
        "figures": figures,
        "gains": gains,
        "strictly_rising": bool(np.all(np.diff(ordered) > 0)),
        "reliability": result["reliability"],
        "correct": result["correct"],
        "about": about,
    }
    rows = [(name, f"{mean:.3f}", f"{low:.3f} to {high:.3f}") for name, (mean, low, high) in figures.items()]
    verdict = "rises at every step" if record["strictly_rising"] else "does **not** rise at every step"
    text = (
        "# TRAK and the number of models\n\n"
        f"On {config.rows} MNIST rows and {config.questions} questions, TRAK {verdict}: the mean LDS is "
        + ", ".join(f"{value:.3f} with {m}" for m, value in zip(config.models, ordered, strict=True))
        + f" model(s), a factor of {ordered[-1] / max(ordered[0], 1e-9):.1f}. Paired gains per step (95 % bootstrap "
        "over questions): "
        + "; ".join(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, low, high in gains)
        + ".\n\n"
        f"Two networks trained on the same half with other seeds agree to {result['reliability']:.2f} (rank "
        f"correlation over the {config.bank} halves), so no method can reach 1. EK-FAC and the gradient dot product "
        f"have one model here. The published shape: .115, .33, .45 for 1, 10 and 50 models (dattri, MNIST MLP).\n\n"
        + _page.table(("method", "LDS", "95 % interval"), rows)
    )
    trak = _page.Line(
        "TRAK", config.models, ordered, [(figures[f"trak {m}"][2] - figures[f"trak {m}"][1]) / 2 for m in config.models]
    )
    flat = [
        _page.Line(f"{n} (1 model)", config.models, [figures[n][0]] * len(config.models)) for n in ("ekfac", "identity")
    ]
    _page.write(folder, "trak_models", text=text, lines=[trak, *flat], axes=("models", "LDS"), record=record)
    return record


def main() -> None:
    given = _page.arguments(__doc__ or "", rows=Config.rows, bank=Config.bank, seed=Config.seed)
    torch.set_num_threads(1)
    config = replace(Config(), rows=given.rows, bank=given.bank, seed=given.seed)
    started = time.perf_counter()
    result = run(config, given.data / "mnist")
    record = page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print(
        {name: round(mean, 3) for name, (mean, _, _) in record["figures"].items()}, "rising:", record["strictly_rising"]
    )


if __name__ == "__main__":
    main()
