"""The streaming top-k equals sorting everything, ties and unusable rows included, however the rows arrive."""

from __future__ import annotations

import numpy as np
import pytest

from whence.scores.sinks import TopK


def brute(scores_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    queries = len(scores_QN)
    values, columns = np.full((queries, 2 * k), np.nan), np.full((queries, 2 * k), -1)
    for q, row in enumerate(scores_QN):
        for side, sign in enumerate((1, -1)):
            usable = [n for n in range(len(row)) if np.isfinite(row[n]) and sign * row[n] > 0]
            for place, n in enumerate(sorted(usable, key=lambda n: (-sign * row[n], n))[:k]):
                values[q, side * k + place], columns[q, side * k + place] = row[n], n
    return values, columns


@pytest.mark.parametrize("block", [7, 100, 1000])
@pytest.mark.parametrize("levels", [3, 1000])
def test_blocks_in_any_order(block: int, levels: int) -> None:
    rng = np.random.default_rng(levels + block)
    scores = rng.integers(-levels, levels + 1, (5, 1000)).astype(float)  # few levels: ties everywhere
    scores[:, rng.random(1000) < 0.05] = np.nan
    scores[3] = 0
    scores[4, 20:] = np.nan
    order = rng.permutation(1000)
    sink = TopK({f"r{n}": n for n in range(1000)}, 10, 5)
    for start in range(0, 1000, block):
        here = order[start : start + block]
        sink.put([f"r{n}" for n in here], scores[:, here], None)
    values, columns = sink.finish()
    expected = brute(scores, 10)
    np.testing.assert_array_equal(columns, expected[1])
    np.testing.assert_array_equal(values, expected[0])
