"""C17: what a two-sided projection loses (Bergson's board: .420 for K-FAC falls to .103 at 64 x 64).

    python studies/projection_sweep.py --data DATA        # DATA/wikitext2

A small Llama shape is trained on WikiText-2 sentences (characters), then questions are scored with K-FAC on gradients
projected to p x p, for several p, with random sides (two seeds) and with PCA sides (top K-FAC eigenvectors). The
measure is the rank correlation, per question, with K-FAC on unprojected gradients; between the two seeds it shows
whether p is enough without knowing the truth.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _page
import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import LlamaConfig, LlamaForCausalLM

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.gradients.layers import find_layers
from whence.gradients.source import GradientSource, LiveGradients
from whence.gradients.transforms import TransformedGradients, require_same_transforms
from whence.linalg.damping import relative
from whence.linalg.projection import Projection, pca_projection, random_projection
from whence.scores.score import pairwise, prepare_queries
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM


@dataclass(frozen=True)
class Config:
    rows: int = 600
    questions: int = 24
    tokens: int = 96
    width: int = 128
    depth: int = 2
    steps: int = 300
    batch: int = 16
    rate: float = 2e-3
    sizes: tuple[int, ...] = (8, 16, 32, 64)
    seeds: tuple[int, ...] = (0, 1)
    damping: float = 0.1
    seed: int = 0


def texts(folder: Path, config: Config) -> np.ndarray:
    """N x T character codes (bytes below 128) of consecutive pieces of the training text."""
    need = (config.rows + config.questions) * config.tokens * 4
    with gzip.open(folder / "train.txt.gz") as file:
        codes = np.frombuffer(file.read(2 * need), np.uint8)
    codes = codes[codes < 128][:need].astype(np.int64)
    pieces = codes[: len(codes) // config.tokens * config.tokens].reshape(-1, config.tokens)
    return pieces[np.random.default_rng(config.seed).permutation(len(pieces))]


def trained(config: Config, pieces: np.ndarray) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=config.width,
            intermediate_size=2 * config.width,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_hidden_layers=config.depth,
            max_position_embeddings=config.tokens,
        )
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.rate)
    rng = np.random.default_rng(config.seed)
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.rate * (1 - step / config.steps)
        ids = torch.from_numpy(pieces[rng.choice(len(pieces), config.batch)])
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    return model.eval()


def source(model: LlamaForCausalLM, pieces: np.ndarray, name: str) -> LiveGradients:
    rows = [Example(f"{name}{n}", {"input_ids": ids}, ids, len(ids), len(ids) - 1) for n, ids in enumerate(pieces)]
    plan = plan_batches([len(ids) for ids in pieces], token_budget=16 * pieces.shape[1])
    return LiveGradients(model, CausalLM(), rows, plan, find_layers(model))


def kfac_scores(config: Config, train: GradientSource, query: GradientSource) -> np.ndarray:
    method = get_method("kfac")
    factors = fit(train, method, FitOptions(seed=config.seed))
    inverse = method.operator(factors, Problem(train)).power(-1, relative(config.damping))
    return pairwise(train, prepare_queries(query, inverse))


def projected(config: Config, train: LiveGradients, query: LiveGradients, projection: Projection) -> np.ndarray:
    """The same K-FAC on projected gradients: one wrapper around both sources."""
    small, asked = TransformedGradients(train, (projection,)), TransformedGradients(query, (projection,))
    require_same_transforms(asked, small)
    return kfac_scores(config, small, asked)


def agreement(a_QN: np.ndarray, b_QN: np.ndarray) -> np.ndarray:
    """Q rank correlations."""
    return np.array([spearmanr(a, b).statistic for a, b in zip(a_QN, b_QN, strict=True)])


def run(config: Config, data: Path) -> dict[str, Any]:
    """Rank correlation with unprojected K-FAC for each kind and size."""
    pieces = texts(data, config)
    rows, asked = pieces[: config.rows], pieces[config.rows : config.rows + config.questions]
    model = trained(config, rows)
    train, query = source(model, rows, "r"), source(model, asked, "q")
    truth = kfac_scores(config, train, query)
    covariances = fit(train, get_method("kfac"), FitOptions(seed=config.seed)).tensors
    pairs = {name: (t["G"], t["A"]) for name, t in covariances.items()}
    plain = get_method("identity")
    unscaled = pairwise(
        train, prepare_queries(query, plain.operator(fit(train, plain), Problem(train)).power(-1, relative(0.1)))
    )
    found: dict[str, Any] = {
        "loss": float(np.mean(list(train.losses().values()))) / (config.tokens - 1),
        "dot": agreement(truth, unscaled).mean(),
        "random": {},
        "pca": {},
        "seeds": {},
    }
    for size in config.sizes:
        drawn = [random_projection(train.layers.sizes, size=size, seed=seed) for seed in config.seeds]
        scores = [projected(config, train, query, projection) for projection in drawn]
        found["random"][size] = [agreement(truth, s).mean() for s in scores]
        found["seeds"][size] = agreement(scores[0], scores[-1]).mean()
        found["pca"][size] = agreement(truth, projected(config, train, query, pca_projection(pairs, size=size))).mean()
    return found


AGREEING = {
    True: "That they agree does not say that it is large enough: at every size they agree with each other more than "
    "with the truth, because what a projection does to the curvature is not only noise.",
    False: "",
}


def rising(values: Sequence[float]) -> bool:
    return bool(np.all(np.diff(values) > 0))


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    random = [float(np.mean(result["random"][s])) for s in config.sizes]
    pca = [float(result["pca"][s]) for s in config.sizes]
    between = [float(result["seeds"][s]) for s in config.sizes]
    record = {**result, "random_rising": rising(random), "pca_rising": rising(pca), "about": about}
    rows = [
        (f"{s} x {s}", *(f"{v:.3f}" for v in result["random"][s]), f"{p:.3f}", f"{b:.3f}")
        for s, p, b in zip(config.sizes, pca, between, strict=True)
    ]
    words = {True: "rises with every size", False: "does **not** rise with every size"}
    text = (
        "# What a projection loses\n\n"
        f"K-FAC scores of {config.questions} questions against {config.rows} WikiText-2 pieces ({config.tokens} "
        f"characters; a Llama shape of width {config.width}, {config.depth} blocks, loss {result['loss']:.2f} nats per "
        "character), computed on gradients projected to p x p per layer, against unprojected K-FAC: mean Spearman "
        f"correlation per question. With random sides it {words[record['random_rising']]}, with PCA sides it "
        f"{words[record['pca_rising']]}. The plain gradient dot product has {result['dot']:.3f}.\n\n"
        + _page.table(("p", *(f"random, seed {s}" for s in config.seeds), "PCA", "between the two seeds"), rows)
        + "\n\nThe last column needs no truth: two seeds that disagree say that p is too small. "
        + AGREEING[bool(np.all(np.array(between) > np.array(random)))]
    )
    spread = [float(np.ptp(result["random"][s])) / 2 for s in config.sizes]
    lines = [
        _page.Line("PCA sides", config.sizes, pca),
        _page.Line("random sides", config.sizes, random, spread),
        _page.Line("between seeds", config.sizes, between),
    ]
    _page.write(folder, "projection_sweep", text=text, lines=lines, axes=("p", "Spearman with K-FAC"), record=record)
    return record


def main() -> None:
    given = _page.arguments(__doc__ or "", rows=Config.rows, steps=Config.steps, seed=Config.seed)
    torch.set_num_threads(1)
    config = replace(Config(), rows=given.rows, steps=given.steps, seed=given.seed)
    started = time.perf_counter()
    result = run(config, given.data / "wikitext2")
    record = page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print({k: record[k] for k in ("random", "pca", "seeds", "dot", "loss", "random_rising", "pca_rising")})


if __name__ == "__main__":
    main()
