"""What a classifier says of the labels it was trained on: three passes over its rows.

Pass one fits the curvature, pass two takes every row's influence on itself and on the mean loss of the validation rows,
pass three (for the few rows asked about) their influence on each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from whence.curvature.base import get_method
from whence.errors import OptionError
from whence.evaluate.contenders import Contest, inverse_of
from whence.gradients.source import LiveGradients, Visitor
from whence.linalg.damping import parse_damping
from whence.linalg.matrix_batch import Full
from whence.linalg.operators import Blocks
from whence.scores.relative import relative_scores
from whence.scores.score import Pairwise, Queries, SelfInfluence, Together, collect, precondition, prepare_queries
from whence.scores.sinks import AllScores
from whence.select.labels import ends_of
from whence.tasks.base import Example
from whence.watch import Watcher


@dataclass(frozen=True)
class Terms:
    """How influence is computed.

    Attributes:
        method: a block-diagonal one.
        damping: as everywhere.
        seed: of sampled labels and of the folds.
    """

    method: str = "ekfac"
    damping: str = "relative:0.1"
    seed: int = 0


@dataclass(frozen=True)
class Judgement:
    """What one model says of N rows.

    Attributes:
        parts: ``self`` (influence on itself), ``validation`` (minus the influence on the mean validation loss) -> N
            suspicions, higher = look first.
        merits_CN: what speaks for each label of each row, higher = more: its influence on the validation rows, or
            without these minus its loss.
        least: merit from which a label is worth giving.
    """

    parts: Mapping[str, np.ndarray]
    merits_CN: np.ndarray
    least: float = -np.inf


def judge(
    train: LiveGradients, validation: LiveGradients | None, terms: Terms, *, classes: int, watch: Watcher
) -> Judgement:
    """Suspicion of every row, and what each label of it would do.

    Args:
        train: rows with the labels the model was trained on.
        validation: rows with right labels, or None.
        terms: method and damping.
        classes: number of labels.
        watch: hears about progress.

    Raises:
        OptionError: a method without per-layer inverse.
    """
    inverse = _inverse(train, terms, watch)
    own = SelfInfluence(inverse)
    if validation is None:
        train.visit(own)
        return Judgement({"self": _listed(own, train)}, _merits_by_loss(train, classes))
    asked = precondition(_mean_question(validation), inverse)
    sink = AllScores.empty(1, train.ids)
    visitors: list[Visitor] = [own, Pairwise(asked, sink)]
    train.visit(Together(visitors))
    effects = [_effect(train, asked, label) for label in range(classes)]
    return Judgement({"self": _listed(own, train), "validation": -sink.values[0]}, np.stack(effects), least=0.0)


def judge_unseen(train: LiveGradients, unseen: LiveGradients, terms: Terms, *, classes: int) -> Judgement:
    """Suspicion of rows that the model was *not* trained on: what a step on them would owe to themselves.

    A model that has learned its wrong labels by heart finds them in order; one that never saw them does not. The row's
    self-influence is taken over the mean of those it would have under every label, so that it speaks of the label and
    not of how loud the text is.

    Args:
        train: what the model was trained on, for the curvature.
        unseen: the rows judged.
        terms: method and damping.
        classes: number of labels.
    """
    inverse = _inverse(train, terms, None)
    own_CN = np.stack([_own(replace(unseen, examples=_dealt(unseen, label)), inverse) for label in range(classes)])
    given = np.array([int(e.labels) for e in unseen.examples])
    mean_N = own_CN.mean(0)
    share_N = own_CN[given, np.arange(len(given))] / np.where(mean_N > 0, mean_N, 1.0)
    return Judgement({"self": share_N}, _merits_by_loss(unseen, classes))


def _own(source: LiveGradients, inverse: Blocks) -> np.ndarray:
    own = SelfInfluence(inverse)
    source.visit(own)
    return _listed(own, source)


def _listed(own: SelfInfluence, source: LiveGradients) -> np.ndarray:
    return np.array([own.values[id_] for id_ in source.ids])


def _merits_by_loss(source: LiveGradients, classes: int) -> np.ndarray:
    """C x N log-probabilities of every label."""
    found = [replace(source, examples=_dealt(source, label)).losses() for label in range(classes)]
    return -np.array([[losses[id_] for id_ in source.ids] for losses in found])


def neighbours(
    train: LiveGradients, ids: Sequence[str], terms: Terms, *, count: int
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Row -> (rows that support it, rows that oppose it), strongest first, scores divided by how loud a row is.

    Args:
        train: all rows.
        ids: rows asked about.
        terms: method and damping.
        count: at most this many on each side.
    """
    inverse = _inverse(train, terms, None)
    asked = prepare_queries(train.only(ids), inverse)
    own, sink = SelfInfluence(inverse), AllScores.empty(len(asked.ids), train.ids)
    visitors: list[Visitor] = [own, Pairwise(asked, sink)]
    train.visit(Together(visitors))
    scores = relative_scores(sink.values, np.array([own.values[id_] for id_ in train.ids]))
    place = {id_: n for n, id_ in enumerate(train.ids)}
    fore, against = ends_of(scores, [place[id_] for id_ in asked.ids], count)

    def named(places: np.ndarray) -> tuple[str, ...]:
        return tuple(train.ids[n] for n in places.tolist() if n >= 0)

    return {id_: (named(fore[k]), named(against[k])) for k, id_ in enumerate(asked.ids)}


def _inverse(train: LiveGradients, terms: Terms, watch: Watcher | None) -> Blocks:
    method, damping = get_method(terms.method), parse_damping(terms.damping)
    contest = Contest(damping=terms.damping, seed=terms.seed) if watch is None else Contest(
        damping=terms.damping, seed=terms.seed, watch=watch
    )  # fmt: skip
    nothing = Queries((), {}, np.zeros(0))
    found = inverse_of(method, damping, train=train, queries=train, contest=contest, raw=nothing)
    if not isinstance(found, Blocks):
        raise OptionError(f"self-influence by {terms.method}", wanted="a block-diagonal method", try_="ekfac or kfac")
    return found


def _mean_question(validation: LiveGradients) -> Queries:
    """The gradient of the mean loss of the validation rows, as one question."""
    raw = collect(validation)
    grads = {name: Full(each.full().mean(0, keepdim=True)) for name, each in raw.grads.items()}
    return Queries(("validation",), grads, raw.measurements.mean(keepdims=True))


def _effect(train: LiveGradients, asked: Queries, label: int) -> np.ndarray:
    """N influences on the question if every row had this label."""
    sink = AllScores.empty(1, train.ids)
    replace(train, examples=_dealt(train, label)).visit(Pairwise(asked, sink))
    return sink.values[0]


def _dealt(source: LiveGradients, label: int) -> list[Example]:
    return [replace(e, labels=np.asarray(label, dtype=e.labels.dtype)) for e in source.examples]
