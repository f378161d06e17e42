"""Cheap first looks at the training rows, and how much each of them loses."""

from whence.candidates.lexical import bm25_scores, tfidf_scores, words

__all__ = ["bm25_scores", "tfidf_scores", "words"]
