"""Cheap contenders that every evaluation shows beside the methods: whoever does not beat these explains nothing.

From texts: ``random``, ``bm25``, ``tfidf``, ``length``. From one forward pass: ``embedding`` and ``activation``
similarity, ``loss``. From the gradient's size alone: ``gradient_norm``. As a control, ``shuffled_query`` gives each
question the ranking of another one: what is left then was never about the question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whence.candidates.features import cosines, forward_features
from whence.candidates.lexical import bm25_scores, tfidf_scores, words
from whence.errors import OptionError
from whence.gradients.source import LiveGradients
from whence.scores.lengths import SquaredNorms

TEXT = ("random", "bm25", "tfidf", "length")
MODEL = ("embedding", "activation", "gradient_norm", "loss")
SHUFFLED = "shuffled"


# --- from texts ----------------------------------------------------------------------------------------------------


def baselines(queries: Sequence[str], rows: Sequence[str], *, seed: int = 0) -> dict[str, np.ndarray]:
    """Q x N scores that need no model.

    Args:
        queries: Q texts, question and answer together.
        rows: N texts.
        seed: of ``random``.

    Returns:
        ``random`` uniform; ``bm25`` and ``tfidf`` as in ``candidates.lexical``; ``length`` the number of words.
    """
    length_N = np.array([float(len(words(text))) for text in rows])
    return {
        "random": random_scores(len(queries), len(rows), seed=seed),
        "bm25": bm25_scores(queries, rows).astype(np.float64),
        "tfidf": tfidf_scores(queries, rows).astype(np.float64),
        "length": np.tile(length_N, (len(queries), 1)),
    }


def random_scores(queries: int, rows: int, *, seed: int) -> np.ndarray:
    """Q x N uniform numbers."""
    return np.random.default_rng(seed).random((queries, rows))


def shuffled_query(scores_QN: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Each query gets the scores of another one (never its own).

    Raises:
        OptionError: fewer than two queries: there is no other.
    """
    count = len(scores_QN)
    if count < 2:
        raise OptionError("the control shuffled with one question", wanted="at least two questions")
    order = np.random.default_rng(seed).permutation(count)
    given = np.empty(count, dtype=np.int64)
    given[order] = np.roll(order, 1)  # one cycle through all: nobody keeps their own
    return scores_QN[given]


# --- from the model ------------------------------------------------------------------------------------------------


def model_baselines(
    train: LiveGradients, queries: LiveGradients, names: Sequence[str] = MODEL
) -> dict[str, np.ndarray]:
    """Q x N scores from the model without any curvature.

    Args:
        train: N rows.
        queries: Q questions, same model and task.
        names: which of ``MODEL``.

    Returns:
        ``embedding``: cosine of mean token embeddings (of the features, for tasks without tokens); ``activation``:
        cosine of mean last hidden states; both about the training rows' mean, without which every pair is alike.
        ``loss`` and ``gradient_norm``: of the training row, the same for every question. A row whose value is not
        finite gets NaN. A model without token embeddings or features has no ``embedding``.
    """
    found: dict[str, np.ndarray] = {}
    if set(names) & {"embedding", "activation", "loss"}:
        rows, asked = forward_features(train), forward_features(queries)
        for name in ("embedding", "activation"):
            if name in names and name in rows.vectors and name in asked.vectors:
                found[name] = cosines(asked.vectors[name], rows.vectors[name])
        if "loss" in names:
            found["loss"] = np.tile(rows.losses, (len(queries.ids), 1))
    if "gradient_norm" in names:
        found["gradient_norm"] = np.tile(np.sqrt(gradient_norms(train)), (len(queries.ids), 1))
    return {name: found[name] for name in names if name in found}


def gradient_norms(source: LiveGradients) -> np.ndarray:
    """N squared lengths of the loss gradients over the followed layers; NaN where not finite."""
    visitor = SquaredNorms()
    source.visit(visitor)
    return np.array([visitor.values[id_] for id_ in source.ids])
