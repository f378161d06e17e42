"""Arms for a bandit: rows grouped by what they are like, and how far a few rows are from a reference set."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from whence.candidates.lexical import words
from whence.errors import OptionError

SIZE = 256
ROUNDS = 25


def hashed_features(texts: Sequence[str], *, size: int = SIZE) -> np.ndarray:
    """N x size unit vectors: TF-IDF of words, hashed with signs (Weinberger et al. 2009). No model, no vocabulary."""
    found = [Counter(words(text)) for text in texts]
    seen = Counter(word for counts in found for word in counts)
    vectors = np.zeros((len(texts), size))
    for n, counts in enumerate(found):
        for word, times in counts.items():
            key = zlib.crc32(word.encode("utf-8", "surrogatepass"))
            sign = 1.0 if key & 1 else -1.0
            vectors[n, (key >> 1) % size] += sign * (1 + np.log(times)) * np.log((1 + len(texts)) / (1 + seen[word]))
    return units(vectors)


def units(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def kmeans(vectors_ND: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """N cluster numbers from 0, without gaps (Lloyd, seeded by k-means++).

    Raises:
        OptionError: fewer than one cluster.
    """
    if count < 1:
        raise OptionError(f"{count} clusters", wanted="at least 1")
    vectors = np.asarray(vectors_ND, dtype=np.float64)
    centres = _spread_out(vectors, min(count, len(vectors)), np.random.default_rng(seed))
    found = np.zeros(len(vectors), dtype=np.int64)
    for _ in range(ROUNDS):
        before, found = found, _squared(vectors, centres).argmin(1)
        if np.array_equal(before, found):
            break
        for k in range(len(centres)):
            if (found == k).any():
                centres[k] = vectors[found == k].mean(0)
    return np.unique(found, return_inverse=True)[1]


def _spread_out(vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """First centres, each far from those before with the probability of its squared distance."""
    chosen = [int(rng.integers(len(vectors)))]
    nearest = _squared(vectors, vectors[chosen])[:, 0]
    while len(chosen) < count and nearest.sum() > 0:
        chosen.append(int(rng.choice(len(vectors), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, _squared(vectors, vectors[chosen[-1:]])[:, 0])
    return vectors[chosen].copy()


def _squared(a_ND: np.ndarray, b_KD: np.ndarray) -> np.ndarray:
    """N x K squared distances, never below 0."""
    return np.maximum((a_ND**2).sum(1)[:, None] - 2 * a_ND @ b_KD.T + (b_KD**2).sum(1)[None], 0.0)


def transport(a_XD: np.ndarray, b_YD: np.ndarray, *, blur: float = 0.02, rounds: int = 500) -> float:
    """Cost of moving one set of unit vectors onto another, at 1 - cosine a move (EQUAL's reward is minus this).

    Both sets weigh the same whatever their sizes. Entropic (Sinkhorn in logarithms, Cuturi 2013): ``blur`` is the
    regularisation in units of the cost; the cost of the plan itself is returned, without the entropy term.
    """
    cost_XY = 1.0 - units(a_XD) @ units(b_YD).T
    kernel = -cost_XY / blur
    row = np.full(len(cost_XY), -np.log(len(cost_XY)))
    column = np.full(cost_XY.shape[1], -np.log(cost_XY.shape[1]))
    f, g = np.zeros_like(row), np.zeros_like(column)
    for _ in range(rounds):
        f = row - _logsum(kernel + g[None], 1)
        moved = column - _logsum(kernel + f[:, None], 0)
        done, g = float(np.abs(moved - g).max()) < 1e-9, moved
        if done:
            break
    return float((np.exp(kernel + f[:, None] + g[None]) * cost_XY).sum())


def _logsum(values: np.ndarray, axis: int) -> np.ndarray:
    most = values.max(axis, keepdims=True)
    return (most + np.log(np.exp(values - most).sum(axis, keepdims=True))).squeeze(axis)
