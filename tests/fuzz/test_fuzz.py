"""The loader fuzz, few cases of it; ``python -m scorecard`` runs 20,000."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.loader import FAMILIES, READ, one, run
from whence.errors import DataError
from whence.tasks.rows import read_rows

# once these came out wrong: (what, file name, bytes, texts that must be there)
FOUND = [
    ("a quote that swallowed the rows after it", "a.csv", b'text\none\n"two\nthree\nfour\n', ["one", "three", "four"]),
    ("a quote in the middle", "a.csv", b'text,n\none,1\n"x" y,2\nthree,3\n"open,4\nfive,5\n', ["one", "three", "five"]),
    ("a mark of UTF-16 that was only a bad line", "a.jsonl", b'\xff\xfe{"text": 1}\n{"text": "two"}\n', ["two"]),
]


def test_files_of_every_kind(tmp_path: Path) -> None:
    tally = run(700, tmp_path, seed=11)
    assert tally.escapes == []
    assert set(tally.families) == set(FAMILIES)


@pytest.mark.parametrize(("what", "name", "data", "texts"), FOUND, ids=[case[0] for case in FOUND])
def test_what_was_found_stays_mended(tmp_path: Path, what: str, name: str, data: bytes, texts: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert [row.fields["text"] for row in read_rows(str(path), options=READ).rows] == texts


def test_a_parquet_column_whose_name_is_no_text(tmp_path: Path) -> None:
    assert one(11724, tmp_path, seed=0) == "parquet"


def test_a_cell_of_many_lines_is_still_one_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = "\n".join(f'line {n}, with ""quotes""' for n in range(300))
    path.write_text(f'text,n\n"{text}",1\nplain,2\n')
    rows = read_rows(str(path)).rows
    assert [row.fields["text"] for row in rows] == [text.replace('""', '"'), "plain"]
    assert rows[1].location.endswith(":302")


def test_a_case_is_named_for_good(tmp_path: Path) -> None:
    assert [one(n, tmp_path, seed=3) for n in range(20)] == [one(n, tmp_path, seed=3) for n in range(20)]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
bad = st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ")) | st.dictionaries(
    st.sampled_from(["text", "id", "messages", "prompt", "label"]), values, max_size=3
).map(lambda record: json.dumps(record).encode())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(lines=st.lists(bad, max_size=3), at=st.integers(0, 6))
def test_good_rows_around_bad_lines(tmp_path: Path, lines: list[bytes], at: int) -> None:
    """The same by Hypothesis, which makes a failing case small."""
    good = [f"good row {n}" for n in range(6)]
    body = [json.dumps({"text": text}).encode() for text in good]
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\n".join([*body[:at], *lines, *body[at:]]) + b"\n")
    try:
        rows = read_rows(str(path), options=READ)
    except DataError as error:
        assert "UTF-16" in str(error)  # four NULs in a row of every other byte
        return
    assert [row.fields["text"] for row in rows.rows if row.fields.get("text") in good] == good
