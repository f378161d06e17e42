"""What goes out is byte for byte what came in, whatever the file looks like."""

from __future__ import annotations

import gzip
import json

import datasets
import pandas as pd
import pyarrow.parquet as pq
import pytest

from whence.errors import DataError
from whence.select.lines import write_counted
from whence.select.origins import check_same, open_places

LINES = [
    b'{"text": "a\\u00e9"}\n',
    '{"text":  "spaced é 日本" , "n": 1.50}\n'.encode(),
    b'{"n": 2, "text": "windows"}\r\n',
    b"not json\n",
    b'{"text": "same"}\n',
    b'{"text": "same"}\n',
    b'{"text": "no line break"}',
]
FILE = LINES[0] + b"\n" + LINES[1] + b"  \n" + b"".join(LINES[2:])


def write(spec, counts, folder):
    opened = open_places(spec)
    return opened, write_counted(opened.origins, counts, folder, "kept")


@pytest.mark.parametrize("zipped", [False, True])
def test_json_lines_byte_for_byte(tmp_path, zipped):
    place = tmp_path / ("rows.jsonl.gz" if zipped else "rows.jsonl")
    place.write_bytes(gzip.compress(FILE) if zipped else FILE)
    opened, (kept,) = write(str(place), [1, 0, 1, 1, 0, 1, 0], tmp_path / "out")
    assert kept.name == "kept.jsonl"
    assert kept.read_bytes() == LINES[0] + LINES[2] + LINES[3] + LINES[5]
    _, (last,) = write(str(place), [0, 0, 0, 0, 0, 0, 2], tmp_path / "out2")
    assert last.read_bytes() == (LINES[6] + b"\n") * 2  # a repeated last line gets the line break it never had
    assert opened.rows.ids[3] == "rows:6"


def test_every_row_goes_to_one_side(tmp_path):
    place = tmp_path / "rows.jsonl"
    place.write_bytes(FILE)
    counts = [1, 0, 0, 1, 1, 0, 1]
    _, (kept,) = write(str(place), counts, tmp_path / "a")
    _, (dropped,) = write(str(place), [1 - c for c in counts], tmp_path / "b")
    mixed = kept.read_bytes().splitlines() + dropped.read_bytes().splitlines()
    assert sorted(mixed) == sorted(line for line in FILE.splitlines() if line.strip())


def test_a_mark_at_the_beginning_is_not_carried_into_the_middle(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES[4])
    (tmp_path / "a.jsonl").write_bytes(LINES[0])
    _, (kept,) = write([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], [1, 1], tmp_path / "out")
    assert kept.read_bytes() == LINES[0] + LINES[4]


def test_tables_with_quoted_line_breaks(tmp_path):
    rows = [b'1,"two\nlines, and ""quotes"""\n', b"2,plain\n", b'3,"a\n\nb"\n', b"4,last"]
    (tmp_path / "t.csv").write_bytes(b"n,text\n" + rows[0] + b"\n" + rows[1] + rows[2] + rows[3])
    _, (kept,) = write(str(tmp_path / "t.csv"), [1, 0, 2, 1], tmp_path / "out")
    assert kept.name == "kept.csv"
    assert kept.read_bytes() == b"n,text\n" + rows[0] + rows[2] * 2 + rows[3] + b"\n"


def test_parquet_keeps_its_schema(tmp_path):
    frame = pd.DataFrame({"text": [f"row {n}" for n in range(2500)], "n": range(2500)}).astype({"n": "int16"})
    frame.to_parquet(tmp_path / "p.parquet")
    wanted = [n % 3 == 0 for n in range(2500)]
    _, (kept,) = write(str(tmp_path / "p.parquet"), [int(w) for w in wanted], tmp_path / "out")
    assert pq.read_schema(kept).equals(pq.read_schema(tmp_path / "p.parquet"), check_metadata=True)
    pd.testing.assert_frame_equal(pd.read_parquet(kept), frame[wanted].reset_index(drop=True))


def test_rows_without_lines_become_json(tmp_path):
    items = [{"text": "a", "x": [1, 2]}, {"text": "b", "x": []}, {"text": "c", "x": [3]}]
    (tmp_path / "array.json").write_text(json.dumps(items, indent=1))
    for spec in (items, datasets.Dataset.from_list(items), str(tmp_path / "array.json")):
        opened, (kept,) = write(spec, [1, 0, 2], tmp_path / "out")
        assert opened.origins[0].form == "objects"
        assert [json.loads(line) for line in kept.read_text().splitlines()] == [items[0], items[2], items[2]]


def test_sources_of_different_kinds_get_files_of_their_own(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES[0] + LINES[4])
    (tmp_path / "b.csv").write_bytes(b"text\nx\ny\n")
    _, paths = write(
        {"../odd name": str(tmp_path / "a.jsonl"), "b": str(tmp_path / "b.csv")}, [1, 0, 0, 1], tmp_path / "o"
    )
    assert [p.name for p in paths] == ["kept-odd-name.jsonl", "kept-b.csv"]
    assert paths[0].read_bytes() == LINES[0]
    assert paths[1].read_bytes() == b"text\ny\n"


def test_rows_that_changed_are_refused(tmp_path):
    place = tmp_path / "rows.jsonl"
    place.write_bytes(LINES[0] + LINES[4])
    opened = open_places(str(place))
    check_same(opened, opened.rows.ids, opened.rows.fingerprint)
    with pytest.raises(DataError, match="2 rows, the scores are of 1"):
        check_same(opened, ("rows:1",), None)
    with pytest.raises(DataError, match="have changed since"):
        check_same(opened, opened.rows.ids, "another")
    place.write_bytes(LINES[0])
    with pytest.raises(DataError, match="no line 2 any more"):
        write_counted(opened.origins, [0, 1], tmp_path / "out", "kept")
    with pytest.raises(DataError, match="3 counts for 2 rows"):
        write_counted(opened.origins, [0, 1, 1], tmp_path / "out", "kept")
