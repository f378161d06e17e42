"""What a report is made of: plain frozen records that turn into JSON. Optional parts are None or empty, never faked.

All character ranges count Unicode code points of the row's text, as Python does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whence.results import TokenTrack as TokenScores


@dataclass(frozen=True)
class Extras:
    """What the scores do not carry, all optional.

    Attributes:
        title: a name for the page.
        command: what was typed, for the provenance panel.
        quarantine: rows left out: mappings or records with ``location``, ``code``, ``message`` and perhaps ``id``.
        tokens: (query id, train id) -> one TokenScores per kind.
        query_tokens: query id -> TokenScores over the query's text.
        groups: train id -> near-duplicate group; exact duplicates are grouped without it.
        rankings: further named Scores of the same queries (another method or checkpoint), shown side by side.
        tables: further tables (the demo's recall table): title, columns, rows, note.
        window: only lines start:stop of every ranking are listed (``whence view``); ``pages`` leads to the others.
        max_cells: most (query, row) pairs listed; beyond it each query lists its strongest rows on both sides.
        max_text: characters kept of one row's text.
    """

    title: str = ""
    command: str = ""
    quarantine: Sequence[Any] = ()
    tokens: Mapping[tuple[str, str], Sequence[TokenScores]] = field(default_factory=dict)
    query_tokens: Mapping[str, TokenScores] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    rankings: Mapping[str, Any] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    window: tuple[int, int] | None = None
    pages: Sequence[Page] = ()
    max_cells: int = 40_000
    max_text: int = 20_000


@dataclass(frozen=True)
class Page:
    """One page of a long list: its name, its address relative to this page, and whether it is this one."""

    name: str
    address: str
    current: bool


@dataclass(frozen=True)
class Table:
    """A small extra table: every cell is text or a number."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class RowText:
    """One training row as shown.

    ``parts`` are (kind, start, end); ``group`` names rows with (nearly) the same text; ``image`` is a PNG in base64.
    """

    id: str
    text: str
    source: str = ""
    location: str = ""
    status: str = "scored"
    label: str = ""
    parts: tuple[tuple[str, int, int], ...] = ()
    clipped: int = 0
    group: str = ""
    self_influence: float | None = None
    image: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a ranking.

    Attributes:
        row: position in ``ReportData.rows``.
        rank: 1 = strongest proponent among ``Ranking.scored`` rows.
        score: raw score.
        removal_effect: predicted rise of the query's loss in nats if the row were left out.
        share: of the positive mass for proponents, of the negative mass for opponents.
        percentile: share of scored rows with a lower score, in percent.
        lexical: BM25, or None.
        lexical_rank: rank by BM25 (1 = most overlap), or None where it is 0 or unknown.
        spurious: one token dominates (token L2 / L1 above 2/3).
    """

    row: int
    rank: int
    score: float
    removal_effect: float
    share: float
    percentile: float
    lexical: float | None = None
    lexical_rank: int | None = None
    spurious: bool = False


@dataclass(frozen=True)
class Ranking:
    """All listed lines, best first. ``complete`` is False for a streamed top-k, whose masses cover the kept rows."""

    lines: tuple[Line, ...]
    scored: int
    complete: bool
    positive_mass: float
    negative_mass: float
    proponents: int
    opponents: int

    @property
    def unlisted(self) -> int:
        """Scored rows that are not among the lines."""
        return max(0, self.scored - len(self.lines))

    def top(self, k: int) -> list[Line]:
        """The k strongest proponents, best first."""
        return [line for line in self.lines[:k] if line.score > 0]

    def bottom(self, k: int) -> list[Line]:
        """The k strongest opponents, most negative first."""
        return [line for line in reversed(self.lines[-k:]) if line.score < 0]


@dataclass(frozen=True)
class Tail:
    """A power law p(x) ~ x^-exponent fitted above ``minimum`` by maximum likelihood, with its KS test."""

    exponent: float
    minimum: float
    count: int
    distance: float
    p_value: float


@dataclass(frozen=True)
class Distribution:
    """How the influence of one query is spread.

    Attributes:
        edges / counts: histogram over scores / N in nats, with edges symmetric and log-spaced away from zero.
        cumulative: (rows, share of positive mass in that many strongest proponents).
        lorenz: (share of proponents, poorest first; share of positive mass).
        survival: (effect in nats, share of proponents at or above it), for the log-log plot.
        gini: 0 = all proponents equal, 1 = one has everything.
        top_10 / top_1_percent: share of the positive mass in the 10 strongest / strongest 1 % of scored rows.
        half_in: how many of the strongest proponents carry half of the positive mass.
        median: median effect in nats.
        tail: fitted tail of the proponents, or None with fewer than 20 of them.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    cumulative: tuple[tuple[int, float], ...]
    lorenz: tuple[tuple[float, float], ...]
    survival: tuple[tuple[float, float], ...]
    gini: float
    top_10: float
    top_1_percent: float
    half_in: int
    median: float
    tail: Tail | None


@dataclass(frozen=True)
class LayerSums:
    """Sums over the listed proponents and opponents, by layer, as shares of that side's total; rows of the top too.

    ``rows`` maps a position in ``ReportData.rows`` to its L scores.
    """

    proponents: tuple[float, ...]
    opponents: tuple[float, ...]
    rows: Mapping[int, tuple[float, ...]]


@dataclass(frozen=True)
class ModuleShare:
    """A group of layers. ``level`` is ``part`` (attention, MLP, other) or ``kind``; shares are of each side's total."""

    level: str
    name: str
    layers: int
    proponents: float | None
    opponents: float | None


@dataclass(frozen=True)
class HeadGrid:
    """Scores by attention head: ``cells[layer][head]``, summed over the strongest proponents; None beyond its heads."""

    layers: tuple[str, ...]
    heads: int
    cells: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class LayerGrid:
    """Layer names arranged by depth and kind; ``cells[d][k]`` is a layer's position or -1."""

    depths: tuple[str, ...]
    kinds: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SourceTotal:
    """Net influence of one source: total removal effect in nats with a bootstrap interval over its rows."""

    source: str
    rows: int
    total: float
    low: float
    high: float
    top_100: int


@dataclass(frozen=True)
class LexicalVerdict:
    """Does word overlap alone explain the ranking? ``level`` is ``explains``, ``partly``, ``little``."""

    level: str
    overlap: int
    of: int
    expected: float
    spearman: float | None
    sentence: str


@dataclass(frozen=True)
class QueryReport:
    """One question and its answer. ``view`` names the method where several rankings are shown side by side.

    ``pairs`` maps a row to its table of question spans x row spans (a last line and column without characters).
    """

    id: str
    view: str
    text: str
    parts: tuple[tuple[str, int, int], ...]
    label: str
    source: str
    location: str
    answer: str
    concentration: str
    ranking: Ranking
    distribution: Distribution | None
    lexical: LexicalVerdict | None = None
    layers: LayerSums | None = None
    sources: tuple[SourceTotal, ...] = ()
    query_tokens: TokenScores | None = None
    tokens: Mapping[int, tuple[TokenScores, ...]] = field(default_factory=dict)
    pairs: Mapping[int, np.ndarray] = field(default_factory=dict)
    modules: tuple[ModuleShare, ...] = ()
    heads: HeadGrid | None = None
    warnings: tuple[str, ...] = ()
    image: str = ""


@dataclass(frozen=True)
class Trust:
    """How far to trust it: ``level`` is ``validated`` or ``not validated``."""

    level: str
    sentence: str


@dataclass(frozen=True)
class Fact:
    """One line of provenance."""

    section: str
    name: str
    value: str


@dataclass(frozen=True)
class LeftOut:
    """A quarantined row."""

    location: str
    code: str
    message: str
    id: str = ""


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows; nothing is computed after this.

    Attributes:
        title: of the page.
        summary: one sentence: what was computed, on which model and data.
        n_train: N of the removal effect; ``unscored`` of the training rows have no score.
        queries: the questions (a question appears once per view).
        rows: the training rows that some ranking lists.
        layers / grid: layer names and their arrangement, empty / None without per-layer scores.
        similarity: Q x Q Spearman correlation of the scores, or None for one query.
        trust / limits: in words.
        facts / command: provenance.
        quarantine / quarantined: rows left out (the first of them) and how many there are.
        tables: extra tables.
        pages: where the other lines of the rankings are, when a server has them.
        unit: of the effects: nats, or the name of the scale of normalised scores.
        untold: why token scores are missing; empty when they are not.
    """

    title: str
    summary: str
    n_train: int
    unscored: int
    queries: tuple[QueryReport, ...]
    rows: tuple[RowText, ...]
    layers: tuple[str, ...]
    grid: LayerGrid | None
    similarity: tuple[tuple[float, ...], ...] | None
    trust: Trust
    limits: tuple[str, ...]
    facts: tuple[Fact, ...]
    command: str
    quarantine: tuple[LeftOut, ...]
    quarantined: int
    tables: tuple[Table, ...] = ()
    pages: tuple[Page, ...] = ()
    unit: str = "nats"
    untold: str = ""
