"""C8 and C9: what half precision, questions of low rank and blocks of the Kronecker factors do to EK-FAC scores.

    python studies/precision_partition.py --data DATA        # DATA/wikitext2

A four-block Llama of width 128 is trained on WikiText-2 pieces (characters), then questions are scored with EK-FAC:
in float32, with the model in bfloat16 (weights, activations and gradients; sums and eigendecompositions stay in
float32 and above), in float32 with every question's preconditioned gradient cut to rank r, layer by layer, by its
singular values (the query batching of Grosse et al. 2023, section 3.2.2, who report 0.995 at rank 32), and in float32
with every factor cut into O = 2 or 4 diagonal blocks. The measure is the correlation per question with the float32
scores of whole factors. A second float32 fit whose sampled labels are other ones shows what the draw of labels alone
does.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _page
import numpy as np
import projection_sweep
import torch

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.evaluate.statistics import pearson, spearman
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.linalg.matrix_batch import MatrixBatch, Outer
from whence.scores.score import Queries, pairwise, prepare_queries

PRECISION_BAR, BLOCKS_BAR, RANK_BAR = 0.95, 0.9, 0.99
HALF, HALF_SCORES, LABELS = "bfloat16", "bfloat16 gradients, float32 fit", "float32, other sampled labels"
DOT = "gradient dot product, float32"


@dataclass(frozen=True)
class Config:
    rows: int = 200
    questions: int = 16
    tokens: int = 96
    width: int = 128
    depth: int = 4
    steps: int = 120
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    blocks: tuple[int, ...] = (2, 4)
    damping: float = 0.1
    seed: int = 0

    def text(self) -> projection_sweep.Config:
        """The same model and text as the projection study's, two blocks deeper."""
        return projection_sweep.Config(
            rows=self.rows,
            questions=self.questions,
            tokens=self.tokens,
            width=self.width,
            depth=self.depth,
            steps=self.steps,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Sides:
    """Training rows and questions of one model."""

    train: LiveGradients
    query: LiveGradients

    def prepared(
        self, config: Config, spec: str = "ekfac", *, seed: int = 0, fit_on: LiveGradients | None = None
    ) -> Queries:
        """Questions; ``fit_on`` takes the curvature from elsewhere (the same rows under another precision)."""
        method, rows = get_method(spec), fit_on or self.train
        factors = fit(rows, method, FitOptions(seed=seed))
        inverse = method.operator(factors, Problem(rows)).power(-1, relative(config.damping))
        return prepare_queries(self.query, inverse)

    def scores(
        self, config: Config, spec: str = "ekfac", *, seed: int = 0, fit_on: LiveGradients | None = None
    ) -> np.ndarray:
        """Q x N scores."""
        return pairwise(self.train, self.prepared(config, spec, seed=seed, fit_on=fit_on))


def lowered(grads: MatrixBatch, rank: int) -> tuple[Outer, torch.Tensor]:
    """Each matrix cut to its ``rank`` largest singular values, kept as so many outer products; and the share of the
    squared length that is left, Q numbers."""
    left_QOK, singular_QK, right_QKI = torch.linalg.svd(grads.full().double(), full_matrices=False)
    kept = singular_QK[:, :rank]
    g_QRO = (left_QOK[:, :, :rank] * kept[:, None]).transpose(1, 2)
    energy = kept.square().sum(1) / singular_QK.square().sum(1).clamp(min=1e-300)
    return Outer(g_QRO.to(grads.dtype), right_QKI[:, :rank].to(grads.dtype)), energy


def of_rank(queries: Queries, rank: int) -> tuple[Queries, float]:
    """All layers cut to one rank, and the mean share of the squared length that is left."""
    cut = {name: lowered(grads, rank) for name, grads in queries.grads.items()}
    energy = float(torch.stack([e for _, e in cut.values()]).mean())
    return replace(queries, grads={name: grads for name, (grads, _) in cut.items()}), energy


def compared(truth_QN: np.ndarray, other_QN: np.ndarray) -> dict[str, float]:
    """Per question: mean and lowest Pearson correlation, mean Spearman correlation, shared rows in the top 10."""
    pearson_Q, ranks_Q = pearson(truth_QN, other_QN), spearman(truth_QN, other_QN)
    tops = [np.argsort(-s, axis=1)[:, :10] for s in (truth_QN, other_QN)]
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(*(t.tolist() for t in tops), strict=True)]
    return {
        "pearson": float(np.mean(pearson_Q)),
        "lowest": float(np.min(pearson_Q)),
        "spearman": float(np.mean(ranks_Q)),
        "top10": float(np.mean(shared)),
    }


def run(config: Config, data: Path) -> dict[str, Any]:
    """Agreement with float32 EK-FAC of each variation."""
    settings = config.text()
    pieces = projection_sweep.texts(data, settings)
    rows, asked = pieces[: config.rows], pieces[config.rows : config.rows + config.questions]
    model = projection_sweep.trained(settings, rows)
    half = copy.deepcopy(model).bfloat16()
    full, low = (
        Sides(projection_sweep.source(m, rows, "r"), projection_sweep.source(m, asked, "q")) for m in (model, half)
    )
    asked_whole = full.prepared(config)
    truth = pairwise(full.train, asked_whole)
    by_rank = {}
    for rank in config.ranks:
        cut, energy = of_rank(asked_whole, rank)
        by_rank[str(rank)] = {**compared(truth, pairwise(full.train, cut)), "energy": energy}
    found = {
        HALF: compared(truth, low.scores(config)),
        HALF_SCORES: compared(truth, low.scores(config, fit_on=full.train)),
        LABELS: compared(truth, full.scores(config, seed=1000)),
        DOT: compared(truth, full.scores(config, "identity")),
    }
    for blocks in config.blocks:
        found[f"O = {blocks}"] = compared(truth, full.scores(config, f"ekfac:blocks={blocks}"))
    loss = float(np.mean(list(full.train.losses().values()))) / (config.tokens - 1)
    return {"loss": loss, "agreement": found, "ranks": by_rank}


def verdicts(
    config: Config, agreement: dict[str, dict[str, float]], ranks: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Each bar and whether it was met, by the mean Pearson correlation (half precision: by the Spearman too)."""
    by_blocks = [agreement[f"O = {n}"]["pearson"] for n in config.blocks]
    by_rank = [ranks[str(n)]["pearson"] for n in config.ranks]
    return {
        "precision": min(agreement[HALF]["pearson"], agreement[HALF]["spearman"]) >= PRECISION_BAR,
        "rank": by_rank[-1] >= RANK_BAR,
        "rising": bool(np.all(np.diff(by_rank) > 0)),
        "blocks": by_blocks[0] >= BLOCKS_BAR,
        "falling": bool(np.all(np.diff([1.0, *by_blocks]) < 0)),
    }


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    agreement, ranks = result["agreement"], result["ranks"]
    met = verdicts(config, agreement, ranks)
    words = {True: "**met**", False: "**missed**"}
    rows = [[name, *(f"{v:.4f}" for v in a.values())] for name, a in agreement.items()]
    header = ("scores", "Pearson, mean", "Pearson, lowest question", "Spearman, mean", "top 10 shared")
    by_rank = [[n, *(f"{ranks[str(n)][k]:.4f}" for k in (*agreement[HALF], "energy"))] for n in config.ranks]
    first, last = config.blocks[0], config.ranks[-1]
    enough = next((n for n in config.ranks if ranks[str(n)]["pearson"] >= RANK_BAR), None)
    text = f"""# Half precision, questions of low rank, blocks of the factors (C8, C9)

EK-FAC scores of {config.questions} questions against {config.rows} WikiText-2 pieces ({config.tokens} characters; a
Llama shape of width {config.width}, {config.depth} blocks, loss {result["loss"]:.2f} nats per character), each
compared, question by question, with float32 scores from whole factors (O = 1).

{_page.table(header, rows)}

{_page.table(("rank of the questions", *header[1:], "squared length left"), by_rank)}

- bfloat16 at or above {PRECISION_BAR} (mean Pearson and mean Spearman): {agreement[HALF]["pearson"]:.4f} and
  {agreement[HALF]["spearman"]:.4f}, {words[met["precision"]]}.
- Questions of rank {last} at or above {RANK_BAR} (mean Pearson; paper .995): {ranks[str(last)]["pearson"]:.4f},
  {words[met["rank"]]}; {"rising" if met["rising"] else "**not** rising"} with the rank;
  {f"rank {enough} is enough" if enough else "no rank tried is enough"} for {RANK_BAR}.
- O = {first} at or above {BLOCKS_BAR}: {agreement[f"O = {first}"]["pearson"]:.4f}, {words[met["blocks"]]};
  {"falling" if met["falling"] else "**not** falling"} with O.

The draw of sampled labels moves the scores too, with nothing else changed: what is above that line is within what a
second fit would do anyway. In bfloat16 the weights are rounded as well, so that it is a slightly different model.
Smaller than planned: {config.rows} rows of {config.tokens} characters in place of 2,000 of 128 words. A layer's
question has a rank of at most {config.tokens - 1} before the curvature (its tokens); in the paper that bound was higher
and the matrices far wider.
"""
    lines = [
        _page.Line("Pearson", config.ranks, [ranks[str(n)]["pearson"] for n in config.ranks]),
        _page.Line("lowest question", config.ranks, [ranks[str(n)]["lowest"] for n in config.ranks]),
        _page.Line("Spearman", config.ranks, [ranks[str(n)]["spearman"] for n in config.ranks]),
        _page.Line("squared length left", config.ranks, [ranks[str(n)]["energy"] for n in config.ranks]),
    ]
    record = {**result, "met": met, "about": about}
    axes = ("rank of the questions, per layer", "correlation with whole questions")
    _page.write(folder, "precision_partition", text=text, lines=lines, axes=axes, record=record)
    return record


def main() -> None:
    given = _page.arguments((__doc__ or "").splitlines()[0], rows=Config.rows, steps=Config.steps, seed=Config.seed)
    torch.set_num_threads(1)
    config = replace(Config(), rows=given.rows, steps=given.steps, seed=given.seed)
    started = time.perf_counter()
    result = run(config, given.data / "wikitext2")
    record = page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print({k: record[k] for k in ("loss", "agreement", "ranks", "met")})


if __name__ == "__main__":
    main()
