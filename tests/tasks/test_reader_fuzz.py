"""Whatever the bytes, the reader gives rows, a quarantine entry or a DataError, and loses no line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whence.errors import DataError, WhenceError
from whence.tasks.formats import Limits
from whence.tasks.rows import ReadOptions, read_rows

FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
OPTIONS = ReadOptions(max_bad_rows=1.0, dup_ids="suffix", limits=Limits(line_bytes=4096, gzip_floor=2**20))

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
NAMES = (
    "text prompt completion messages conversations input_ids labels attention_mask label id instruction input output "
    "features target tools other"
)
names = st.sampled_from(NAMES.split())
records = st.dictionaries(names, values, max_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@FUZZ
@given(lines=st.lists(st.binary(max_size=60) | records.map(lambda r: json.dumps(r).encode()), max_size=8))
def test_any_lines(folder, lines):
    path = folder / "f.jsonl"
    path.write_bytes(b"\n".join(lines))
    filled = [line for line in b"\n".join(lines).split(b"\n") if line.strip()]
    try:
        rows = read_rows(str(path), options=OPTIONS)
    except DataError as error:
        assert error.exit_code == 3
        return
    assert len(rows) + len(rows.quarantine) == len(filled) == len(rows.ids) == len(set(rows.ids))
    assert all(q.code and q.message and q.location for q in rows.quarantine)


@FUZZ
@given(
    data=st.binary(max_size=300),
    name=st.sampled_from(["a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.json.gz"]),
)
def test_any_bytes_in_any_format(folder, data, name):
    path = folder / name
    for content in (data, gzip.compress(data) if name.endswith(".gz") else b"text\n" + data):
        path.write_bytes(content)
        try:
            rows = read_rows(str(path), options=OPTIONS)
        except WhenceError:
            continue
        assert len(rows) > 0


@FUZZ
@given(
    data=st.lists(records, min_size=1, max_size=6),
    shape=st.sampled_from(["auto", "text", "messages", "input_ids", "features"]),
)
def test_any_records(data: list[dict[str, Any]], shape):
    try:
        rows = read_rows(data, options=ReadOptions(shape=shape, max_bad_rows=1.0, dup_ids="suffix"))
    except DataError:
        return
    assert len(rows) + len(rows.quarantine) == len(data)
    assert read_rows(data, options=ReadOptions(shape=shape, max_bad_rows=1.0, dup_ids="suffix")) == rows


@FUZZ
@given(data=st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_good_rows_come_back_unchanged(folder, data):
    path = folder / "g.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in data))
    assert [r.fields["text"] for r in read_rows(str(path)).rows] == data
