"""Suspicions together, labels suggested, neighbours at both ends."""

from __future__ import annotations

import numpy as np
import pytest

from whence.errors import DataError
from whence.select.labels import ends_of, percentiles, suggest, together


def test_ranks_count_not_units():
    values = np.array([3.0, np.nan, 1.0, 2.0, 2.0])
    np.testing.assert_allclose(percentiles(values), [1.0, np.nan, 0.0, 0.5, 0.5])
    assert percentiles(np.array([7.0]))[0] == 0.5
    other = np.array([1.0, 4.0, 2.0, np.nan, 3.0])
    found = together({"a": values, "b": other * 1e9})
    np.testing.assert_allclose(found, [0.5, 1.0, 1 / 6, 0.5, (0.5 + 2 / 3) / 2])
    with pytest.raises(DataError, match="suspicions of"):
        together({"a": values, "b": other[:2]})


def test_another_label_needs_to_be_better_and_good_enough():
    merits = np.array([[1.0, -1.0, 5.0, np.nan], [2.0, -0.5, 1.0, np.nan], [0.0, -3.0, 2.0, np.nan]])
    given = np.array([0, 0, 0, 2])
    assert suggest(merits, given).tolist() == [1, 1, 0, 2]
    assert suggest(merits, given, least=0.0).tolist() == [1, 0, 0, 2]


def test_supporters_and_opposers_without_the_row_itself():
    scores = np.array([[9.0, 1.0, -2.0, 3.0, np.nan], [0.5, 9.0, 0.0, -1.0, -4.0]])
    fore, against = ends_of(scores, [0, 1], 2)
    assert fore.tolist() == [[3, 1], [0, -1]]
    assert against.tolist() == [[2, -1], [4, 3]]
