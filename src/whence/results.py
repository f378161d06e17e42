"""The answer: ``Scores``, plain NumPy data with names. No torch here, so that reading a result starts in a blink.

Sign and unit are fixed (``docs/explanation/conventions.md``): **positive = proponent** (seeing the row more lowers the
query's loss); a raw score divided by the number of training rows N is the predicted rise of the query's loss, in nats,
if the row were removed (``removal_effect``). A row that could not be scored is NaN with a status, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

SCORED = "scored"

# What a result can do that needs floors above this one. ``whence.api`` fills it when it is imported, so that nothing
# here imports upwards: "report" (scores, path) -> path, "save" (scores, folder) -> folder, "notebook" (scores) -> HTML.
RENDERERS: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class RowView:
    """What a person may want to see of a row: id, text and where it came from.

    ``status`` is ``scored``, ``truncated`` (scored on its first tokens only), ``quarantined:<code>`` or, behind the
    filters of a funnel, ``not a candidate``.
    ``spans`` are (kind, text) pieces of the text, such as ("prompt", ...), ("completion", ...); empty when it is one.
    ``image`` is a small PNG of a row that is an image, kept for the questions and for the rows that a report may show.
    """

    id: str
    text: str
    source: str = ""
    location: str = ""
    status: str = SCORED
    spans: tuple[tuple[str, str], ...] = ()
    label: str = ""
    image: bytes = b""


@dataclass(frozen=True)
class Ranked:
    """One line of a ranking."""

    rank: int
    train_id: str
    score: float
    removal_effect: float


@dataclass(frozen=True)
class TokenTrack:
    """Which pieces of one text carry a score.

    Attributes:
        spans: character ranges of the row's text in order; several tokens of one character (byte-level BPE) are one
            span with their scores summed.
        scores: one per span, in the unit of the row's score.
        masked: one per span, True where the token carries no loss; empty = none is masked.
        kind: ``position`` (the outer product at that position), ``output`` (the loss of that token), ``input`` (how the
            score answers to reading it; these do not add up to it), or ``query`` (what the strongest proponents
            contribute to that token of a question).
        rest: the part that belongs to no character (start and end tokens, a chat template): scores + rest = the whole.
    """

    spans: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]
    masked: tuple[bool, ...] = ()
    kind: str = "position"
    rest: float = 0.0

    @property
    def total(self) -> float:
        """All of it: the row's score."""
        return float(np.sum(self.scores)) + self.rest


@dataclass(frozen=True)
class Scores:
    """Influence of training rows on queries.

    Attributes:
        values: Q x N scores in training-row order; or Q x K when ``columns`` is given (streaming top-k).
        query_ids: Q ids.
        train_ids: N ids, all training rows, also those that could not be scored (their values are NaN).
        columns: Q x K indices into ``train_ids`` for top-k results (K proponents then K opponents, best first each,
            -1 where there is none), else None.
        n_train: N used for ``removal_effect``: the number of rows the curvature's mean is over.
        about: provenance: method, damping, fisher, layers, coverage, seeds, fingerprints, versions, times.
        per_layer: Q x N x L scores by layer (same columns as ``values``), or None.
        layer_names: L names for ``per_layer``.
        self_influence: N values g' (G + damping)^-1 g, or None.
        train_rows / query_rows: the texts, joined by id for display; empty when not kept.
        lexical: Q x N BM25 scores (same columns as ``values``), or None.
        token_tracks: (query id, row id) -> tracks, one per definition, for the strongest rows.
        query_tracks: query id -> track over the question's own text.
        token_pairs: (query id, row id) -> query spans x row spans, a last line and column for what has no characters.
        heads: query id -> {layer: one score per attention head}, summed over the strongest proponents.
    """

    values: np.ndarray
    query_ids: tuple[str, ...]
    train_ids: tuple[str, ...]
    n_train: int
    columns: np.ndarray | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    per_layer: np.ndarray | None = None
    layer_names: tuple[str, ...] = ()
    self_influence: np.ndarray | None = None
    train_rows: Mapping[str, RowView] = field(default_factory=dict)
    query_rows: Mapping[str, RowView] = field(default_factory=dict)
    lexical: np.ndarray | None = None
    token_tracks: Mapping[tuple[str, str], tuple[TokenTrack, ...]] = field(default_factory=dict)
    query_tracks: Mapping[str, TokenTrack] = field(default_factory=dict)
    token_pairs: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Scores:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def report(self, path: str | Path) -> Path:
        """Write the one-file HTML report.

        Raises:
            StoreError: the place cannot be written to.
        """
        return RENDERERS["report"](self, path)

    def save(self, folder: str | Path) -> Path:
        """Write scores, rows, provenance and report to a run folder (``whence.load`` reads it back).

        Raises:
            StoreError: the folder is not ours, or in use.
        """
        return RENDERERS["save"](self, folder)

    def query_index(self, query: int | str) -> int:
        """Position of a query given by position or id.

        Raises:
            OptionError: no such query; lists the ids.
        """
        if isinstance(query, str):
            if query not in self.query_ids:
                raise OptionError(
                    f"no query {query!r} in these scores",
                    wanted="a query id or position",
                    try_=did_you_mean(query, self.query_ids),
                )
            return self.query_ids.index(query)
        if not -len(self.query_ids) <= query < len(self.query_ids):
            raise OptionError(
                f"query {query} of {len(self.query_ids)}",
                wanted="a position from 0",
                try_=f"0 to {len(self.query_ids) - 1}",
            )
        return query % len(self.query_ids)

    def row(self, query: int | str = 0) -> np.ndarray:
        """N scores of one query in training-row order, NaN where unknown (unscored, or outside a top-k)."""
        q = self.query_index(query)
        if self.columns is None:
            return self.values[q]
        full = np.full(len(self.train_ids), np.nan, dtype=self.values.dtype)
        known = self.columns[q] >= 0
        full[self.columns[q][known]] = self.values[q][known]
        return full

    def proponents(self, query: int | str = 0, k: int = 10) -> list[Ranked]:
        """The k rows with the highest positive scores, best first; ties in training order."""
        return self._ranked(query, k, sign=1)

    def opponents(self, query: int | str = 0, k: int = 10) -> list[Ranked]:
        """The k rows with the lowest negative scores, most negative first; ties in training order."""
        return self._ranked(query, k, sign=-1)

    def removal_effect(self, query: int | str = 0) -> np.ndarray:
        """N predicted rises of the query's loss, in nats, if each row were left out of training: score / N."""
        return self.row(query) / self.n_train

    def tokens(self, train_id: str, query: int | str = 0) -> tuple[TokenTrack, ...]:
        """Token scores of a training row for a query, one track per definition.

        Raises:
            OptionError: they were not computed for this row; lists the rows that have them.
        """
        query_id = self.query_ids[self.query_index(query)]
        if (query_id, train_id) not in self.token_tracks:
            known = [t for q, t in self.token_tracks if q == query_id]
            raise OptionError(
                f"no token scores of {train_id!r} for {query_id!r}",
                wanted=f"one of {', '.join(known[:6])}" if known else "scores computed with tokens",
                try_="tokens=20 looks into more of the strongest rows",
            )
        return self.token_tracks[query_id, train_id]

    def layers(self, train_id: str | None = None, query: int | str = 0) -> dict[str, float]:
        """Score by layer of one row, or of all proponents together; the layers add up to the total.

        Raises:
            OptionError: layers were not kept, or the row has no score.
        """
        q = self.query_index(query)
        if self.per_layer is None:
            raise OptionError("no scores by layer", wanted="scores computed with per_layer", try_="per_layer=True")
        columns = np.arange(len(self.train_ids)) if self.columns is None else self.columns[q]
        known = np.isfinite(self.values[q]) & (columns >= 0)
        chosen = known & (self.values[q] > 0)
        if train_id is not None:
            at = self.train_ids.index(train_id) if train_id in self.train_ids else -2
            chosen = known & (columns == at)
            if not chosen.any():
                raise OptionError(f"no score of {train_id!r}", wanted="the id of a row with a score")
        summed = self.per_layer[q][chosen].sum(0, dtype=np.float64)
        return dict(zip(self.layer_names, summed.tolist(), strict=True))

    def _repr_html_(self) -> str:
        """The report in a notebook: a sandboxed frame that can neither reach the notebook nor the network."""
        return RENDERERS["notebook"](self)

    def _ranked(self, query: int | str, k: int, *, sign: int) -> list[Ranked]:
        row = self.row(query)
        key = np.where(np.isfinite(row) & (row * sign > 0), -row * sign, np.inf)
        order: Sequence[int] = np.argsort(key, kind="stable")[:k].tolist()
        return [
            Ranked(rank, self.train_ids[n], float(row[n]), float(row[n]) / self.n_train)
            for rank, n in enumerate(order, start=1)
            if np.isfinite(key[n])
        ]

    def to_pandas(self) -> pd.DataFrame:
        """Long table: query_id, train_id, rank, score, removal_effect, lexical, status, source, location, text.

        ``rank`` 1 is the strongest proponent of its query; unscored rows have NaN score and no rank.
        """
        import pandas as pd  # noqa: PLC0415  # heavy, and only wanted by those who ask for a table

        frames = []
        for q, query_id in enumerate(self.query_ids):
            row = self.row(q)
            known = np.arange(len(row)) if self.columns is None else np.sort(self.columns[q][self.columns[q] >= 0])
            views = [self.train_rows.get(self.train_ids[n]) for n in known]
            frame = pd.DataFrame(
                {
                    "query_id": query_id,
                    "train_id": [self.train_ids[n] for n in known],
                    "score": row[known],
                    "removal_effect": row[known] / self.n_train,
                    "status": [v.status if v else SCORED for v in views],
                    "source": [v.source if v else "" for v in views],
                    "location": [v.location if v else "" for v in views],
                    "text": [v.text if v else "" for v in views],
                }
            )
            frame.insert(2, "rank", frame["score"].rank(ascending=False, method="first").astype("Int64"))
            if self.lexical is not None:
                frame.insert(5, "lexical", self._lexical_row(q)[known])
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _lexical_row(self, q: int) -> np.ndarray:
        assert self.lexical is not None
        if self.columns is None:
            return self.lexical[q]
        full = np.full(len(self.train_ids), np.nan)
        known = self.columns[q] >= 0
        full[self.columns[q][known]] = self.lexical[q][known]
        return full
