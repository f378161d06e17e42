"""BM25 and the TF-IDF filter, each against a for-loop twin."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from whence.candidates import bm25_scores, tfidf_scores, words

TEXTS = [
    "Ada Venn was born in Port Selene.",
    "Port Selene is a harbour. Port Selene has a mole.",
    "The mole eats; the harbour sleeps.",
    "",
    "東京で生まれた",
]
QUERIES = ["Where was Ada born? In Port Selene, Port Selene.", "zebra", "", "東京"]


def _bm25_by_hand(query: str, text: str, k1: float, b: float) -> float:
    corpus = [words(t) for t in TEXTS]
    mean = sum(map(len, corpus)) / len(corpus)
    here, total = Counter(words(text)), 0.0
    for word in words(query):
        having = sum(word in d for d in corpus)
        if not here[word]:
            continue
        rarity = math.log(1 + (len(TEXTS) - having + 0.5) / (having + 0.5))
        total += rarity * here[word] / (here[word] + k1 * (1 - b + b * len(words(text)) / mean))
    return total


def test_bm25_equals_the_formula():
    got = bm25_scores(QUERIES, TEXTS)
    want = [[_bm25_by_hand(q, t, 1.5, 0.75) for t in TEXTS] for q in QUERIES]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_bm25_of_nothing_is_zero():
    assert bm25_scores(["a"], []).shape == (1, 0)
    assert bm25_scores([], ["a"]).shape == (0, 1)
    assert not bm25_scores(["a b"], ["", "  "]).any()


def test_tfidf_equals_the_paper():
    got = tfidf_scores(QUERIES, TEXTS)
    for q, query in enumerate(QUERIES):
        for n, text in enumerate(TEXTS):
            want = 0.0
            for word in words(query):
                count = sum(word in words(t) for t in TEXTS)
                k1, exists = 1.5, float(word in words(text))
                idf = math.log((len(TEXTS) - count + 0.5) / (count + 0.5) + 1)
                want += (k1 + 1) * exists / (k1 + exists) * idf
            assert math.isclose(got[q, n], want, rel_tol=1e-6, abs_tol=1e-6)


def test_words_of_many_scripts():
    assert words("Ａda CAFÉ straße 42") == ["ada", "café", "strasse", "42"]
    assert words("東京で") == ["東", "京", "で"]
    assert words("مرحبا بالعالم") == ["مرحبا", "بالعالم"]
    assert words("\x00\u202e!?") == []
