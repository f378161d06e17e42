"""Rows of the same class put first? What the two class-retrieval studies share: contenders, AUC, recall, table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import _page
import numpy as np
from _kept import kept

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.evaluate.statistics import auroc, mean_interval, paired_interval, precision_at
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.scores.relative import cosine_scores
from whence.scores.score import collect, pairwise, precondition, self_influence

DOT, COSINE, DATAINF, EKFAC = "identity", "cosine", "datainf", "ekfac"
NAMES = {DOT: "gradient dot product", COSINE: "cosine of gradients", DATAINF: "DataInf", EKFAC: "EK-FAC"}


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
