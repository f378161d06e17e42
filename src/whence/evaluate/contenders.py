"""Scores of everybody who takes part, by name: methods with their settings, normalised forms, baselines, the control.

A name is one of

- a method as everywhere: ``ekfac``, ``ekfac_cg:steps=20``; with ``@`` its own damping: ``ekfac@relative:0.01``, or
  ``@implied``: the pull that the training itself implies, where the model that it started from is known;
- ``relative:``, ``theta:`` or ``cosine:`` before it, which divides by a length; ``cosine`` alone is the cosine of plain
  gradients, ``dot`` the plain gradient dot product;
- a baseline: ``random``, ``bm25``, ``tfidf``, ``length``, ``embedding``, ``activation``, ``gradient_norm``, ``loss``;
- ``shuffled:NAME``: the scores of that contender given to other questions; ``shuffled`` alone takes the first method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from whence.curvature.base import Fisher, Method, Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.errors import OptionError
from whence.evaluate.baselines import MODEL, SHUFFLED, TEXT, baselines, model_baselines, random_scores, shuffled_query
from whence.gradients.source import LiveGradients, Visitor
from whence.linalg.damping import Damping, parse_damping
from whence.linalg.operators import Blocks, Operator
from whence.scores.relative import Movement, cosine_scores, relative_scores, theta_relative_scores
from whence.scores.score import Pairwise, Queries, SelfInfluence, Together, collect, precondition
from whence.scores.sinks import AllScores
from whence.watch import Silent, Watcher

NORMALISERS = ("relative", "theta", "cosine")
IMPLIED = "implied"
SHORT = {"dot": "identity", "cosine": "cosine:identity"}  # customary names
PROBES = 8  # query gradients for the split-half check of a fit
EVERYONE = (
    "ekfac", "relative:ekfac", "dot", "cosine", "bm25", "tfidf", "embedding", "activation", "gradient_norm", "loss",
    "length", "random", SHUFFLED,
)  # fmt: skip


@dataclass(frozen=True)
class Contest:
    """The terms for everybody.

    Attributes:
        damping: of every method that does not bring its own.
        fisher, fit_rows, seed: of the fits; the seed also of ``random`` and ``shuffled``.
        query_texts, row_texts: what word overlap and ``length`` look at; empty = these take no part.
        watch: hears about progress.
        implied: the damping that ``@implied`` stands for.
    """

    damping: str = "relative:0.1"
    fisher: Fisher = "sampled"
    fit_rows: int | Literal["auto", "all"] = "all"
    seed: int = 0
    query_texts: tuple[str, ...] = ()
    row_texts: tuple[str, ...] = ()
    watch: Watcher = field(default_factory=Silent)
    implied: Damping | None = None


@dataclass(frozen=True)
class Contender:
    """A name taken apart.

    Attributes:
        name: as given.
        kind: ``method``, ``text``, ``model`` or ``shuffled``.
        method: method spec (of ``method``), or whom ``shuffled`` shuffles ("" = the first method).
        normalise: what to divide by, or ``none``.
        damping: its own, or None.
        measured: whether it wants the implied damping.
    """

    name: str
    kind: Literal["method", "text", "model", "shuffled"]
    method: str = ""
    normalise: str = "none"
    damping: Damping | None = None
    measured: bool = False


def parse_contender(name: str) -> Contender:
    """A contender by name.

    Raises:
        OptionError: nobody of that name; lists methods with near matches.
    """
    if name in TEXT or name in MODEL:
        return Contender(name, "text" if name in TEXT else "model")
    if name == SHUFFLED or name.startswith(f"{SHUFFLED}:"):
        return Contender(name, "shuffled", name.removeprefix(SHUFFLED).removeprefix(":"))
    spec, at, damping = SHORT.get(name, name).partition("@")
    spec = SHORT.get(spec, spec)
    head, colon, rest = spec.partition(":")
    how, spec = (head, rest) if colon and head in NORMALISERS else ("none", spec)
    spec = SHORT.get(spec, spec)
    try:
        method = get_method(spec)
    except OptionError as error:
        raise OptionError(
            f"contender {name!r}: {error.got}",
            wanted=f"a method, or one of {', '.join((*TEXT, *MODEL, SHUFFLED))}",
            try_=error.try_,
        ) from error
    how = method.normalise if how == "none" else how
    own = None if not at or damping == IMPLIED else parse_damping(damping)
    return Contender(name, "method", spec, how, own, at != "" and damping == IMPLIED)


def contenders(
    names: Sequence[str], train: LiveGradients, queries: LiveGradients, contest: Contest | None = None
) -> dict[str, np.ndarray]:
    """Q x N scores of everybody, higher = put first, columns in the order of ``train.ids``.

    Args:
        names: see the module; repeated ones count once.
        train: all N training rows.
        queries: Q questions.
        contest: the terms.

    Returns:
        In the order of the names. Text baselines are left out without texts, ``embedding`` where the model has none,
        ``shuffled`` with a single question.

    Raises:
        OptionError: an unknown name, or a normaliser for a method without per-layer inverse.
    """
    contest = contest or Contest()
    parsed = [with_implied(parse_contender(name), contest) for name in dict.fromkeys(names)]
    check_shuffled(parsed)
    found = dict(_baselines(parsed, train, queries, contest))
    for (spec, damping), group in grouped(parsed, parse_damping(contest.damping)).items():
        found |= _scored(get_method(spec), damping, group, train=train, queries=queries, contest=contest)
    for one in parsed:
        whom = _shuffled_whom(one, parsed)
        if whom in found and len(queries.ids) > 1:
            found[one.name] = shuffled_query(found[whom], seed=contest.seed)
    return {one.name: found[one.name] for one in parsed if one.name in found}


def with_implied(one: Contender, contest: Contest) -> Contender:
    """With the implied damping filled in.

    Raises:
        OptionError: it is not known.
    """
    if not one.measured:
        return one
    if contest.implied is None:
        raise OptionError(
            f"contender {one.name!r} without the model that training started from",
            wanted="that model, or a number",
            try_=f"--base ./base, or {one.name.replace('@implied', '@relative:10')}",
        )
    return replace(one, damping=contest.implied)


def grouped(parsed: Sequence[Contender], damping: Damping) -> dict[tuple[str, Damping], list[Contender]]:
    """Methods that share a fit and an inverse, with everybody who uses it."""
    groups: dict[tuple[str, Damping], list[Contender]] = {}
    for one in parsed:
        if one.kind == "method":
            groups.setdefault((one.method, one.damping or damping), []).append(one)
    return groups


def check_shuffled(parsed: Sequence[Contender]) -> None:
    """Whoever is shuffled takes part.

    Raises:
        OptionError: names the one who does not.
    """
    names = [one.name for one in parsed]
    for one in parsed:
        if one.kind == "shuffled" and _shuffled_whom(one, parsed) not in names:
            raise OptionError(f"contender {one.name!r}", wanted="a method that takes part, to be shuffled")


def _shuffled_whom(one: Contender, parsed: Sequence[Contender]) -> str:
    if one.kind != "shuffled":
        return ""
    return one.method or next((other.name for other in parsed if other.kind == "method"), "")


def _baselines(
    parsed: Sequence[Contender], train: LiveGradients, queries: LiveGradients, contest: Contest
) -> Iterator[tuple[str, np.ndarray]]:
    wanted = [one.name for one in parsed if one.kind in ("text", "model")]
    if contest.row_texts and set(wanted) & set(TEXT):
        found = baselines(contest.query_texts, contest.row_texts, seed=contest.seed)
        yield from ((name, found[name]) for name in wanted if name in found)
    elif "random" in wanted:
        yield "random", random_scores(len(queries.ids), len(train.ids), seed=contest.seed)
    asked = [name for name in wanted if name in MODEL]
    if asked:
        yield from model_baselines(train, queries, asked).items()


def inverse_of(
    method: Method, damping: Damping, *, train: LiveGradients, queries: LiveGradients, contest: Contest, raw: Queries
) -> Operator:
    """The method's damped inverse, fitted on the training rows.

    Args:
        method: which.
        damping: added to its curvature.
        train: rows of the fit.
        queries: what ``raw`` are the gradients of.
        contest: the terms.
        raw: query gradients; the first few probe a fit that stops by itself.
    """
    probe = {name: grads.rows(0, PROBES) for name, grads in raw.grads.items()} if len(raw.ids) > PROBES else raw.grads
    settings = FitOptions(contest.fisher, contest.fit_rows, contest.seed, damping=damping)
    counted = train.with_progress(counter(contest.watch, f"fit {method.name}", len(train.ids) * len(method.stages)))
    factors = fit(counted, method, settings, probe=probe)
    problem = Problem(train, contest.fisher, contest.seed, queries)
    return method.operator(factors, problem).power(-1, damping)


def _scored(
    method: Method,
    damping: Damping,
    group: Sequence[Contender],
    *,
    train: LiveGradients,
    queries: LiveGradients,
    contest: Contest,
) -> dict[str, np.ndarray]:
    """One fit, one inverse, one pass over the rows: plain and normalised scores."""
    queries = replace(queries, task=method.measure(queries.task))
    raw = collect(queries)
    inverse = inverse_of(method, damping, train=train, queries=queries, contest=contest, raw=raw)
    ready = precondition(raw, inverse)
    sink = AllScores.empty(len(raw.ids), train.ids)
    norms: dict[str, Any] = {}
    wanted = {one.normalise for one in group}
    if wanted & {"relative", "cosine"}:
        norms["self_influence"] = SelfInfluence(_blocks(inverse, method))
    if "theta" in wanted:
        norms["movement"] = Movement(_blocks(inverse, method))
    visitors: list[Visitor] = [Pairwise(ready, sink), *norms.values()]
    train.with_progress(counter(contest.watch, f"score {method.name}", len(train.ids))).visit(Together(visitors))
    lengths = {name: np.array([visitor.values[id_] for id_ in train.ids]) for name, visitor in norms.items()}
    return {one.name: _normalised(sink.values, one.normalise, lengths, ready) for one in group}


def _normalised(values: np.ndarray, how: str, lengths: Mapping[str, np.ndarray], ready: Queries) -> np.ndarray:
    if how == "relative":
        return relative_scores(values, lengths["self_influence"])
    if how == "theta":
        return theta_relative_scores(values, lengths["movement"])
    if how == "cosine":
        assert ready.self_influence is not None
        return cosine_scores(values, lengths["self_influence"], ready.self_influence)
    return values


def _blocks(inverse: Operator, method: Method) -> Blocks:
    if not isinstance(inverse, Blocks):
        raise OptionError(
            f"method {method.name} has no per-layer inverse",
            wanted="a block-diagonal method for relative, theta and cosine scores",
            try_="relative:ekfac",
        )
    return inverse


def counter(watch: Watcher, stage: str, total: int) -> Callable[[int], None]:
    """Counts examples as batches finish."""
    done = 0

    def count(examples: int) -> None:
        nonlocal done
        done += examples
        watch.step(stage, min(done, total), total)

    return count
