"""Rows of the same class put first? What the two class-retrieval studies share: contenders, AUC, recall, table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import _page
import numpy as np
import torch

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.evaluate.statistics import auroc, mean_interval, paired_interval, precision_at
from whence.gradients.layers import Layers
from whence.gradients.source import Closed, Labels, LiveGradients, Visitor
from whence.linalg.damping import relative
from whence.linalg.matrix_batch import Full
from whence.scores.relative import cosine_scores
from whence.scores.score import Queries, collect, pairwise, precondition, self_influence

DOT, COSINE, DATAINF, EKFAC = "identity", "cosine", "datainf", "ekfac"
NAMES = {DOT: "gradient dot product", COSINE: "cosine of gradients", DATAINF: "DataInf", EKFAC: "EK-FAC"}


@dataclass(frozen=True)
class Kept:
    """Formed gradients of rows, shown again: contenders that only look at gradients cost no passes of their own."""

    layers: Layers
    grads: Queries
    size: int = 64

    @property
    def ids(self) -> tuple[str, ...]:
        return self.grads.ids

    @property
    def n_batches(self) -> int:
        return -(-len(self.ids) // self.size)

    def _rows(self, number: int) -> slice:
        return slice(number * self.size, min((number + 1) * self.size, len(self.ids)))

    def batch_size(self, number: int) -> int:
        return len(self.ids[self._rows(number)])

    def shuffled(self, seed: int) -> list[int]:
        return np.random.default_rng(seed).permutation(self.n_batches).tolist()

    def visit(
        self, visitor: Visitor, *, labels: Labels = "true", seed: int = 0, batches: Iterable[int] | None = None
    ) -> None:
        assert labels == "true", "gradients of other labels were not kept"
        for number in range(self.n_batches) if batches is None else batches:
            rows = self._rows(number)
            for layer, grads in self.grads.grads.items():
                visitor.see(layer, grads.rows(rows.start, rows.stop))
            losses = torch.from_numpy(self.grads.measurements[rows])
            visitor.close(Closed(self.ids[rows], losses, torch.isfinite(losses)))


def kept(source: LiveGradients) -> Kept:
    """One pass; everything formed."""
    found = collect(source, "true")
    formed = {name: Full(grads.full()) for name, grads in found.grads.items()}
    return Kept(source.layers, Queries(found.ids, formed, found.measurements))


def contenders(rows: LiveGradients, asked: LiveGradients, damping: float) -> dict[str, np.ndarray]:
    """Signed scores Q x N of every contender; positive = helps. One pass, and EK-FAC's own two."""
    near, raw, found = kept(rows), collect(asked), {}
    for name in (DOT, DATAINF, EKFAC):
        method, seen = get_method(name), rows if name == EKFAC else near
        factors = fit(seen, method, FitOptions(rows="all"))
        inverse = method.operator(factors, Problem(seen)).power(-1, relative(damping))
        found[name] = pairwise(near, precondition(raw, inverse))
        if name == DOT:
            own = self_influence(near, inverse), self_influence(kept(asked), inverse)  # type: ignore[arg-type]
            found[COSINE] = cosine_scores(found[DOT], *own)
    return found


def judge(scores: Mapping[str, np.ndarray], classes_Q: Sequence[int], classes_N: Sequence[int]) -> dict[str, Any]:
    """Contender -> AUC of same-class rows for every question, and the share of them among the strongest (recall)."""
    same_QN = np.asarray(classes_Q)[:, None] == np.asarray(classes_N)[None]
    relevant = [frozenset(np.flatnonzero(row).tolist()) for row in same_QN]
    size = len(relevant[0])
    return {
        name: {
            "auc": [auroc(values, same) for values, same in zip(values_QN, same_QN, strict=True)],
            "recall": precision_at(values_QN, relevant, size).tolist(),
        }
        for name, values_QN in scores.items()
    }


def pooled(seeds: Sequence[Mapping[str, Any]], name: str, what: str) -> np.ndarray:
    """One number per question, all seeds one after the other."""
    return np.concatenate([np.asarray(seed[name][what]) for seed in seeds])


def lines(seeds: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[list[str]]:
    """Table rows: contender, AUC with its interval, its lead over the dot product, recall."""
    rows, dot = [], pooled(seeds, DOT, "auc")
    for name, title in names.items():
        values = pooled(seeds, name, "auc")
        lead = "" if name == DOT else str(paired_interval(values, dot))
        recall = mean_interval(pooled(seeds, name, "recall")).mean
        rows.append([title, str(mean_interval(values)), lead, f"{recall:.3f}"])
    return rows


def table(seeds: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """The table of one setting; intervals are over questions."""
    header = ["score", "AUC [95 %]", "above the dot product [95 %]", "recall"]
    return _page.table(header, lines(seeds, names))
