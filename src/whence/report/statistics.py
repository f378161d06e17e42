"""The numbers of a report that are more than a lookup: spread, tail, lexical control, source totals.

Every function takes the finite scores of one query divided by N, so that the unit is nats everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy  # its parts are imported when they are first used: most of a second that `whence --help` does not need

from whence.report.records import Distribution, LexicalVerdict, SourceTotal, Tail

TAIL_SHARE, TAIL_LEAST, TAIL_MOST = 0.1, 20, 500
SPURIOUS_RATIO = 2.0 / 3.0  # Grosse et al. 2023: token-wise L2 / L1 above this = one token dominates


def describe(effects: np.ndarray, *, seed: int = 0) -> Distribution | None:
    """How the effects of one query are spread; None without any finite effect.

    Args:
        effects: removal effects in nats, finite.
        seed: of the Monte Carlo p-value of the tail fit.
    """
    if not len(effects):
        return None
    positive = np.sort(effects[effects > 0])[::-1]
    edges, counts = _histogram(effects)
    mass = float(positive.sum())
    running = np.cumsum(positive) / mass if mass > 0 else np.zeros(0)
    one_percent = max(1, round(len(effects) * 0.01))
    return Distribution(
        edges=edges,
        counts=counts,
        cumulative=tuple((k, float(running[k - 1])) for k in _log_counts(len(positive))),
        lorenz=_lorenz(positive),
        survival=tuple((float(positive[k - 1]), k / len(positive)) for k in _log_counts(len(positive))),
        gini=_gini(positive),
        top_10=float(running[min(10, len(running)) - 1]) if len(running) else 0.0,
        top_1_percent=float(running[min(one_percent, len(running)) - 1]) if len(running) else 0.0,
        half_in=int(np.searchsorted(running, 0.5) + 1) if len(running) else 0,
        median=float(np.median(effects)),
        tail=fit_tail(positive, seed=seed),
    )


def _log_counts(n: int, points: int = 60) -> list[int]:
    """1 ... n, at most ``points`` of them, evenly spread on a log axis."""
    if n == 0:
        return []
    return sorted({round(x) for x in np.geomspace(1, n, min(n, points)).tolist()} | {n})


def _histogram(effects: np.ndarray, bins_per_side: int = 24) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Symmetric log-spaced bins: four decades below the largest size, and one bin around zero."""
    largest = float(np.abs(effects).max())
    if largest == 0.0:
        return (-1.0, 1.0), (len(effects),)
    side = largest * np.geomspace(1e-4, 1.0, bins_per_side + 1)
    edges = np.concatenate([-side[::-1], side])
    edges[0], edges[-1] = np.nextafter(edges[0], -np.inf), np.nextafter(edges[-1], np.inf)
    counts, _ = np.histogram(effects, edges)
    return tuple(edges.tolist()), tuple(int(c) for c in counts)


def _lorenz(positive: np.ndarray, points: int = 50) -> tuple[tuple[float, float], ...]:
    if not len(positive) or positive.sum() <= 0:
        return ()
    rising = np.concatenate([[0.0], np.cumsum(positive[::-1]) / positive.sum()])
    at = np.unique(np.linspace(0, len(positive), min(points, len(positive) + 1)).round().astype(int))
    return tuple((float(k) / len(positive), float(rising[k])) for k in at)


def _gini(positive: np.ndarray) -> float:
    if not len(positive) or positive.sum() <= 0:
        return 0.0
    rising, n = positive[::-1], len(positive)
    return float((2 * np.arange(1, n + 1) - n - 1) @ rising / (n * rising.sum()))


def fit_tail(positive: np.ndarray, *, seed: int = 0, samples: int = 200) -> Tail | None:
    """Power-law tail by maximum likelihood with a Monte Carlo Kolmogorov-Smirnov p-value.

    exponent = 1 + n / sum log(x_i / x_min) over the strongest tenth (20 to 500) of the proponents; Clauset, Shalizi
    and Newman 2009, eq. 3.1 and section 4. A high p-value means that a power law is not ruled out.

    Args:
        positive: effects above zero, largest first.
        seed: of the simulated samples.
        samples: how many are simulated.
    """
    count = int(min(TAIL_MOST, max(TAIL_LEAST, round(len(positive) * TAIL_SHARE))))
    if len(positive) < count or count < TAIL_LEAST:
        return None
    tail = np.sort(positive[:count].astype(np.float64))
    logs = np.log(tail / tail[0])
    if logs.sum() <= 0:
        return None
    exponent, distance = _fit_logs(logs[None])
    generator = np.random.default_rng(seed)
    simulated = np.sort(generator.exponential(1.0 / (exponent[0] - 1.0), (samples, count)), axis=1)
    _, distances = _fit_logs(simulated - simulated[:, :1])
    return Tail(
        exponent=float(exponent[0]),
        minimum=float(tail[0]),
        count=count,
        distance=float(distance[0]),
        p_value=float((distances >= distance[0]).mean()),
    )


def _fit_logs(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exponents and KS distances of S samples of sorted log(x / x_min), S x n."""
    n = logs.shape[1]
    exponent = 1.0 + n / logs.sum(1)
    model = 1.0 - np.exp(-(exponent - 1.0)[:, None] * logs)
    upper, lower = np.arange(1, n + 1) / n, np.arange(n) / n
    return exponent, np.maximum(np.abs(upper - model), np.abs(lower - model)).max(1)


def judge_lexical(scores: np.ndarray, lexical: np.ndarray, k: int = 10) -> LexicalVerdict | None:
    """Would word overlap alone have found the strongest proponents?

    Args:
        scores: finite scores of one query.
        lexical: BM25 of the same rows.
        k: how many of the strongest are compared.

    Returns:
        None where nothing can be said: no proponent, or no word shared with any row.
    """
    k = min(k, int((scores > 0).sum()))
    if k == 0 or not (lexical > 0).any() or len(scores) < 2:
        return None
    ours = np.argsort(-scores, kind="stable")[:k]
    theirs = np.argsort(-lexical, kind="stable")[:k]
    found = len(set(ours.tolist()) & {n for n in theirs.tolist() if lexical[n] > 0})
    table = rank_correlation(np.stack([scores, lexical]))
    rho = table[0][1] if table else None
    expected = k * k / len(scores)
    share = found / k
    # Small sets overlap by chance; only an overlap well above chance says anything.
    level = "little" if found <= 2 * expected or share < 0.3 else "explains" if share >= 0.6 else "partly"
    return LexicalVerdict(level, found, k, expected, rho, _lexical_words(level, found, k, expected))


def _lexical_words(level: str, found: int, k: int, expected: float) -> str:
    said = f"{found} of the {k} strongest proponents are also among the {k} rows that share most words (BM25)"
    if level == "explains":
        return f"Word overlap alone explains most of this ranking: {said}. A text search would have found these rows."
    if level == "partly":
        return f"Word overlap explains part of this ranking: {said}."
    if found >= 0.3 * k:
        return f"Word overlap cannot be told from chance in so few rows: {said}; {expected:.1f} would be by chance."
    return f"Word overlap does not explain this ranking: {said}."


def total_by_source(
    effects: np.ndarray, sources: Sequence[str], *, seed: int = 0, samples: int = 400
) -> list[tuple[SourceTotal, ...]]:
    """Net effect of each source with a 95 % bootstrap interval over its rows, largest size first, for each query.

    Args:
        effects: Q x N removal effects in nats; NaN counts as nothing.
        sources: N source names.
        seed: of the resampling (rows within a source, the same draw for every query).
        samples: how many resamples.
    """
    moved = np.nan_to_num(effects).astype(np.float64)
    members: dict[str, list[int]] = {}  # not an array of names: NumPy drops NUL at the end of a text when it compares
    for n, name in enumerate(sources):
        members.setdefault(name, []).append(n)
    strongest = np.argsort(-moved, axis=1, kind="stable")[:, :100]
    in_top = np.zeros(moved.shape, dtype=bool)
    np.put_along_axis(in_top, strongest, True, axis=1)
    in_top &= moved > 0
    generator = np.random.default_rng(seed)
    found: list[list[SourceTotal]] = [[] for _ in moved]
    for name, at in sorted(members.items()):
        drawn = generator.multinomial(len(at), np.full(len(at), 1.0 / len(at)), samples) @ moved[:, at].T
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        for q, line in enumerate(found):
            total, top = float(moved[q, at].sum()), int(in_top[q, at].sum())
            line.append(SourceTotal(name, len(at), total, float(low[q]), float(high[q]), top))
    return [tuple(sorted(line, key=lambda t: -abs(t.total))) for line in found]


def one_token_dominates(token_scores: np.ndarray) -> bool:
    """True if the token scores' L2 / L1 ratio exceeds 2/3: the spurious-hit rule of Grosse et al. 2023.

    A row of one or two tokens always passes the ratio, and is not called spurious for being short.
    """
    total = float(np.abs(token_scores).sum())
    return len(token_scores) > 2 and total > 0 and float(np.linalg.norm(token_scores)) / total > SPURIOUS_RATIO


def rank_correlation(rows: np.ndarray) -> tuple[tuple[float, ...], ...] | None:
    """Q x Q Spearman correlation of score rows over the columns where all are finite; None with fewer than 3 such."""
    known = np.isfinite(rows).all(0)
    if len(rows) < 2 or known.sum() < 3:
        return None
    ranks = scipy.stats.rankdata(rows[:, known], axis=1)
    centred = ranks - ranks.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    safe = np.where(norms > 0, norms, 1.0)
    table = (centred @ centred.T) / np.outer(safe, safe)
    return tuple(tuple(float(x) for x in line) for line in np.clip(table, -1.0, 1.0))
