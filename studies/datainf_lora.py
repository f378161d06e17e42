"""C6: DataInf on LoRA matrices, against the exact inverse of each matrix's curvature, and on flipped labels.

    python studies/datainf_lora.py --data DATA        # DATA/rt_polarity

A tiny two-block encoder learns sentence polarity; LoRA matrices of rank 1 to 8 on its value maps are then fine-tuned
on 1,000 other sentences of which a fifth has the wrong label. Scores of those sentences on clean validation sentences
are compared with the exact block-diagonal answer (the empirical Fisher of every LoRA matrix, DataInf's own damping),
and each way is asked for the wrong labels: by the influence on the mean validation loss, and by influence on itself.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Any

import _lora
import _lora_page
import _page
import numpy as np
import torch
from _kept import Kept, kept
from _lora import Config
from scipy.stats import rankdata
from torch import nn

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.gradients.layers import find_layers
from whence.gradients.source import GradientSource, LiveGradients
from whence.linalg.damping import relative
from whence.linalg.matrix_batch import Full
from whence.linalg.operators import Operator
from whence.scores.score import Queries, collect, pairwise, precondition, self_influence
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches

EXACT, WHOLE, DATAINF, EKFAC, LISSA, DOT = "exact_block", "kernel", "datainf", "ekfac", "lissa", "identity"
COMPARED = (DATAINF, EKFAC, LISSA, DOT, WHOLE)
LOSS = "loss"


@dataclass(frozen=True)
class World:
    """One fine-tuned model: its training rows live and kept, its questions, which labels are wrong.

    The last question is the mean over all validation rows: its score is a row's influence on the validation loss.
    """

    config: Config
    live: LiveGradients
    kept: Kept
    questions: Queries
    wrong: np.ndarray

    def curvature(self, name: str) -> Operator:
        """A method's undamped empirical Fisher."""
        method = get_method(f"lissa:depth={self.config.lissa_depth}" if name == LISSA else name)
        rows: GradientSource = self.live if name == EKFAC else self.kept
        factors = fit(rows, method, FitOptions(fisher="empirical"))
        return method.operator(factors, Problem(rows, "empirical"))

    def scores(self, inverse: Operator) -> np.ndarray:
        return pairwise(self.kept, precondition(self.questions, inverse))


def build(config: Config, data: _lora.Corpus, base: nn.Module, *, rank: int, seed: int) -> tuple[World, float]:
    """The world and the model's accuracy on the validation rows."""
    rows, wrong = _lora.wrong_labels(config, data.rows, seed)
    model = _lora.adapted(config, base, data, rows, rank=rank, seed=seed)

    def source(part: list[Example]) -> LiveGradients:
        plan = plan_batches([e.length for e in part], token_budget=2048)
        return LiveGradients(model, data.task, part, plan, find_layers(model))

    live, asked = source(rows), collect(source(data.asked), "true")
    few = {n: g.full() for n, g in asked.grads.items()}
    together = {n: Full(torch.cat([g[: config.questions], g.mean(0, keepdim=True)])) for n, g in few.items()}
    measurements = np.append(asked.measurements[: config.questions], asked.measurements.mean())
    questions = Queries((*asked.ids[: config.questions], "mean"), together, measurements)
    return World(config, live, kept(live), questions, wrong), _lora.accuracy(model, data.task, data.asked)


def auc(values: np.ndarray, wrong: np.ndarray) -> float:
    """The chance that a wrong label has a larger value than a right one; ties count half."""
    count = int(wrong.sum())
    return float((rankdata(values)[wrong].sum() - count * (count + 1) / 2) / (count * (len(wrong) - count)))


def correlations(truth: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Pearson: mean over single questions, and of the influence on the mean validation loss."""
    found = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(truth, other, strict=True)]
    return {"questions": float(np.mean(found[:-1])), "validation": found[-1]}


def measure(world: World) -> dict[str, Any]:
    """Correlations with the exact blocks per damping, and AUCs of flipped labels at DataInf's own damping."""
    found: dict[str, Any] = {"correlation": {}, "auc": {}, "self_auc": {}, "lissa": {}}
    curvatures = {name: world.curvature(name) for name in (EXACT, *COMPARED)}
    for damping in world.config.dampings:
        inverses = {name: c.power(-1, relative(damping)) for name, c in curvatures.items()}
        scores = {name: world.scores(inverse) for name, inverse in inverses.items()}
        found["correlation"][damping] = {name: correlations(scores[EXACT], s) for name, s in scores.items()}
        found["lissa"][damping] = _settled(inverses[LISSA])
        if damping == world.config.dampings[0]:  # a wrong label opposes: its support is negative
            found["auc"] = {name: auc(-s[-1], world.wrong) for name, s in scores.items()}
            for name in (EXACT, DATAINF, EKFAC, DOT):  # of the plain dot product this is the squared gradient norm
                itself = self_influence(world.kept, inverses[name])  # type: ignore[arg-type]
                found["self_auc"][name] = auc(itself, world.wrong)
    found["self_auc"][LOSS] = auc(world.kept.grads.measurements, world.wrong)
    return found


def _settled(inverse: Operator) -> dict[str, float]:
    """What LiSSA's last solve said: its mean relative residual, and the damping that its depth adds."""
    report = inverse.reports[-1]  # type: ignore[attr-defined]
    return {"residual": float(np.mean(report["relative_residuals"])), "extra_damping": float(report["extra_damping"])}


def seed_of(config: Config, data: _lora.Corpus, base: nn.Module, seed: int) -> dict[int, Any]:
    """Every rank under one choice of flipped labels."""
    found = {}
    for rank in config.ranks:
        world, right = build(config, data, base, rank=rank, seed=seed)
        found[rank] = {"accuracy": right, "parameters": world.live.layers.parameters, **measure(world)}
    return found


def main() -> None:
    """The page is written after every seed, so that a run that is stopped leaves what it has finished."""
    given = _page.arguments((__doc__ or "").splitlines()[0], rows=Config.rows, seeds=Config.seeds)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config = replace(Config(), rows=given.rows, seeds=given.seeds)
    started = time.perf_counter()
    data = _lora.corpus(config, given.data / "rt_polarity")
    base = _lora.pretrained(config, data)
    result: dict[str, Any] = {"pretrained": _lora.accuracy(base, data.task, data.asked), "seeds": []}
    for seed in range(config.seeds):
        result["seeds"].append(seed_of(config, data, base, seed))
        about = _page.circumstances(replace(config, seeds=seed + 1), time.perf_counter() - started)
        record = _lora_page.page(config, result, about, given.docs)
        print(seed, record["met"], flush=True)


if __name__ == "__main__":
    main()
