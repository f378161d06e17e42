"""``mixture``: how much of each source to train on, by the influence of whole sources on a reference set (IDEAL).

One round is: influence of every source at the model there is, one step of the weights, a new sample of the rows. The
next round wants a model trained on that sample; ``after`` takes the weights up where the round before left them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from whence.api import attribute, load
from whence.errors import DataError, OptionError, StoreError
from whence.options import TraceOptions, trace_options
from whence.results import Scores
from whence.select.account import Account, Table, chart
from whence.select.lines import write_counted
from whence.select.mixture import STRENGTH, counts, pulls, step, swaps
from whence.select.origins import Opened, check_same, open_places
from whence.selecting import Mapped, rows_of
from whence.store import atomic
from whence.store.provenance import environment
from whence.watch import Watcher
from whence.written import RECORD, check_out, write_account

WEIGHTS = "weights.json"
UNITS = {"sums": "nats per doubling", "swaps": "nats per row swapped"}
DONE = {"sums": "doubling {}", "swaps": "one row more of {} and one less of the mixture"}
CAUTION = (
    "The step is first order in the weights and the curvature is that of the rows as they were: small steps, a model "
    "trained on the new mixture, and another round (--after) go further than one large step."
)


@dataclass(frozen=True)
class Mixing:
    """One round.

    Attributes:
        strength: m: the source with the largest effect moves by this share.
        size: rows of the new sample; None = as the weights say.
        seed: of the sample.
        after: folder of the round before, whose weights are taken on; None = every source as it is.
        along: ``sums``, the effect of doubling a source, as in IDEAL; or ``swaps``, the effect of one row more of the
            source and one less of the mixture, which keeps its size and does not grow with that of the source.
    """

    strength: float = STRENGTH
    size: int | None = None
    seed: int = 0
    after: str | Path | None = None
    along: Literal["sums", "swaps"] = "sums"

    def __post_init__(self) -> None:
        if self.along not in UNITS:
            raise OptionError(f"along {self.along!r}", wanted="sums or swaps")


@dataclass(frozen=True)
class Mixture:
    """A new mixture.

    Attributes:
        weights: source -> times its rows.
        pulled: source -> fall of the mean reference loss in nats, to first order, per doubling of the source or (along
            swaps) per row swapped for one of it.
        counts: N: how often each row is taken.
        account: what was done and why.
        opened: the rows and their places.
    """

    weights: Mapping[str, float]
    pulled: Mapping[str, float]
    counts: np.ndarray
    account: Account
    opened: Opened

    def write(self, folder: str | Path) -> tuple[Path, ...]:
        """``mixed`` rows (as often as they are taken, in the order of the input), ``weights.json``, the page.

        Raises:
            StoreError: the folder is not ours.
            DataError: the files no longer hold these rows.
        """
        place = check_out(folder)
        files = write_counted(self.opened.origins, self.counts.tolist(), place, "mixed")
        atomic.write_json(place / WEIGHTS, {"weights": dict(self.weights), "pulled": dict(self.pulled)})
        rows = int(self.counts.sum())
        return write_account(place, self.account, [*files, place / WEIGHTS], rows=len(self.counts), mixed=rows)


def mixture(run: Scores | str | Path, *, data: Any = None, how: Mixing | None = None) -> Mixture:
    """The next weights, from the scores of a finished run.

    Args:
        run: folder of ``whence trace`` or scores, not normalised, of all rows; its questions are the reference set.
        data: the rows that were scored; by default those the run names.
        how: one round.

    Raises:
        OptionError: a run that cannot be summed over, or one source only.
        DataError: rows that are not those scored.
    """
    began, how = time.perf_counter(), how or Mixing()
    scores = run if isinstance(run, Scores) else load(run)
    spec, columns = rows_of(run, data)
    _check_additive(scores)
    opened = open_places(spec, columns=columns)
    check_same(opened, scores.train_ids, (scores.about.get("train") or {}).get("fingerprint"))
    before = _weights_before(how, opened)
    if how.along == "swaps":
        pulled = swaps(scores.values, opened.sources, scores.n_train, before)
    else:  # of the source as it is in the mixture by now: (1 + β) times its weighed rows
        pulled = {s: before[s] * p for s, p in pulls(scores.values, opened.sources, scores.n_train).items()}
    weights = step(before, pulled, strength=how.strength)
    taken = counts(opened.sources, weights, seed=how.seed, size=how.size)
    about = {
        "scores": {k: scores.about.get(k) for k in ("method", "damping", "model", "train", "query")},
        "mixing": {**asdict(how), "after": how.after and str(how.after)},
        "environment": environment(),
        "seconds": round(time.perf_counter() - began, 2),
    }
    account = _told(opened, (before, pulled, weights), taken, questions=len(scores.query_ids), about=about)
    return Mixture(weights, pulled, taken, account, opened)


def mixture_for(
    model: Any,
    *,
    train: Any,
    query: Any,
    how: Mixing | None = None,
    watch: Watcher | None = None,
    options: TraceOptions | Mapping[str, Any] | None = None,
) -> Mixture:
    """``mixture`` with the scores computed first; several sources, as ``{"books": path, "code": path}``.

    Raises:
        WhenceError: as ``whence.attribute`` and ``mixture``.
    """
    wanted = trace_options(options, top_k=None, tokens=0, lexical=False, normalise="none", combine="mean")
    scores = attribute(model, train=train, query=query, options=wanted, watch=watch)
    return mixture(scores, data=Mapped(train, wanted.columns), how=how)


def _check_additive(scores: Scores) -> None:
    if scores.columns is not None or scores.about.get("normalise", "none") != "none":
        kind = "the strongest rows only" if scores.columns is not None else "normalised scores"
        raise OptionError(f"a run with {kind}", wanted="plain scores of all rows, which can be added up by source")


def _weights_before(how: Mixing, opened: Opened) -> dict[str, float]:
    """Weights of the round before, or 1 for every source.

    Raises:
        OptionError: one source only: there is nothing to weigh.
        StoreError: no weights in that folder.
        DataError: weights of other sources.
    """
    names = list(dict.fromkeys(opened.sources))
    if len(names) < 2:
        raise OptionError(
            f"one source ({names[0]})", wanted="at least two", try_="--data books=a.jsonl --data code=b.jsonl"
        )
    if how.after is None:
        return dict.fromkeys(names, 1.0)
    place = Path(how.after).expanduser()
    try:
        found = json.loads((place / WEIGHTS).read_text("utf-8"))["weights"]
        weights = {str(name): float(value) for name, value in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{place} holds no weights of a mixture: {error}", wanted=f"{WEIGHTS} and {RECORD}") from error
    if set(weights) != set(names):
        odd = ", ".join(sorted(set(weights) ^ set(names))[:4])
        raise DataError(f"the round before had other sources ({odd})", wanted="the same sources in every round")
    return weights


def _told(
    opened: Opened,
    moved: tuple[Mapping[str, float], ...],
    taken: np.ndarray,
    *,
    questions: int,
    about: Mapping[str, Any],
) -> Account:
    before, pulled, weights = moved
    named = np.array(opened.sources)
    order = sorted(weights, key=lambda source: -pulled[source])
    rows = tuple(
        (s, int((named == s).sum()), f"{pulled[s]:+.4g}", before[s], weights[s], int(taken[named == s].sum()))
        for s in order
    )
    along = about["mixing"]["along"]
    columns = ("source", "rows", UNITS[along], "weight before", "weight now", "rows in the mixture")
    best, worst = order[0], order[-1]
    words = (
        f"To first order, {DONE[along].format(best)} would lower the mean loss of the {questions} reference questions "
        f"by {pulled[best]:.4g} nats, {DONE[along].format(worst)} by {pulled[worst]:.4g}.",
        "Every weight moved in proportion to that number, the largest of them by the strength that was asked for.",
        CAUTION,
    )  # fmt: skip
    spots = [float(n) for n in range(len(order))]
    bars = {"before": (spots, [before[s] for s in order]), "now": (spots, [weights[s] for s in order])}
    drawn = chart("Weights", ("", "times the rows of the source"), bars, kind="bars", groups=order)
    title = f"{int(taken.sum()):,} rows from {len(order)} sources, weighed by influence"
    return Account("mixture", title, words, (Table("Sources", columns, rows),), (drawn,), about)
