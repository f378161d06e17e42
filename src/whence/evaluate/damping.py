"""Damping chosen by evidence: scores of one fit under many dampings, how stable they are, and how near to a truth.

The curvature is fitted once and the gradients of a sample of rows are taken once; a damping then costs one inverse of
the queries. Neighbouring dampings are compared by rank (Spearman) and linear (Pearson) correlation of their scores,
over all layers and per layer. Stability is not correctness: very large dampings are stable because every method turns
into the gradient dot product, so that is shown as well, and any truth at hand outweighs stability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from whence.curvature.implicit import Implicit, packed
from whence.errors import OptionError
from whence.evaluate.statistics import pearson, spearman
from whence.linalg.damping import Damping, parse_damping, relative
from whence.linalg.operators import Blocks, Gradients, Operator

DAMPINGS = tuple(relative(10.0 ** (n / 2)) for n in range(-8, 5))  # 1e-4 to 100 x the mean eigenvalue
STABLE = 0.95  # rank correlation of neighbours from which on a ranking counts as unmoved
PLAIN = 0.98  # rank correlation with the gradient dot product from which on there is no curvature left
CUSTOMARY = "relative:0.1"  # Grosse et al. 2023, section 3.2

RESIDUALS = "relative_residuals"  # what solvers call them in their reports
STRENGTH = ("lds", "pbrf", "reference")  # kinds of evidence, strongest first


@dataclass(frozen=True)
class Sweep:
    """Scores of the same queries and rows under several dampings.

    Attributes:
        dampings: D values, from small to large.
        layers: L layer names.
        query_ids, train_ids: of the sample.
        scores_DLQN: shares of the layers; a score is their sum.
        plain_QN: gradient dot products, the limit of large damping.
        residuals: how far a solver's answers are from solving their equation: the largest of the queries, per damping.
    """

    dampings: tuple[Damping, ...]
    layers: tuple[str, ...]
    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    scores_DLQN: np.ndarray
    plain_QN: np.ndarray
    residuals: tuple[float, ...] = ()

    def total_DQN(self, layers: Sequence[str] | None = None) -> np.ndarray:
        """D x Q x N scores over all or some layers."""
        if layers is None:
            return self.scores_DLQN.sum(1)
        return self.scores_DLQN[:, [self.layers.index(name) for name in layers]].sum(1)


@dataclass(frozen=True)
class Neighbours:
    """Agreement of two neighbouring dampings, means over the queries."""

    low: str
    high: str
    spearman: float
    pearson: float
    layers_spearman: tuple[float, ...]
    layers_pearson: tuple[float, ...]


@dataclass(frozen=True)
class Evidence:
    """How well the scores under each damping agree with something else.

    Attributes:
        kind: ``lds`` (retrained subsets), ``pbrf`` (a proximal retraining per row), ``reference`` (a dense matrix).
        sentence: what the truth is, and what it is not.
        values: one per damping, mean over the queries; ``errors`` their standard errors.
        per_query: D x Q correlations behind them.
    """

    kind: str
    sentence: str
    values: tuple[float, ...]
    errors: tuple[float, ...]
    per_query: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Recommendation:
    """One damping and why."""

    damping: str
    basis: str
    reason: str


@dataclass(frozen=True)
class DampingStudy:
    """The answer as plain data: everything that a table, a plot or a file needs.

    Attributes:
        dampings: D dampings as ``kind:value``; ``values`` their numbers.
        neighbours: D - 1 comparisons.
        to_plain: rank correlation with the gradient dot product, per damping.
        evidence: truths it was scored against, strongest first.
        recommended: the choice.
        about: method, rows, queries, fit.
    """

    dampings: tuple[str, ...]
    values: tuple[float, ...]
    layers: tuple[str, ...]
    neighbours: tuple[Neighbours, ...]
    to_plain: tuple[float, ...]
    evidence: tuple[Evidence, ...]
    recommended: Recommendation
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"format": "whence damping study 1", **asdict(self)}

    def table(self) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Column names and one row per damping."""
        names = [f"{e.kind} (± standard error)" for e in self.evidence]
        columns = ("damping", "rank correlation to the next", "to gradient dot", *names, "")
        rows = []
        for n, damping in enumerate(self.dampings):
            step = round(self.neighbours[n].spearman, 3) if n < len(self.neighbours) else ""
            found = [f"{e.values[n]:.3f} ± {e.errors[n]:.3f}" for e in self.evidence]
            mark = "recommended" if damping == self.recommended.damping else ""
            rows.append((damping, step, round(self.to_plain[n], 3), *found, mark))
        return columns, rows


def parse_dampings(texts: Sequence[str | float | Damping]) -> tuple[Damping, ...]:
    """Dampings of one kind, sorted.

    Raises:
        OptionError: fewer than two, or of several kinds, which have no order.
    """
    found = sorted({parse_damping(text) for text in texts}, key=lambda d: d.value)
    if len(found) < 2 or len({d.kind for d in found}) > 1:
        raise OptionError(
            f"dampings {', '.join(map(str, texts)) or 'none'}",
            wanted="at least two different values of one kind",
            try_="relative:0.01 relative:0.1 relative:1",
        )
    return tuple(found)


def sweep(
    operator: Operator,
    dampings: Sequence[Damping],
    *,
    queries: tuple[tuple[str, ...], Gradients],
    rows: tuple[tuple[str, ...], Gradients],
) -> Sweep:
    """Scores under each damping from one fit and from gradients taken once.

    Args:
        operator: the undamped curvature.
        dampings: D values.
        queries: ids and gradients of Q queries.
        rows: ids and gradients of N training rows.
    """
    (query_ids, query_grads), (train_ids, row_grads) = queries, rows
    layers = tuple(query_grads)
    ready = _ready(operator, dampings, query_grads)
    scores = np.empty((len(dampings), len(layers), len(query_ids), len(train_ids)))
    residuals: list[float] = []
    for d, damping in enumerate(dampings):
        inverse = ready.power(-1, damping)
        solved = inverse.apply(query_grads)
        reports = getattr(inverse, "reports", ())
        residuals += [max(said[RESIDUALS]) for said in reports if said.get(RESIDUALS)]
        for n, name in enumerate(layers):
            scores[d, n] = solved[name].dot(row_grads[name]).double().cpu().numpy()
    plain = sum(query_grads[name].dot(row_grads[name]).double().cpu().numpy() for name in layers)
    return Sweep(tuple(dampings), layers, query_ids, train_ids, scores, np.asarray(plain), tuple(residuals))


def _ready(operator: Operator, dampings: Sequence[Damping], queries: Gradients) -> Operator:
    """What all dampings share, done once: Kronecker pairs in their eigenbasis, the products of a solver."""
    if isinstance(operator, Implicit) and operator.together is not None:
        return operator.together(dampings, packed(operator.products.layout, queries))
    if not isinstance(operator, Blocks):
        return operator
    return Blocks({name: getattr(op, "eigen", lambda op=op: op)() for name, op in operator.layers.items()})


def study(swept: Sweep, evidence: Sequence[Evidence] = (), about: Mapping[str, Any] | None = None) -> DampingStudy:
    """Stability, evidence and the recommendation, in plain data."""
    total = swept.total_DQN()
    neighbours = tuple(_neighbours(swept, total, n) for n in range(len(swept.dampings) - 1))
    to_plain = tuple(_mean(spearman(scores, swept.plain_QN)) for scores in total)
    ordered = tuple(sorted(evidence, key=lambda e: STRENGTH.index(e.kind) if e.kind in STRENGTH else len(STRENGTH)))
    names = tuple(map(str, swept.dampings))
    choice = _by_evidence(names, ordered[0]) if ordered else _by_stability(names, neighbours, to_plain)
    values = tuple(d.value for d in swept.dampings)
    sample: dict[str, Any] = {"queries": len(swept.query_ids), "rows": len(swept.train_ids)}
    sample |= {"residuals": list(swept.residuals)} if swept.residuals else {}
    return DampingStudy(names, values, swept.layers, neighbours, to_plain, ordered, choice, {**sample, **(about or {})})


def _neighbours(swept: Sweep, total_DQN: np.ndarray, n: int) -> Neighbours:
    low, high = swept.scores_DLQN[n], swept.scores_DLQN[n + 1]
    pairs = list(zip(low, high, strict=True))
    return Neighbours(
        low=str(swept.dampings[n]),
        high=str(swept.dampings[n + 1]),
        spearman=_mean(spearman(total_DQN[n], total_DQN[n + 1])),
        pearson=_mean(pearson(total_DQN[n], total_DQN[n + 1])),
        layers_spearman=tuple(_mean(spearman(a, b)) for a, b in pairs),
        layers_pearson=tuple(_mean(pearson(a, b)) for a, b in pairs),
    )


def evidence_from(swept_DQN: np.ndarray, truth_QN: np.ndarray, *, kind: str, sentence: str) -> Evidence:
    """Rank correlation of scores with a truth per query, over the rows that have one (NaN elsewhere)."""
    known = np.isfinite(truth_QN).all(0)
    per_query = np.array([spearman(scores[:, known], truth_QN[:, known]) for scores in swept_DQN])
    return summed(per_query, kind=kind, sentence=sentence)


def summed(per_query_DQ: np.ndarray, *, kind: str, sentence: str) -> Evidence:
    """Evidence from D x Q correlations; queries without one (NaN) do not count."""
    count = np.maximum(np.isfinite(per_query_DQ).sum(1), 1)
    means = np.nan_to_num(np.nansum(per_query_DQ, axis=1) / count)
    spread = np.nansum((per_query_DQ - means[:, None]) ** 2, axis=1) / np.maximum(count - 1, 1)
    errors = np.sqrt(spread / count)
    rows = tuple(tuple(map(float, row)) for row in np.nan_to_num(per_query_DQ))
    return Evidence(kind, sentence, tuple(map(float, means)), tuple(map(float, errors)), rows)


def _by_evidence(dampings: Sequence[str], evidence: Evidence) -> Recommendation:
    """The best value, or the largest one that is not distinguishably worse: more damping is the steadier choice."""
    best = int(np.argmax(evidence.values))
    per_query = np.array(evidence.per_query)
    chosen = best
    for n in range(best + 1, len(dampings)):
        lost = per_query[best] - per_query[n]
        if lost.mean() > min(lost.std(ddof=1) / np.sqrt(len(lost)) if len(lost) > 1 else 0.0, 0.01):
            break
        chosen = n
    said = f"agrees best with the {evidence.kind}: {evidence.values[best]:.3f} ± {evidence.errors[best]:.3f}"
    if chosen != best:
        said = f"{dampings[best]} {said}; {dampings[chosen]} is as good ({evidence.values[chosen]:.3f}) and steadier"
    if chosen in (0, len(dampings) - 1):
        said += "; it lies at the end of the sweep, so look further out"
    return Recommendation(dampings[chosen], evidence.kind, f"{said}. {evidence.sentence}")


def _by_stability(
    dampings: Sequence[str], neighbours: Sequence[Neighbours], to_plain: Sequence[float]
) -> Recommendation:
    """The customary value where rankings hold still around it, else the nearest value where they do."""
    steady = [
        min([neighbours[m].spearman for m in (n - 1, n) if 0 <= m < len(neighbours)]) >= STABLE
        for n in range(len(dampings))
    ]
    usable = [n for n, calm in enumerate(steady) if calm and to_plain[n] < PLAIN]
    warning = "Stability is not correctness: nothing here was compared with retraining."
    customary = float(CUSTOMARY.split(":")[1])
    distance = [abs(np.log(float(d.split(":")[1]) / customary)) for d in dampings]
    if usable:
        chosen = min(usable, key=lambda n: distance[n])
        low, high = dampings[usable[0]], dampings[usable[-1]]
        said = (
            f"rankings hold still between {low} and {high} (neighbours agree to {STABLE}), and curvature still counts"
        )
        return Recommendation(dampings[chosen], "stability", f"{said}. {warning}")
    chosen = min(range(len(dampings)), key=lambda n: distance[n])
    said = "no damping has stable neighbours that differ from the gradient dot product: rankings depend on this choice"
    return Recommendation(dampings[chosen], "custom", f"{said}; this is the value nearest to {CUSTOMARY}. {warning}")


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
