"""C8 and C9: what half precision and blocks of the Kronecker factors do to EK-FAC scores.

    python studies/precision_partition.py --data DATA        # DATA/wikitext2

A four-block Llama of width 128 is trained on WikiText-2 pieces (characters), then questions are scored with EK-FAC:
in float32, with the model in bfloat16 (weights, activations and gradients; sums and eigendecompositions stay in
float32 and above), and in float32 with every factor cut into O = 2 or 4 diagonal blocks. The measure is the
correlation per question with the float32 scores of whole factors. A second float32 fit whose sampled labels are other
ones shows what the draw of labels alone does.
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
from scipy.stats import spearmanr

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.scores.score import pairwise, prepare_queries

PRECISION_BAR, BLOCKS_BAR = 0.95, 0.9
HALF, HALF_SCORES, LABELS = "bfloat16", "bfloat16 gradients, float32 fit", "float32, other sampled labels"
DOT = "gradient dot product, float32"


@dataclass(frozen=True)
class Config:
    rows: int = 320
    questions: int = 16
    tokens: int = 96
    width: int = 128
    depth: int = 4
    steps: int = 200
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

    def scores(self, config: Config, spec: str = "ekfac", *, seed: int = 0, fit_on: LiveGradients | None = None):
        """Q x N scores; ``fit_on`` takes the curvature from elsewhere (the same rows under another precision)."""
        method, rows = get_method(spec), fit_on or self.train
        factors = fit(rows, method, FitOptions(seed=seed))
        inverse = method.operator(factors, Problem(rows)).power(-1, relative(config.damping))
        return pairwise(self.train, prepare_queries(self.query, inverse))


def compared(truth_QN: np.ndarray, other_QN: np.ndarray) -> dict[str, float]:
    """Per question: mean and lowest Pearson correlation, mean Spearman correlation, shared rows in the top 10."""
    pearson = [np.corrcoef(a, b)[0, 1] for a, b in zip(truth_QN, other_QN, strict=True)]
    ranks = [spearmanr(a, b).statistic for a, b in zip(truth_QN, other_QN, strict=True)]
    tops = [np.argsort(-s, axis=1)[:, :10] for s in (truth_QN, other_QN)]
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(*(t.tolist() for t in tops), strict=True)]
    return {
        "pearson": float(np.mean(pearson)),
        "lowest": float(np.min(pearson)),
        "spearman": float(np.mean(ranks)),
        "top10": float(np.mean(shared)),
    }


def run(config: Config, data: Path) -> dict[str, Any]:
    """Agreement with float32 EK-FAC of each variation."""
    settings = config.text()
    pieces = projection_sweep.texts(data, settings)
    rows, asked = pieces[: config.rows], pieces[config.rows : config.rows + config.questions]
    model = projection_sweep.trained(settings, rows)
    half = copy.deepcopy(model).to(torch.bfloat16)
    full, low = (
        Sides(projection_sweep.source(m, rows, "r"), projection_sweep.source(m, asked, "q")) for m in (model, half)
    )
    truth = full.scores(config)
    found = {
        HALF: compared(truth, low.scores(config)),
        HALF_SCORES: compared(truth, low.scores(config, fit_on=full.train)),
        LABELS: compared(truth, full.scores(config, seed=1000)),
        DOT: compared(truth, full.scores(config, "identity")),
    }
    for blocks in config.blocks:
        found[f"O = {blocks}"] = compared(truth, full.scores(config, f"ekfac:blocks={blocks}"))
    loss = float(np.mean(list(full.train.losses().values()))) / (config.tokens - 1)
    return {"loss": loss, "agreement": found}


def verdicts(config: Config, agreement: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Each bar and whether it was met, by the mean Pearson correlation."""
    by_blocks = [agreement[f"O = {n}"]["pearson"] for n in config.blocks]
    return {
        "precision": agreement[HALF]["pearson"] >= PRECISION_BAR,
        "blocks": by_blocks[0] >= BLOCKS_BAR,
        "falling": bool(np.all(np.diff([1.0, *by_blocks]) < 0)),
    }


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    agreement, met = result["agreement"], verdicts(config, result["agreement"])
    words = {True: "**met**", False: "**missed**"}
    rows = [[name, *(f"{v:.4f}" for v in a.values())] for name, a in agreement.items()]
    header = ("scores", "Pearson, mean", "Pearson, lowest question", "Spearman, mean", "top 10 shared")
    first = config.blocks[0]
    text = f"""# Half precision and blocks of the factors (C8, C9)

EK-FAC scores of {config.questions} questions against {config.rows} WikiText-2 pieces ({config.tokens} characters; a
Llama shape of width {config.width}, {config.depth} blocks, loss {result["loss"]:.2f} nats per character), each
compared, question by question, with float32 scores from whole factors (O = 1).

{_page.table(header, rows)}

- bfloat16 at or above {PRECISION_BAR} (mean Pearson): {agreement[HALF]["pearson"]:.4f}, {words[met["precision"]]}.
- O = {first} at or above {BLOCKS_BAR}: {agreement[f"O = {first}"]["pearson"]:.4f}, {words[met["blocks"]]};
  {"falling" if met["falling"] else "**not** falling"} with O.

The draw of sampled labels moves the scores too, with nothing else changed: what is above that line is within what a
second fit would do anyway. In bfloat16 the weights are rounded as well, so that it is a slightly different model.
Smaller than planned: {config.rows} rows of {config.tokens} characters in place of 2,000 of 128 words; questions of
reduced rank (the rest of C8) are not measured here.
"""
    lines = [
        _page.Line(label, [1, *config.blocks], [1.0, *(agreement[f"O = {n}"][key] for n in config.blocks)])
        for label, key in (("Pearson", "pearson"), ("lowest question", "lowest"), ("Spearman", "spearman"))
    ]
    record = {**result, "met": met, "about": about}
    axes = ("O, blocks per factor", "correlation with O = 1")
    _page.write(folder, "precision_partition", text=text, lines=lines, axes=axes, record=record)
    return record


def main() -> None:
    given = _page.arguments((__doc__ or "").splitlines()[0], rows=Config.rows, steps=Config.steps, seed=Config.seed)
    torch.set_num_threads(1)
    config = replace(Config(), rows=given.rows, steps=given.steps, seed=given.seed)
    started = time.perf_counter()
    result = run(config, given.data / "wikitext2")
    record = page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print({k: record[k] for k in ("loss", "agreement", "met")})


if __name__ == "__main__":
    main()
