"""Near-duplicate groups: copies with small changes are found, different texts are left alone."""

from __future__ import annotations

import numpy as np

from whence.candidates.duplicates import jaccard, near_duplicates, shingles, signature


def sentence(rng, n=60):
    return [f"w{w}" for w in rng.integers(0, 2000, n)]


def test_small_changes_keep_texts_together():
    rng = np.random.default_rng(0)
    texts, wanted = {}, {}
    for n in range(40):
        words = sentence(rng)
        texts[f"a{n}"] = " ".join(words)
        if n % 4 == 0:
            texts[f"b{n}"] = " ".join([*words[:-1], "other"]).upper()
            wanted[n] = {f"a{n}", f"b{n}"}
    groups = near_duplicates(texts)
    found = {}
    for id_, group in groups.items():
        found.setdefault(group, set()).add(id_)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, wanted.values()))
    assert near_duplicates(texts) == groups


def test_signatures_estimate_the_jaccard_similarity():
    rng = np.random.default_rng(1)
    words = sentence(rng, 400)
    one, other = shingles(" ".join(words)), shingles(" ".join(words[:300] + sentence(rng, 100)))
    assert np.mean(signature(one) == signature(other)) == np.clip(jaccard(one, other), 0.45, 0.75).round(1) or (
        abs(np.mean(signature(one) == signature(other)) - jaccard(one, other)) < 0.2
    )


def test_empty_short_and_odd_texts():
    texts = {
        "a": "",
        "b": "",
        "c": "hi",
        "d": "Hi!",
        "e": "\ud800 x",
        "f": "日本語のテキスト",
        "g": "日本語のテキスト。",
    }
    assert near_duplicates(texts) == {"c": "alike-1", "d": "alike-1", "f": "alike-2", "g": "alike-2"}
