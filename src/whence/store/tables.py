"""``Scores`` as parquet tables and back. Long form with names, so that pandas and duckdb read it without us.

Page checksums are switched on for writing and for reading; both are off by default in pyarrow, and then a flipped byte
is read as a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whence.results import SCORED, RowView, Scores
from whence.store import atomic
from whence.store.token_table import read_token_table, token_table

SCORES, ROWS, QUERIES, LAYERS = "scores.parquet", "rows.parquet", "queries.parquet", "layers.parquet"
TOKENS = "tokens.parquet"


def write_tables(folder: Path, scores: Scores) -> list[str]:
    """Write the tables of one result; returns their names."""
    _write(folder / SCORES, (_query_table(scores, q) for q in range(len(scores.query_ids))))
    extra = None if scores.self_influence is None else pa.array(scores.self_influence)
    _write(folder / ROWS, [_rows_table(scores.train_ids, scores.train_rows, extra)])
    _write(folder / QUERIES, [_rows_table(scores.query_ids, scores.query_rows, None)])
    names = [SCORES, ROWS, QUERIES]
    for name in (LAYERS, TOKENS):
        (folder / name).unlink(missing_ok=True)
    if scores.per_layer is not None:
        _write(folder / LAYERS, (_layer_table(scores, q) for q in range(len(scores.query_ids))))
        names.append(LAYERS)
    tokens = token_table(scores)
    if tokens is not None:
        _write(folder / TOKENS, [tokens])
        names.append(TOKENS)
    return names


def write_rows(path: Path, views: Mapping[str, RowView]) -> None:
    """Ids, texts and status of rows, in order."""
    _write(path, [_rows_table(tuple(views), views, None)])


def read_rows(path: Path) -> dict[str, RowView]:
    """The inverse of ``write_rows``."""
    return _views(_read(path))


def shape_record(scores: Scores) -> dict[str, Any]:
    """What the tables alone do not say."""
    return {
        "n_train": scores.n_train,
        "queries": len(scores.query_ids),
        "rows": len(scores.train_ids),
        "kept_per_query": None if scores.columns is None else int(scores.columns.shape[1]),
        "layers": list(scores.layer_names),
        "dtype": str(scores.values.dtype),
        "heads": {q: {name: list(shares) for name, shares in layers.items()} for q, layers in scores.heads.items()},
        "sign": "positive = proponent (seeing the row more lowers the query's loss)",
        "unit": "score / n_train = predicted rise of the query's loss, in nats, if the row were removed",
    }


def read_tables(folder: Path, record: Mapping[str, Any], *, about: Mapping[str, Any]) -> Scores:
    """Rebuild ``Scores`` from the tables of a folder."""
    rows, queries = _read(folder / ROWS), _read(folder / QUERIES)
    train_ids, query_ids = tuple(rows["id"].to_pylist()), tuple(queries["id"].to_pylist())
    width = record["kept_per_query"] if record["kept_per_query"] is not None else len(train_ids)
    shape = (len(query_ids), width)
    table = _read(folder / SCORES)
    if table.num_rows != shape[0] * shape[1] or len(train_ids) != record["rows"]:
        raise ValueError(f"{table.num_rows} scores for {shape[0]} queries x {shape[1]} rows")
    columns = None
    if record["kept_per_query"] is not None:
        columns = _column(table, "column", shape).astype(np.int64, copy=False)
    lexical = _column(table, "lexical", shape) if "lexical" in table.column_names else None
    return Scores(
        values=_column(table, "score", shape).astype(record["dtype"]),
        query_ids=query_ids,
        train_ids=train_ids,
        n_train=record["n_train"],
        columns=columns,
        about=about,
        per_layer=_read_layers(folder, record, shape),
        layer_names=tuple(record["layers"]),
        self_influence=rows["self_influence"].to_numpy() if "self_influence" in rows.column_names else None,
        train_rows=_views(rows),
        query_rows=_views(queries),
        lexical=lexical,
        heads={
            q: {name: tuple(shares) for name, shares in layers.items()} for q, layers in record.get("heads", {}).items()
        },
        **(read_token_table(_read(folder / TOKENS)) if (folder / TOKENS).is_file() else {}),
    )


def _query_table(scores: Scores, q: int) -> pa.Table:
    """One query's lines, in the order of ``values``, so that reading back is a reshape."""
    n = scores.values.shape[1]
    columns = np.arange(n) if scores.columns is None else scores.columns[q]
    values = scores.values[q]
    there = columns >= 0
    names = [scores.train_ids[c] if c >= 0 else None for c in columns.tolist()]
    statuses = [_status(scores, c) if c >= 0 else None for c in columns.tolist()]
    data: dict[str, Any] = {
        "query_id": pa.array([scores.query_ids[q]] * n).dictionary_encode(),
        "train_id": pa.array(names, pa.string()),
        "rank": _ranks(np.where(there, values, np.nan)),
        "score": pa.array(values),
        "removal_effect": pa.array(values / scores.n_train),
    }
    if scores.lexical is not None:
        data["lexical"] = pa.array(scores.lexical[q])
    data["status"] = pa.array(statuses, pa.string()).dictionary_encode()
    data["method"] = pa.array([str(scores.about.get("method", ""))] * n).dictionary_encode()
    if scores.columns is not None:
        data["column"] = pa.array(columns.astype(np.int64))
    return pa.table(data)


def _ranks(values: np.ndarray) -> pa.Array:
    """Rank 1 = strongest proponent; unscored rows have no rank. Ties in row order."""
    order = np.argsort(-values, kind="stable")  # NaN sorts last
    ranks = np.empty(len(values), dtype=np.int32)
    ranks[order] = np.arange(1, len(values) + 1)
    return pa.array(ranks, mask=~np.isfinite(values))


def _status(scores: Scores, column: int) -> str:
    view = scores.train_rows.get(scores.train_ids[column])
    return view.status if view else SCORED


def _layer_table(scores: Scores, q: int) -> pa.Table:
    assert scores.per_layer is not None
    n = scores.per_layer.shape[1]
    named = {f"layer:{name}": pa.array(scores.per_layer[q, :, i]) for i, name in enumerate(scores.layer_names)}
    return pa.table({"query_id": pa.array([scores.query_ids[q]] * n).dictionary_encode(), **named})


def _read_layers(folder: Path, record: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray | None:
    if not record["layers"] or not (folder / LAYERS).is_file():
        return None
    table = _read(folder / LAYERS)
    return np.stack([_column(table, f"layer:{name}", shape) for name in record["layers"]], axis=-1)


def _column(table: pa.Table, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Queries x rows of one column; without any query there is no column."""
    return table[name].to_numpy().reshape(shape) if shape[0] else np.zeros(shape)


def _rows_table(ids: tuple[str, ...], views: Mapping[str, RowView], self_influence: pa.Array | None) -> pa.Table:
    found = [views.get(i, RowView(id=i, text="")) for i in ids]
    kinds = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
    spans = [[{"kind": k, "text": _clean(t)} for k, t in v.spans] for v in found]
    data: dict[str, Any] = {
        "id": pa.array(ids, pa.string()),
        "text": pa.array([_clean(v.text) for v in found], pa.string()),
        "source": pa.array([_clean(v.source) for v in found], pa.string()),
        "location": pa.array([_clean(v.location) for v in found], pa.string()),
        "status": pa.array([v.status for v in found], pa.string()),
        "label": pa.array([_clean(v.label) for v in found], pa.string()),
        "spans": pa.array(spans, kinds),
    }
    if any(v.image for v in found):
        data["image"] = pa.array([v.image for v in found], pa.binary())
    if self_influence is not None:
        data["self_influence"] = self_influence
    return pa.table(data)


def _views(table: pa.Table) -> dict[str, RowView]:
    views = {}
    for record in table.drop_columns([c for c in ("self_influence",) if c in table.column_names]).to_pylist():
        spans = tuple((s["kind"], s["text"]) for s in record.pop("spans"))
        views[record["id"]] = RowView(**record, spans=spans)
    return views


def _clean(text: str) -> str:
    """Text as UTF-8 can hold it (a lone surrogate cannot be stored)."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _write(path: Path, pieces: Iterator[pa.Table] | list[pa.Table]) -> None:
    """One row group per piece, so that a query can be read without the others."""
    with atomic.writing(path) as part:
        writer: pq.ParquetWriter | None = None
        for piece in pieces:
            writer = writer or pq.ParquetWriter(part, piece.schema, compression="zstd", write_page_checksum=True)
            writer.write_table(piece, row_group_size=max(piece.num_rows, 1))
        if writer is None:
            writer = pq.ParquetWriter(part, pa.schema([]))
        writer.close()


def _read(path: Path) -> pa.Table:
    return pq.read_table(path, page_checksum_verification=True, memory_map=False)
