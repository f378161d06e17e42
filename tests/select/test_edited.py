"""Rows written again with some values changed: whatever was not changed is byte for byte what came in."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whence.errors import DataError
from whence.select.edited import write_edited
from whence.select.origins import open_places

HEADER = b'"the label",text, n\r\n'
ROWS = [
    b'0,"two\nlines, and ""quotes""", 1.50\r\n',
    b'"0",plain\xc3\xa9 ,2\r\n',
    b"1,,\n",
    b"bad,row\n",
    b' 1 ,"a\n\nb",last',
]


def edit(spec, edits, folder):
    return write_edited(open_places(spec).origins, edits, folder, "new")


@pytest.mark.parametrize("zipped", [False, True])
def test_only_the_cell_of_a_table_changes(tmp_path, zipped):
    body = b"\xef\xbb\xbf" + HEADER + ROWS[0] + b"\r\n" + b"".join(ROWS[1:])
    place = tmp_path / ("t.csv.gz" if zipped else "t.csv")
    place.write_bytes(gzip.compress(body) if zipped else body)
    new = {0: {"the label": 7}, 1: {"the label": "x"}, 2: {"text": 'a "b",\nc'}, 4: {"the label": 2, " n": None}}
    (found,) = edit(str(place), new, tmp_path / "out")
    assert found.name == "new.csv"
    expected = [
        b'7,"two\nlines, and ""quotes""", 1.50\r\n',
        b'"x",plain\xc3\xa9 ,2\r\n',
        b'1,"a ""b"",\nc",\n',
        ROWS[3],
        b'2,"a\n\nb",\n',
    ]
    assert found.read_bytes() == HEADER + b"".join(expected)
    (same,) = edit(str(place), {}, tmp_path / "same")
    assert same.read_bytes() == HEADER + b"".join(ROWS) + b"\n"


COLUMNS = ("text", "label", 'o,\t"ther')
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.text('a,\t"\n\r ', max_size=8)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5), new=TEXT, data=st.data())
def test_tables_of_any_content(rows, new, data):
    """Against ``csv`` itself: the edited table says what the old one said, but for the cell."""
    quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    ending = data.draw(st.sampled_from([".csv", ".tsv"]))
    place, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 2))
    terms = {"delimiter": "," if ending == ".csv" else "\t"}
    made = io.StringIO(newline="")
    csv.writer(made, quoting=quoting, **terms).writerows([COLUMNS, *rows])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"t{ending}"
        file.write_bytes(made.getvalue().encode())
        opened = open_places(str(file))
        assert len(opened.rows.ids) == len(rows)
        (found,) = write_edited(opened.origins, {place: {COLUMNS[column]: new}}, Path(folder), "new")
        before = list(csv.reader(io.StringIO(made.getvalue(), newline=""), **terms))
        before[1 + place][column] = new
        after = found.read_bytes().decode()
        assert list(csv.reader(io.StringIO(after, newline=""), **terms)) == before


def test_parquet_keeps_all_other_columns_and_its_schema(tmp_path):
    size = 2500
    frame = pd.DataFrame({"text": [f"row {n}" for n in range(size)], "n": range(size)}).astype({"n": "int16"})
    frame["kind"] = pd.Categorical(["a", "b"] * (size // 2))
    frame["label"] = [None if n == 9 else n % 2 for n in range(size)]
    frame.to_parquet(tmp_path / "p.parquet")
    new = {0: {"label": 1}, 1023: {"label": 0}, 1024: {"kind": "b", "label": 5}, 2499: {"kind": "a"}}
    (found,) = edit(str(tmp_path / "p.parquet"), new, tmp_path / "out")
    assert found.name == "new.parquet"
    assert pq.read_schema(found).equals(pq.read_schema(tmp_path / "p.parquet"), check_metadata=True)
    for n, fields in new.items():
        for name, value in fields.items():
            frame.loc[n, name] = value
    pd.testing.assert_frame_equal(pd.read_parquet(found), frame)
    with pytest.raises(DataError, match="n cannot hold 'many'"):
        edit(str(tmp_path / "p.parquet"), {3: {"n": "many"}}, tmp_path / "bad")
    with pytest.raises(DataError, match="no column 'm'"):
        edit(str(tmp_path / "p.parquet"), {3: {"m": 1}}, tmp_path / "bad")
    assert not list((tmp_path / "bad").glob("*"))


def test_nested_columns_of_parquet_stay(tmp_path):
    rows = [{"text": "a", "label": n, "deep": [{"a": n, "b": [str(n)]}]} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    (found,) = edit(str(tmp_path / "p.parquet"), {2: {"label": 0}}, tmp_path / "out")
    rows[2]["label"] = 0
    assert pq.read_table(found).to_pylist() == rows


def test_sources_of_several_kinds(tmp_path):
    lines = [b'{"label":  0, "text": ""}\r\n', b"not json\n", b'{"label": 1, "text": "\\u00e9"}']
    (tmp_path / "a.jsonl").write_bytes(lines[0] + b"\n" + lines[1] + lines[2])
    (tmp_path / "b.csv").write_bytes(b"label,text\n0,a\n1,b\n")
    (tmp_path / "c.json").write_text(json.dumps([{"label": n, "text": "c"} for n in (0, 1)], indent=2))
    spec = [str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.json")]
    found = edit(spec, {2: {"label": 5}, 3: {"label": 6}, 6: {"label": 7}}, tmp_path / "out")
    assert [p.name for p in found] == ["new-a.jsonl", "new-b.csv", "new-c.jsonl"]
    assert found[0].read_bytes() == lines[0] + lines[1] + '{"label": 5, "text": "é"}\n'.encode()
    assert found[1].read_bytes() == b"label,text\n6,a\n1,b\n"
    assert found[2].read_text() == '{"label": 0, "text": "c"}\n{"label": 7, "text": "c"}\n'
    with pytest.raises(DataError, match="no column 'lable'"):
        edit(spec[1], {0: {"lable": 1}}, tmp_path / "typo")
    opened = open_places(spec[1])
    (tmp_path / "b.csv").write_bytes(b"label,text\n0,a\n")
    with pytest.raises(DataError, match="no line 3 any more"):
        write_edited(opened.origins, {}, tmp_path / "changed", "new")
