"""Token scores as one parquet table: a line per track, and per query-token x row-token table.

``train_id`` is null for a question's own track. Of a table (kind ``pairs``) ``scores`` holds its cells line by line,
``width`` cells a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from whence.results import Scores, TokenTrack

PAIRS = "pairs"
_RANGE = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("train_id", pa.string()),
        ("kind", pa.string()),
        ("starts", _RANGE),
        ("ends", _RANGE),
        ("masked", pa.list_(pa.bool_())),
        ("scores", pa.list_(pa.float64())),
        ("rest", pa.float64()),
        ("width", pa.int32()),
    ]
)


def token_table(scores: Scores) -> pa.Table | None:
    """All token scores of a result; None when there are none."""
    lines = list(_lines(scores))
    return pa.Table.from_pylist(lines, schema=SCHEMA) if lines else None


def _lines(scores: Scores) -> Iterator[dict[str, Any]]:
    for query_id, track in scores.query_tracks.items():
        yield _line(query_id, None, track)
    for (query_id, train_id), tracks in scores.token_tracks.items():
        for track in tracks:
            yield _line(query_id, train_id, track)
    for (query_id, train_id), cells in scores.token_pairs.items():
        pair = TokenTrack((), tuple(cells.ravel().tolist()), kind=PAIRS)
        yield {**_line(query_id, train_id, pair), "width": cells.shape[1]}


def _line(query_id: str, train_id: str | None, track: TokenTrack) -> dict[str, Any]:
    return {
        "query_id": query_id,
        "train_id": train_id,
        "kind": track.kind,
        "starts": [start for start, _ in track.spans],
        "ends": [end for _, end in track.spans],
        "masked": list(track.masked),
        "scores": list(track.scores),
        "rest": track.rest,
        "width": 0,
    }


def read_token_table(table: pa.Table) -> dict[str, Any]:
    """The fields of ``Scores`` that ``token_table`` wrote.

    Raises:
        ValueError: lines whose lengths do not fit each other.
    """
    found: dict[str, Any] = {"token_tracks": {}, "query_tracks": {}, "token_pairs": {}}
    for line in table.to_pylist():
        key = line["query_id"], line["train_id"]
        if line["kind"] == PAIRS:
            found["token_pairs"][key] = np.asarray(line["scores"], dtype=np.float32).reshape(-1, line["width"])
            continue
        track = _track(line)
        if line["train_id"] is None:
            found["query_tracks"][line["query_id"]] = track
        else:
            found["token_tracks"][key] = (*found["token_tracks"].get(key, ()), track)
    return found


def _track(line: dict[str, Any]) -> TokenTrack:
    spans = tuple(zip(line["starts"], line["ends"], strict=True))
    if len(line["scores"]) != len(spans) or len(line["masked"]) not in (0, len(spans)):
        raise ValueError(f"a track of {len(spans)} spans with {len(line['scores'])} scores")
    return TokenTrack(spans, tuple(line["scores"]), tuple(line["masked"]), line["kind"], line["rest"])
