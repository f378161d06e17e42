"""Near-duplicates among rows: groups of texts that share most of their word shingles.

MinHash signatures (Broder 1997) in bands propose pairs, the exact Jaccard similarity of the shingle sets decides, and
pairs are joined to groups. Deterministic: the hash is CRC-32, the permutations are seeded.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from whence.candidates.lexical import words

SHINGLE, PERMUTATIONS, BAND = 4, 64, 4
_PRIME = np.uint64((1 << 31) - 1)  # products of two values below it fit 64 bits


def near_duplicates(texts: Mapping[str, str], *, least: float = 0.7) -> dict[str, str]:
    """Groups of rows with nearly the same text.

    Args:
        texts: id -> text.
        least: Jaccard similarity of word shingles from which two texts count as the same.

    Returns:
        id -> group name (``alike-1`` ...) for rows that have company.
    """
    sets = {id_: shingles(text) for id_, text in texts.items()}
    ids = [id_ for id_, found in sets.items() if found]
    parent = {id_: id_ for id_ in ids}
    for one, other in _proposed(ids, [signature(sets[id_]) for id_ in ids]):
        if _root(parent, one) != _root(parent, other) and jaccard(sets[one], sets[other]) >= least:
            parent[_root(parent, other)] = _root(parent, one)
    members: dict[str, list[str]] = {}
    for id_ in ids:
        members.setdefault(_root(parent, id_), []).append(id_)
    groups = [group for group in members.values() if len(group) > 1]
    return {id_: f"alike-{n}" for n, group in enumerate(groups, start=1) for id_ in group}


def shingles(text: str) -> frozenset[int]:
    """Hashes of all runs of four words; of a shorter text, the whole."""
    found = words(text)
    if not found:
        return frozenset()
    runs = max(1, len(found) - SHINGLE + 1)
    return frozenset(zlib.crc32(" ".join(found[i : i + SHINGLE]).encode("utf-8", "surrogatepass")) for i in range(runs))


def signature(found: frozenset[int]) -> np.ndarray:
    """The smallest hash under each permutation: equal places estimate the Jaccard similarity."""
    values = np.fromiter(found, dtype=np.uint64, count=len(found)) % _PRIME
    return ((values[:, None] * _SLOPES[None] + _SHIFTS[None]) % _PRIME).min(0)


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Shared shingles as a share of all of both."""
    return len(one & other) / max(1, len(one | other))


def _proposed(ids: Sequence[str], signatures: Sequence[np.ndarray]) -> list[tuple[str, str]]:
    """Pairs that agree in all places of some band, each with the first of its bucket and with its neighbour."""
    pairs: dict[tuple[str, str], None] = {}
    for start in range(0, PERMUTATIONS, BAND):
        buckets: dict[bytes, list[str]] = {}
        for id_, values in zip(ids, signatures, strict=True):
            buckets.setdefault(values[start : start + BAND].tobytes(), []).append(id_)
        for bucket in buckets.values():
            for n, id_ in enumerate(bucket[1:], start=1):
                pairs[bucket[0], id_] = None
                pairs[bucket[n - 1], id_] = None
    return list(pairs)


def _root(parent: dict[str, str], id_: str) -> str:
    while parent[id_] != id_:
        parent[id_] = parent[parent[id_]]
        id_ = parent[id_]
    return id_


_DRAWN = np.random.default_rng(0)
_SLOPES = _DRAWN.integers(1, int(_PRIME), PERMUTATIONS, dtype=np.uint64)
_SHIFTS = _DRAWN.integers(0, int(_PRIME), PERMUTATIONS, dtype=np.uint64)
