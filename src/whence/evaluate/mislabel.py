"""Are wrong labels found by influence, and better than by their loss?

A wrongly labelled row is one the model had to learn by heart, so its influence on itself is large; and one that drives
the loss of correctly labelled validation rows up. Loss and gradient norm stand beside as controls: they are often
nearly as good. Scores here are *suspicion*, higher = inspect first.

Contenders:

- ``self:METHOD``: g' (G + damping)^-1 g of the row;
- ``validation:METHOD``: minus the influence on the mean loss of the validation rows;
- ``shuffled:METHOD``: the same with the validation rows' labels dealt out anew, as a control;
- ``neighbours:bm25`` (``tfidf``, ``embedding``, ``activation``): share of another label among similar validation rows;
- ``loss``, ``gradient_norm``, ``length``, ``random``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whence.curvature.base import get_method
from whence.errors import DataError, OptionError
from whence.evaluate.baselines import baselines, gradient_norms, model_baselines, random_scores
from whence.evaluate.comparing import bars
from whence.evaluate.contenders import Contest, counter, inverse_of, parse_contender, with_implied
from whence.evaluate.outcome import Chart, Curve, Outcome
from whence.evaluate.statistics import auroc, auroc_interval, share_found
from whence.gradients.source import LiveGradients
from whence.linalg.damping import Damping, parse_damping
from whence.linalg.matrix_batch import Full
from whence.linalg.operators import Blocks, Operator
from whence.scores.score import Pairwise, Queries, SelfInfluence, collect, precondition
from whence.scores.sinks import AllScores
from whence.tasks.base import Example
from whence.watch import Watcher

SUSPECTS = (
    "self:ekfac", "self:kfac", "validation:ekfac", "validation:dot", "loss", "gradient_norm", "neighbours:bm25",
    "neighbours:tfidf", "neighbours:embedding", "neighbours:activation", "shuffled:ekfac", "length", "random",
)  # fmt: skip
NEIGHBOURS = ("bm25", "tfidf", "embedding", "activation")
DRAWN_ROWS = 10_000_000  # rows ranked for one interval: fewer draws of many rows
CONTROLS = ("loss", "gradient_norm", "length", "random")
INSPECTED = (5, 10, 20)  # percent of the rows, columns of the table


@dataclass(frozen=True)
class Labelled:
    """Rows under suspicion.

    Attributes:
        train: N rows with the labels as the model was given them.
        wrong: ids of those whose label is wrong.
        validation: rows with right labels; None = validation influence and neighbours take no part.
        planted: whether the wrong labels were put there by us.
        trained_on: whether the model was trained on these very labels.
    """

    train: LiveGradients
    wrong: AbstractSet[str]
    validation: LiveGradients | None = None
    planted: bool = True
    trained_on: bool = True


def plant_flips(
    examples: Sequence[Example], share: float, *, classes: int, seed: int = 0
) -> tuple[list[Example], frozenset[str]]:
    """Another label, uniformly drawn, for a share of the rows.

    Returns:
        The rows, and the ids of those with a new label.

    Raises:
        OptionError: a share not between 0 and 1, or one class only.
    """
    if not 0 < share < 1 or classes < 2:
        raise OptionError(f"flipping {share} of the labels of {classes} classes", wanted="a share in (0, 1), 2 classes")
    rng = np.random.default_rng(seed)
    chosen = set(rng.permutation(len(examples))[: max(1, round(share * len(examples)))].tolist())
    moved = rng.integers(1, classes, size=len(examples))
    flipped = [
        replace(e, labels=np.asarray((int(e.labels) + int(moved[n])) % classes, dtype=e.labels.dtype))
        if n in chosen
        else e
        for n, e in enumerate(examples)
    ]
    return flipped, frozenset(examples[n].id for n in chosen)


def suspicion(names: Sequence[str], rows: Labelled, contest: Contest) -> dict[str, np.ndarray]:
    """N numbers per contender, higher = inspect first, in the order of ``rows.train.ids``.

    Contenders that need validation rows or texts are left out where there are none.

    Raises:
        OptionError: an unknown name, or a method without per-layer inverse for ``self:``.
    """
    checked = [suspect_parts(name) for name in dict.fromkeys(names)]
    found: dict[str, np.ndarray] = {}
    inverses: dict[tuple[str, Damping], Operator] = {}
    raw = _mean_question(rows.validation) if rows.validation is not None else None
    similar = _similarities([of for kind, of in checked if kind == "neighbours"], rows, contest)
    for kind, of in checked:
        name = f"{kind}:{of}" if kind else of
        if kind == "neighbours" and of in similar:
            assert rows.validation is not None
            found[name] = _disagreement(similar[of], _labels(rows.validation), _labels(rows.train))
        elif kind == "self" or (kind in ("validation", "shuffled") and raw is not None):
            asked = _shuffled_question(rows.validation, contest.seed) if kind == "shuffled" else raw
            spec, inverse = _inverse(of, inverses, train=rows.train, raw=raw, contest=contest)
            found[name] = _influence(kind, inverse, rows.train, asked, watched=(spec, contest.watch))
        elif not kind:
            found |= _control(of, rows.train, contest)
    return {name: found[name] for name in dict.fromkeys(names) if name in found}


def suspect_parts(name: str) -> tuple[str, str]:
    """A contender of this verb as (kind, of whom); the kind is empty for controls.

    Raises:
        OptionError: no such contender.
    """
    kind, colon, of = name.partition(":")
    if name in CONTROLS:
        return "", name
    if kind == "neighbours" and of in NEIGHBOURS:
        return kind, of
    if colon and kind in ("self", "validation", "shuffled"):
        parsed = parse_contender(of)
        if parsed.kind == "method" and parsed.normalise == "none":
            return kind, of
    raise OptionError(
        f"contender {name!r}",
        wanted="self:METHOD, validation:METHOD, shuffled:METHOD, neighbours:"
        + "|".join(NEIGHBOURS)
        + ", "
        + ", ".join(CONTROLS),
        try_="self:ekfac",
    )


def _mean_question(validation: LiveGradients) -> Queries:
    """The gradient of the mean loss of the validation rows, as one question."""
    raw = collect(validation)
    grads = {name: Full(each.full().mean(0, keepdim=True)) for name, each in raw.grads.items()}
    return Queries(("validation",), grads, raw.measurements.mean(keepdims=True))


def _shuffled_question(validation: LiveGradients | None, seed: int) -> Queries:
    """``_mean_question`` with everybody's label given to another row."""
    assert validation is not None
    order = np.random.default_rng(seed).permutation(len(validation.examples))
    dealt = [replace(e, labels=validation.examples[n].labels) for e, n in zip(validation.examples, order, strict=True)]
    return _mean_question(replace(validation, examples=dealt))


def _inverse(
    of: str,
    kept: dict[tuple[str, Damping], Operator],
    *,
    train: LiveGradients,
    raw: Queries | None,
    contest: Contest,
) -> tuple[str, Operator]:
    """The method's name and its inverse, fitted once for all who use it."""
    parsed = with_implied(parse_contender(of), contest)
    method, damping = get_method(parsed.method), parsed.damping or parse_damping(contest.damping)
    if (method.spec, damping) not in kept:
        # a fit that stops by itself needs a question to look at; without validation rows it reads all of them
        terms, probe = (contest, raw) if raw else (replace(contest, fit_rows="all"), Queries((), {}, np.zeros(0)))
        kept[method.spec, damping] = inverse_of(method, damping, train=train, queries=train, contest=terms, raw=probe)
    return method.spec, kept[method.spec, damping]


def _influence(
    kind: str, inverse: Operator, train: LiveGradients, raw: Queries | None, *, watched: tuple[str, Watcher]
) -> np.ndarray:
    method, watch = watched
    counted = train.with_progress(counter(watch, f"{kind} {method}", len(train.ids)))
    if kind == "self":
        if not isinstance(inverse, Blocks):
            raise OptionError(
                f"self-influence by {method}", wanted="a block-diagonal method", try_="self:ekfac or self:kfac"
            )
        visitor = SelfInfluence(inverse)
        counted.visit(visitor)
        return np.array([visitor.values[id_] for id_ in train.ids])
    assert raw is not None
    sink = AllScores.empty(1, train.ids)
    counted.visit(Pairwise(precondition(raw, inverse), sink))
    return -sink.values[0]  # a proponent of the validation rows is not suspicious


def _control(name: str, train: LiveGradients, contest: Contest) -> dict[str, np.ndarray]:
    if name == "random":
        return {name: random_scores(1, len(train.ids), seed=contest.seed)[0]}
    if name == "length":
        return {name: np.array([float(e.length) for e in train.examples])}
    if name == "gradient_norm":
        return {name: np.sqrt(gradient_norms(train))}
    losses = train.losses()
    return {name: np.array([losses[id_] for id_ in train.ids])}


def _similarities(names: Sequence[str], rows: Labelled, contest: Contest) -> dict[str, np.ndarray]:
    """V x N similarities of validation and training rows, not below 0."""
    if rows.validation is None or not names:
        return {}
    found: dict[str, np.ndarray] = {}
    if contest.row_texts and set(names) & {"bm25", "tfidf"}:
        found |= baselines(contest.query_texts, contest.row_texts, seed=contest.seed)
    asked = [name for name in names if name in ("embedding", "activation")]
    found |= model_baselines(rows.train, rows.validation, asked)
    return {name: np.maximum(found[name], 0.0) for name in names if name in found}


def _labels(source: LiveGradients) -> np.ndarray:
    return np.array([int(e.labels) for e in source.examples])


def _disagreement(similar_VN: np.ndarray, labels_V: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """N shares of similarity that belong to rows of another label; 1/2 where nothing is similar."""
    other = (similar_VN * (labels_V[:, None] != labels_N[None, :])).sum(0)
    total = similar_VN.sum(0)
    return np.where(total > 0, other / np.where(total > 0, total, 1.0), 0.5)


# --- judgement -----------------------------------------------------------------------------------------------------


def mislabel(scores: Mapping[str, np.ndarray], rows: Labelled, *, about: Mapping[str, Any] | None = None) -> Outcome:
    """AUROC and share found against share inspected.

    Args:
        scores: contender -> N suspicions.
        rows: what was suspected, and what is wrong.
        about: settings, for the record.

    Raises:
        DataError: no wrong label, or nothing but wrong labels.
    """
    wrong = np.array([id_ in rows.wrong for id_ in rows.train.ids])
    if wrong.all() or not wrong.any():
        raise DataError(f"{wrong.sum()} wrong labels among {len(wrong)} rows", wanted="some of them, not all")
    draws = int(np.clip(DRAWN_ROWS // len(wrong), 50, 500))
    areas = {name: auroc_interval(values, wrong, draws=draws) for name, values in scores.items()}
    order = sorted(scores, key=lambda name: -np.nan_to_num(areas[name].mean, nan=-np.inf))
    curves = {name: share_found(values, wrong) for name, values in scores.items()}
    table = [
        (
            name,
            areas[name].mean,
            areas[name].span,
            *(100 * float(np.interp(p / 100, *curves[name])) for p in INSPECTED),
        )
        for name in order
    ]
    found = tuple(Curve(name, tuple(curves[name][0].tolist()), tuple(curves[name][1].tolist())) for name in order)
    return Outcome(
        verb="mislabel",
        title="Are wrong labels found by influence, and better than by their loss?",
        columns=(
            "contender",
            "AUROC",
            "95 % interval",
            *(f"found in {p} %" if p == INSPECTED[0] else f"{p} %" for p in INSPECTED),
        ),
        rows=tuple(table),
        charts=(
            Chart("Wrong labels found by rows inspected", "share inspected", "share found", found),
            bars("AUROC", "probability that a wrong label ranks before a right one", {"AUROC": areas}, order),
        ),
        values={
            "train_ids": list(rows.train.ids),
            "wrong": sorted(rows.wrong & set(rows.train.ids)),
            "contenders": {name: {"suspicion": scores[name], "auroc": areas[name].mean} for name in order},
        },
        words=_words(scores, wrong, rows),
        about={"rows": len(wrong), "wrong": int(wrong.sum()), "planted": rows.planted, **(about or {})},
    )


def _words(scores: Mapping[str, np.ndarray], wrong: np.ndarray, rows: Labelled) -> tuple[str, ...]:
    kind = "planted" if rows.planted else "known"
    words = [f"{int(wrong.sum())} of {len(wrong)} labels are wrong ({kind})."]
    value = {name: auroc(each, wrong) for name, each in scores.items()}
    ranked = sorted(value, key=lambda name: -np.nan_to_num(value[name], nan=-1.0))
    methods = [name for name in ranked if name.startswith(("self:", "validation:"))]
    controls = [name for name in ranked if name not in methods]
    if methods and controls:
        best, other = methods[0], controls[0]
        gap = auroc_interval(scores[best], wrong, other=scores[other])
        verdict = "ahead" if gap.low > 0 else "behind" if gap.high < 0 else "not distinguishable"
        words.append(
            f"Best influence {best} {value[best]:.3f}, best control {other} {value[other]:.3f}: difference {gap} over "
            f"the same rows, {verdict}."
        )
    if not rows.trained_on:
        words.append(
            "The model was not trained on the planted labels: this measures how badly a wrong label fits it, not what "
            "training on it did. Loss finds those easily; train on the flipped labels to ask the real question."
        )
    if rows.validation is None:
        words.append("No validation rows: validation influence and neighbours took no part.")
    return tuple(words)
