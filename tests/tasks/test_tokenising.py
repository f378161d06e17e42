"""Token ids with their places, of tokenizers that know them and of those that do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from folders import word_tokenizer
from whence.tasks.base import RowProblem
from whence.tasks.tokenising import Tokens, common_prefix, own_limit, tokenise


class Slow:
    """One token per character; refuses what it was told to."""

    is_fast = False

    def __init__(self, refused: str = "") -> None:
        self.refused, self.calls = refused, 0

    def __call__(self, texts: list[str] | str, *, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        self.calls += 1
        if self.refused and any(self.refused in text for text in texts):
            raise ValueError(f"not {self.refused}")
        start = [1] if add_special_tokens else []
        if isinstance(texts, str):
            return {"input_ids": start + [ord(c) for c in texts]}
        return {"input_ids": [start + [ord(c) for c in text] for text in texts]}


def test_a_tokenizer_without_places_gives_ids_alone() -> None:
    (one, two) = tokenise(Slow(), [("ab", False), ("c", True)])
    assert isinstance(one, Tokens) and isinstance(two, Tokens)
    assert one.ids.tolist() == [97, 98] and two.ids.tolist() == [1, 99]
    assert one.spans is None and one.added.tolist() == [False, False] and one.added.dtype == bool


def test_places_are_characters_and_a_blank_has_its_own() -> None:
    (tokens,) = tokenise(word_tokenizer(), [("the cat", True)])
    assert isinstance(tokens, Tokens) and tokens.spans.tolist() == [[0, 3], [4, 7]]
    assert tokens.added.tolist() == [False, False]
    # offsets as a byte-level tokenizer trims them: a start token, a word, a token of one blank, one at the very front
    trimmed = SimpleNamespace(offsets=[(0, 0), (0, 3), (4, 4), (0, 0)], sequence_ids=[None, 0, 0, 0])
    found = Tokens(np.arange(4), trimmed)
    assert found.added.tolist() == [True, False, False, False]
    assert found.spans.tolist() == [[0, 0], [0, 3], [3, 4], [0, 0]]


def test_texts_keep_their_order_whatever_is_added() -> None:
    given = [("a", True), ("b", False), ("c", True), ("d", False)]
    assert [t.ids.tolist() for t in tokenise(Slow(), given)] == [[1, 97], [98], [1, 99], [100]]
    assert tokenise(Slow(), []) == []


def test_one_refused_text_fails_alone() -> None:
    tokenizer = Slow(refused="x")
    found = tokenise(tokenizer, [(text, False) for text in ("a", "b", "x", "d", "e")])
    assert [t.ids.tolist() for t in found if isinstance(t, Tokens)] == [[97], [98], [100], [101]]
    assert isinstance(found[2], RowProblem) and found[2].code == "tokenizer_error"
    assert found[2].message == "the tokenizer refuses this text: ValueError: not x"
    assert tokenizer.calls <= 7  # halves of halves, not one by one


@pytest.mark.parametrize(
    ("own", "limit"), [(512, 512), (10**7 - 1, 10**7 - 1), (10**7, None), (10**30, None), (None, None)]
)
def test_a_huge_limit_is_none(own: int | None, limit: int | None) -> None:
    assert own_limit(SimpleNamespace(model_max_length=own)) == limit
    assert own_limit(object()) is None


@pytest.mark.parametrize(
    ("text", "ids", "wanted"),
    [("abc", "abd", 2), ("abc", "abcd", 3), ("abcd", "ab", 2), ("x", "ab", 0), ("", "ab", 0)],
)
def test_how_far_two_agree(text: str, ids: str, wanted: int) -> None:
    assert common_prefix(Slow(), text, np.array([ord(c) for c in ids]), special=False) == wanted
    assert common_prefix(Slow(), text, np.array([1, *(ord(c) for c in ids)]), special=True) == wanted + 1
