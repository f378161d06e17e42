"""``bandit``: rows of a large pool chosen from the gradients of a few: clusters are arms, the best are drawn again.

The rows are read and clustered by their words, the curvature is fitted on a part of them, and only drawn rows get a
backward pass. With ``transport`` as reward no row does: arms are judged by how near their rows are to the questions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from whence.curvature.base import Problem, get_method
from whence.errors import OptionError
from whence.linalg.damping import parse_damping
from whence.linalg.operators import Blocks
from whence.options import TraceOptions, trace_options
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.questions import answered, pose
from whence.scores.relative import relative_scores
from whence.scores.score import Pairwise, Queries, SelfInfluence, Together, collect
from whence.scores.sinks import AllScores
from whence.scoring import check_losses, fitted
from whence.select.account import Account, Table, chart
from whence.select.bandit import Judged, Pulls, Reward, pull
from whence.select.choose import Choice, Rule, choose_by_value
from whence.select.clusters import hashed_features, kmeans, transport
from whence.select.origins import Opened, check_same, open_places
from whence.select.tell import charts_of, ends, sources_table
from whence.selecting import Selection
from whence.stages import PROBES
from whence.store.provenance import environment
from whence.tasks.rows import row_view
from whence.watch import Silent, Watcher

TOLD = 12  # arms in the table


@dataclass(frozen=True)
class Arms:
    """How the pool is judged.

    Attributes:
        rule: what to keep in the end.
        pulls: how many rows may be judged, and how they are drawn.
        count: clusters.
        reward: ``influence`` (Quad) or ``transport`` (EQUAL).
        fit_rows: rows of the curvature fit; these cost gradients too.
    """

    rule: Rule
    pulls: Pulls
    count: int = 64
    reward: Literal["influence", "transport"] = "influence"
    fit_rows: int = 512

    def __post_init__(self) -> None:
        if self.reward not in ("influence", "transport"):
            raise OptionError(f"reward {self.reward!r}", wanted="influence or transport")


@dataclass
class _Ask:
    """What the fit is asked with."""

    method: Any
    damping: Any
    options: TraceOptions
    watch: Watcher
    task: Any = None
    judged: int = field(default=0)


def bandit(
    model: Any,
    *,
    train: Any,
    query: Any,
    arms: Arms,
    watch: Watcher | None = None,
    options: TraceOptions | Mapping[str, Any] | None = None,
) -> Selection:
    """Choose rows of a large pool, judging few of them.

    Args:
        model: as ``whence.attribute``.
        train: the pool.
        query: what the model is to be good at.
        arms: how it is judged.
        watch: hears what is done.
        options: of the influence (method, damping ...); scores are divided by how loud a row is (RelatIF), so that
            few draws do not hang on one loud row.

    Raises:
        WhenceError: as ``whence.attribute``.
    """
    began, watch = time.perf_counter(), watch or Silent()
    settings = trace_options(options, fit_rows=arms.fit_rows)
    subject = open_subject(model, settings, watch)
    pool = open_rows(subject, train, what="train")
    asked = open_rows(subject, answered(subject, query), what="query")
    opened = open_places(train, columns=settings.columns)
    check_same(opened, pool.rows.ids, pool.rows.fingerprint)
    texts = {row.id: row_view(row).text for row in opened.rows.rows}
    features = hashed_features([texts.get(id_, "") for id_ in opened.rows.ids])
    own = kmeans(features, arms.count, seed=arms.pulls.seed)
    watch.note("arms", f"arms      {int(own.max()) + 1} clusters of {len(own):,} rows", count=int(own.max()) + 1)
    if arms.reward == "influence":
        reward, fit = _by_influence(subject, pool, asked, opened.rows.ids, watch=watch)
    else:
        questions = hashed_features([row_view(row).text for row in asked.rows.rows])
        reward, fit = _by_transport(features, questions), 0
    found = pull(own, reward, arms.pulls)
    choice = choose_by_value(found.values, arms.rule, sources=opened.sources)
    about = {
        "method": settings.method, "damping": settings.damping, "reward": arms.reward, "fit_rows": fit,
        "pulls": vars(arms.pulls), "environment": environment(threads=torch.get_num_threads()),
        "seconds": round(time.perf_counter() - began, 2),
    }  # fmt: skip
    return Selection(opened.rows.ids, choice, _told(opened, own, found, choice, arms=arms, about=about), opened)


def _by_influence(
    subject: Subject, pool: Material, asked: Material, ids: Sequence[str], *, watch: Watcher
) -> tuple[Reward, int]:
    """The relative influence of drawn rows on the mean question; and how many rows the fit read."""
    options = subject.options
    ask = _Ask(get_method(options.method), parse_damping(options.damping), options, watch)
    check_losses(asked)
    factors, _ = fitted(ask, pool, collect(asked.source.sample(PROBES)))  # type: ignore[arg-type]
    operator = ask.method.operator(factors, Problem(pool.source, options.fisher, options.seed, asked.source))
    inverse = operator.power(-1, ask.damping)
    if not isinstance(inverse, Blocks):
        raise OptionError(f"method {options.method} for a bandit", wanted="a block-diagonal method", try_="ekfac")
    queries: Queries = pose(subject, asked, inverse)

    def judge(arm: int, rows: Sequence[int]) -> np.ndarray:
        wanted = [ids[n] for n in rows]
        some = pool.source.only(wanted)
        values = dict.fromkeys(wanted, np.nan)
        if len(some.ids):
            own, sink = SelfInfluence(inverse), AllScores.empty(len(queries.ids), some.ids)
            some.visit(Together([own, Pairwise(queries, sink)]))
            scores = relative_scores(sink.values, np.array([own.values[id_] for id_ in some.ids])).mean(0)
            values |= dict(zip(some.ids, scores.tolist(), strict=True))
        ask.judged += len(rows)
        watch.step("judge", ask.judged, ask.judged)
        return np.array([values[id_] for id_ in wanted])

    return judge, int(max((stage["rows"] for stage in factors.about.get("stages", ())), default=0))


def _by_transport(features: np.ndarray, questions: np.ndarray) -> Reward:
    """Minus the cost of moving the drawn rows onto the questions, the same for all of them."""
    return lambda arm, rows: np.full(len(rows), -transport(features[list(rows)], questions))


def _told(
    opened: Opened, own: np.ndarray, found: Judged, choice: Choice, *, arms: Arms, about: Mapping[str, Any]
) -> Account:
    judged, total = int(found.judged.sum()), len(own)
    views = {row.id: row_view(row) for row in opened.rows.rows}
    order = np.argsort(-found.means, kind="stable").tolist()
    lines = []
    for arm in order[:TOLD]:
        members = np.flatnonzero(own == arm)
        text = views[opened.rows.ids[members[0]]].text if opened.rows.ids[members[0]] in views else ""
        kept = int(choice.kept[members].sum())
        lines.append((arm, len(members), int(found.drawn[arm]), f"{found.means[arm]:+.4g}", kept, text[:120]))
    columns = ("arm", "rows", "judged", "mean reward", "kept", "one of its rows")
    cost = f"{judged:,} of {total:,} rows were judged ({100 * judged / total:.3g} %), in {len(found.order):,} draws"
    if arms.reward == "influence":
        cost += f"; the fit read {about['fit_rows']:,} more or the same"
    words = (
        f"{cost}. A row that was not judged has the mean of its cluster for a value.",
        "Rewards are "
        + ("the influence of a row over how loud it is." if arms.reward == "influence" else
           "minus the cost of moving drawn rows onto the questions (1 - cosine of word vectors): no gradient at all."),
        "Clusters are of words, so a bandit finds what words can tell apart.",
    )  # fmt: skip
    title = f"Kept {int(choice.kept.sum()):,} of {total:,} rows, having judged {judged:,}"
    spots = [float(n) for n in range(len(order))]
    drawn = chart(
        "Rows judged by arm, best arm first", ("place of the arm", "rows judged"),
        {"judged": (spots, [float(found.drawn[arm]) for arm in order])}, kind="scatter",
    )  # fmt: skip
    tables = (Table("Best arms", columns, tuple(lines)), sources_table(opened.sources, choice))
    ended = ends(opened.rows.ids, views, choice)
    return Account("bandit", title, words, (*tables, *ended), (drawn, *charts_of(opened.sources, choice)), about)
