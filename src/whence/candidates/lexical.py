"""Word overlap: the cheapest candidate filter, and the control that every influence ranking is shown beside.

Two scores over the same words:

- ``bm25_scores``: BM25 (Robertson and Zaragoza 2009; the Lucene form as in bm25s), counting repeats and length;
- ``tfidf_scores``: the filter of Grosse et al. 2023 (arXiv 2308.03296, section 5.1), which asks only whether a word
  occurs and has no length norm.

Words are found by one rule for all scripts: Unicode words, case-folded, and single characters where a script writes
no spaces (Han, kana, Thai and their like), so that overlap exists there at all.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import bm25s
import numpy as np

# One alternative per line: a character of a script written without spaces, else a run of word characters.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
    r"|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+"
)


def words(text: str) -> list[str]:
    """The words of a text, in order: NFKC, case-folded.

    >>> words("Ada's cafe, 1843")
    ['ada', 's', 'cafe', '1843']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def bm25_scores(queries: Sequence[str], texts: Sequence[str], *, k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """BM25 of every text for every query.

    Args:
        queries: Q texts.
        texts: N texts.
        k1: how fast repeats of a word stop counting.
        b: how much a long text is held back (0 not at all, 1 in proportion).

    Returns:
        Q x N float32, 0 where no word is shared.
    """
    scores = np.zeros((len(queries), len(texts)), dtype=np.float32)
    corpus = [words(text) for text in texts]
    known = {word for document in corpus for word in document}
    if not known:
        return scores
    index = bm25s.BM25(method="lucene", k1=k1, b=b)
    index.index(corpus, show_progress=False)
    for q, query in enumerate(queries):
        asked = [word for word in words(query) if word in known]
        if asked:
            scores[q] = index.get_scores(asked)
    return scores


def tfidf_scores(queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """The TF-IDF filter of Grosse et al.: the summed rarity of the query's words that occur in the text.

    With ``exists`` = 1 the factor (k1 + 1) exists / (k1 + exists) of the paper is 1 whatever k1 is, so it is left out.
    A word that the query repeats counts once per repeat, as in the paper's sum over query tokens.

    Returns:
        Q x N float32: sum over query words t in the text of log((C - count(t) + 0.5) / (count(t) + 0.5) + 1).
    """
    scores = np.zeros((len(queries), len(texts)), dtype=np.float64)
    wanted = [Counter(words(query)) for query in queries]
    asked = set().union(*wanted) if wanted else set()
    postings: dict[str, list[int]] = {word: [] for word in asked}
    for n, text in enumerate(texts):
        for word in asked.intersection(words(text)):
            postings[word].append(n)
    for q, counts in enumerate(wanted):
        for word, times in counts.items():
            count = len(postings[word])
            rarity = np.log((len(texts) - count + 0.5) / (count + 0.5) + 1.0)
            scores[q, postings[word]] += times * rarity
    return scores.astype(np.float32)
