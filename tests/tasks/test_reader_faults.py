"""The faults of rows and files, one test or more each: one bad row never stops a run, too many stop it clearly."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whence.errors import DataError
from whence.tasks.formats import Limits, depth, has_surrogate
from whence.tasks.rows import ReadOptions, check_bad_rows, read_rows

GOOD = b'{"text": "a good row"}'
ANY = ReadOptions(max_bad_rows=0.99)


def read_lines(write, *lines: bytes, options: ReadOptions = ANY, end: bytes = b"\n"):
    """Good rows around the given lines."""
    body = [GOOD, *lines, GOOD, GOOD, GOOD, GOOD]
    return read_rows(write("f.jsonl", b"\n".join(body) + end), options=options)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"text": ', "invalid_json"),  # F1
        (b"not json", "invalid_json"),
        (b'{"text": "a"} trailing', "invalid_json"),
        (b'{"text": "tab\there"}', "invalid_json"),
        (b'{"n": ' + b"9" * 5000 + b', "text": "x"}', "invalid_json"),
        (b'{"text": "\xff\xfe"}', "not_utf8"),  # F3
        (b'{"text": "\xed\xa0\x80"}', "not_utf8"),  # a surrogate in "UTF-8"
        (b'{"text": "\\ud800"}', "lone_surrogate"),  # F4
        (b'{"text": "x", "meta": {"k": ["\\udfff"]}}', "lone_surrogate"),
        (b'{"text": "x", "\\udbff": 1}', "lone_surrogate"),
        (b"[" * 70 + b"]" * 70, "not_an_object"),  # F5
        (b'{"text": "x", "deep": ' + b"[" * 64 + b"]" * 64 + b"}", "too_deep"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a":' * 100_000, "too_deep"),
        (b"[1, 2]", "not_an_object"),  # F6
        (b"5", "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b'{"text": null}', "null_text"),
        (b'{"text": 5}', "wrong_type"),
        (b'{"text": ["a"]}', "wrong_type"),
        (b'{"body": "a"}', "missing_column"),
        (b'{"prompt": "a", "completion": "b"}', "missing_column"),
        (b'{"text": "a", "text": "b"}', "duplicate_key"),
        (b'{"text": "a", "meta": {"k": 1, "k": 2}}', "duplicate_key"),
    ],
)
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_bad_line_is_quarantined_with_its_place(write, line, code, place):
    body = [GOOD] * 4
    number = {"start": 1, "middle": 3, "end": 5}[place]
    body.insert(number - 1, line)
    rows = read_rows(write("f.jsonl", b"\n".join(body) + b"\n"), options=ANY)
    assert len(rows) == 4
    assert [q.code for q in rows.quarantine] == [code]
    assert rows.quarantine[0].location.split(".jsonl:")[1].split(":")[0] == str(number)
    assert rows.quarantine[0].id == f"f:{number}"
    assert rows.ids == tuple(f"f:{n}" for n in range(1, 6))


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "\\ud83d\\ude00"}',  # a proper pair
        b'{"text": "nul \\u0000 and \\u001b escape"}',  # control characters are shown escaped, not refused
        '{"text": "\u202e right to left \ufeff"}'.encode(),
        b'{"text": "x", "score": NaN, "big": 1e999}',
        b'   {"text": "spaces"}   ',
        b'{"text": "windows"}\r',
        b'{"text": "x", "deep": ' + b"[" * 63 + b"]" * 63 + b"}",
        b'{"text": "' + b"[" * 100 + b'"}',  # brackets in text are no nesting
    ],
)
def test_odd_but_good_lines(write, line):
    rows = read_lines(write, line)
    assert len(rows) == 6
    assert not rows.quarantine


def test_a_cut_file_names_its_last_line_at_every_byte(write):
    """F2: cut at every byte of the last two lines; never an error, never a wrong row."""
    whole = [{"text": "fill"}] * 40 + [
        {"text": "größer 😀", "id": "a", "n": [1, {"k": None}]},
        {"text": "last é", "id": "b"},
    ]
    data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in whole).encode()
    lines = data.splitlines(keepends=True)
    for cut in range(len(b"".join(lines[:-2])), len(data) + 1):
        rows = read_rows(write("c.jsonl", data[:cut]), options=ReadOptions(max_bad_rows=1))
        expected = [
            r for r, n in zip(whole, _ends(lines), strict=True) if n - 1 <= cut
        ]  # the line break may be missing
        assert [dict(r.fields) for r in rows.rows] == expected
        assert all(q.code == "truncated" for q in rows.quarantine)
        assert all("was the program" in q.message for q in rows.quarantine)


def _ends(lines: list[bytes]) -> list[int]:
    total, ends = 0, []
    for line in lines:
        total += len(line)
        ends.append(total)
    return ends


def test_byte_order_marks(write):
    assert len(read_rows(write("a.jsonl", b"\xef\xbb\xbf" + GOOD + b"\n"))) == 1
    assert len(read_rows(write("a.csv", b"\xef\xbb\xbftext\nx\n"))) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named(write, encoding):
    with pytest.raises(DataError, match="UTF-16") as caught:
        read_rows(write("a.jsonl", (GOOD.decode() + "\n").encode(encoding)))
    assert "iconv" in caught.value.try_


def test_long_lines_are_skipped_whole(write):
    limits = Limits(line_bytes=1000)
    long = b'{"text": "' + b"x" * 5000 + b'"}'
    exact = b'{"text": "' + b"y" * (1000 - 13) + b'"}'  # 999 bytes and a line break
    rows = read_lines(write, long, exact, options=ReadOptions(max_bad_rows=0.5, limits=limits))
    assert [q.code for q in rows.quarantine] == ["line_too_long"]
    assert rows.quarantine[0].id == "f:2"
    assert len(rows) == 6


_PEAK = """
import json, sys
from pathlib import Path
from whence.store.provenance import peak_memory_bytes
from whence.tasks.rows import ReadOptions, read_rows
before = peak_memory_bytes()
rows = read_rows(sys.argv[1], options=ReadOptions(max_bad_rows=0.9))
print(json.dumps({"rows": len(rows), "codes": [q.code for q in rows.quarantine],
                  "grown": (peak_memory_bytes() - before) / 1e6}))
"""


def test_a_200_mb_line_costs_little_memory(tmp_path):
    """F5, in a process of its own: peak memory is only ever seen to rise."""
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'\n{"text": "')
        file.seek(200 * 2**20)  # a hole: NULs, and quick
        file.write(b'"}\n' + GOOD + b"\n")
    done = subprocess.run([sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["rows"] == 2
    assert seen["codes"] == ["line_too_long"]
    assert seen["grown"] < 250


def test_a_gzip_bomb_is_stopped(tmp_path):
    """F15: zeros expand a thousandfold."""
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(GOOD + b"\n")
        for _ in range(40):
            file.write(b"\0" * 2**20)
    limits = Limits(line_bytes=2**20, gzip_floor=8 * 2**20)
    with pytest.raises(DataError, match="bomb"):
        read_rows(str(path), options=ReadOptions(limits=limits))
    with gzip.open(path, "wb") as file:  # honest repetition below the floor is nothing to complain of
        file.write((GOOD + b"\n") * 1000)
    assert len(read_rows(str(path), options=ReadOptions(limits=limits))) == 1000


def test_cut_and_false_gzip(write):
    data = gzip.compress(b"".join(b'{"text": "row %d %d"}\n' % (n, n * n * 7919) for n in range(5000)))
    rows = read_rows(write("a.jsonl.gz", data[: len(data) // 2]), options=ReadOptions(max_bad_rows=2))
    assert rows.quarantine[-1].code == "truncated"
    assert len(rows) > 1000
    with pytest.raises(DataError, match="gzip"):
        read_rows(write("b.jsonl.gz", GOOD))


def test_more_than_half_wrong_names_the_columns(write):
    with pytest.raises(DataError, match="wrong_type") as caught:
        read_rows(write("a.jsonl", [{"text": 5, "review": "x"}] * 8 + [{"text": "x", "review": "y"}] * 2))
    assert "review" in caught.value.try_
    assert "a.jsonl:1" in str(caught.value)


def test_the_limit_is_a_share_or_a_count(write):
    data = [{"text": "x"}] * 98 + [{"text": None}] * 2
    with pytest.raises(DataError, match="2 of 100 rows") as caught:
        read_rows(data)
    assert "max-bad-rows" in caught.value.try_
    assert len(read_rows(data, options=ReadOptions(max_bad_rows=0.02)).quarantine) == 2
    assert len(read_rows(data, options=ReadOptions(max_bad_rows=2)).quarantine) == 2
    with pytest.raises(DataError):
        read_rows(data, options=ReadOptions(max_bad_rows=1))
    assert len(read_rows(data, options=ReadOptions(max_bad_rows=1.0))) == 98


def test_all_bad_is_an_error_whatever_is_allowed(write):
    with pytest.raises(DataError) as caught:
        read_rows(write("a.jsonl", b"nonsense\n" * 3), options=ReadOptions(max_bad_rows=1.0))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("shape", "fields", "code"),
    [
        ("messages", {"messages": "hello"}, "wrong_type"),
        ("messages", {"messages": []}, "no_messages"),
        ("messages", {"messages": ["hello"]}, "wrong_type"),
        ("messages", {"messages": [{"content": "x"}]}, "missing_role"),
        ("messages", {"messages": [{"role": "user"}]}, "wrong_type"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "wrong_type"),
        ("messages", {"text": "x"}, "missing_column"),
        ("prompt_completion", {"prompt": "x"}, "missing_column"),
        ("prompt_completion", {"prompt": "x", "completion": None}, "null_text"),
        ("prompt_completion", {"prompt": [{"role": "user", "content": "x"}], "completion": "y"}, "wrong_type"),
        ("instruction", {"instruction": "x", "input": 5, "output": "y"}, "wrong_type"),
        ("instruction", {"instruction": "x", "input": None}, "missing_column"),
        ("input_ids", {"input_ids": "12"}, "wrong_type"),
        ("input_ids", {"input_ids": [1, 2.0]}, "wrong_type"),
        ("input_ids", {"input_ids": [True]}, "wrong_type"),
        ("input_ids", {"input_ids": [1, 2], "labels": [1]}, "length_mismatch"),
        ("input_ids", {"input_ids": [1, 2], "attention_mask": [1]}, "length_mismatch"),
        ("input_ids", {"input_ids": [1, 2], "labels": "12"}, "wrong_type"),
        ("input_ids", {"input_ids": None}, "wrong_type"),
        ("features", {"features": [1.0, float("nan")], "target": 1}, "not_finite"),
        ("features", {"features": [1.0], "target": "high"}, "wrong_type"),
        ("features", {"features": [], "target": 1}, "wrong_type"),
    ],
)
def test_rows_of_the_wrong_shape(shape, fields, code):
    good = {
        "messages": {"messages": [{"role": "user", "content": "x"}]},
        "prompt_completion": {"prompt": "x", "completion": "y"},
        "instruction": {"instruction": "x", "output": "y"},
        "input_ids": {"input_ids": [1, 2]},
        "features": {"features": [1.0], "target": 1.0},
    }[shape]
    rows = read_rows([good, good, fields, good], options=ReadOptions(shape=shape, max_bad_rows=1))
    assert [q.code for q in rows.quarantine] == [code]


def test_a_bad_byte_and_a_bad_character_are_counted_from_one(write):
    rows = read_lines(write, b'{"text": "ab\xff"}', b'{"text": "a", }')
    first, second = rows.quarantine
    assert first.message == "byte 13 is not UTF-8" and first.location.endswith(":2:13")
    assert second.location.endswith(":3:15") and second.code == "invalid_json"


def test_a_line_that_is_too_long_says_how_long_it_may_be(write):
    rows = read_lines(write, b'{"text": "' + b"x" * (2 * 2**20) + b'"}', options=ReadOptions(
        max_bad_rows=1, limits=Limits(line_bytes=2 * 2**20)))  # fmt: skip
    assert [q.message for q in rows.quarantine] == ["longer than 2 MiB"]
    assert (Limits().line_bytes, Limits().gzip_floor, Limits().nesting) == (67_108_864, 268_435_456, 64)


def test_csv_faults(write):
    text = b"id,text\na,one\nb\nc,three,more\nd,\xff\ne,five\nf,six\n"
    rows = read_rows(write("a.csv", text), options=ReadOptions(max_bad_rows=3))
    assert [r.id for r in rows.rows] == ["a", "e", "f"]
    assert [(q.code, q.location.rpartition(":")[2]) for q in rows.quarantine] == [
        ("wrong_columns", "3"), ("wrong_columns", "4"), ("not_utf8", "5"),
    ]  # fmt: skip
    with pytest.raises(DataError, match="twice"):
        read_rows(write("b.csv", "text,text\na,b\n"))
    rows = read_rows(write("c.csv", 'text\n"a"b\nfine\nok\n'), options=ReadOptions(max_bad_rows=1))
    assert [q.code for q in rows.quarantine] == ["invalid_csv"]
    assert len(rows) == 2


def test_parquet_faults(write, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(50)]}), path, write_page_checksum=True)
    data = path.read_bytes()
    with pytest.raises(DataError, match="parquet"):
        read_rows(write("cut.parquet", data[:-20]))
    with pytest.raises(DataError, match="parquet"):
        read_rows(write("flip.parquet", data[:30] + bytes([data[30] ^ 1]) + data[31:]))
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"text": broken}), path)
    rows = read_rows(str(path), options=ReadOptions(max_bad_rows=1))
    assert [q.code for q in rows.quarantine] == ["not_utf8"]


def test_broken_json_array_names_line_and_column(write):
    with pytest.raises(DataError, match=r"a\.json:3:\d+"):
        read_rows(write("a.json", '[\n{"text": "a"},\n{"text": }\n]'))


def test_json_array_elements_fail_alone(write):
    rows = read_rows(write("a.json", '[{"text": "a"}, 5, {"text": "b"}, {"text": "\\ud800"}]'), options=ANY)
    assert [q.code for q in rows.quarantine] == ["not_an_object", "lone_surrogate"]


def test_a_json_document_that_is_cut_or_too_long_is_refused_as_a_whole(write):
    """Its rows are one text: there is nothing to keep of it."""
    whole = json.dumps([{"text": "a" * 40}, {"text": "b" * 40}], indent=0)
    for name, data, options in (
        ("cut.json.gz", gzip.compress(whole.encode(), 0)[:-30], ANY),
        ("long.json", whole, ReadOptions(limits=Limits(line_bytes=45))),
    ):
        with pytest.raises(DataError, match=rf"{name}: cut off, damaged, or a line over") as caught:
            read_rows(write(name, data), options=options)
        assert caught.value.try_ == "use .jsonl"


def test_a_csv_file_that_is_cut_or_too_long_is_refused_with_its_line(write):
    data = b"text\n" + b"".join(b"row %d\n" % n for n in range(200))
    with pytest.raises(DataError, match=r"a\.csv:3: longer than 0 MiB"):
        read_rows(write("a.csv", b"text\nshort\n" + b"x" * 100), options=ReadOptions(limits=Limits(line_bytes=50)))
    with pytest.raises(DataError, match=r"b\.csv\.gz:\d+: the gzip data ends or breaks here") as caught:
        read_rows(write("b.csv.gz", gzip.compress(data)[:-20]))
    assert "as .jsonl" in caught.value.try_


def test_a_stray_quote_costs_its_own_row(write, monkeypatch):
    """It swallows what follows until it is found out; then those lines are read again, but not for ever."""
    lines = ["id,text", 'a,"stray', "b,two", "c,three", 'd,"also, stray', "e,five"]
    rows = read_rows(write("a.csv", "\n".join(lines) + "\n"), options=ANY)
    assert [r.id for r in rows.rows] == ["b", "c", "e"]
    assert [(q.code, q.location.rpartition(":")[2]) for q in rows.quarantine] == [
        ("invalid_csv", "2"), ("invalid_csv", "5"),
    ]  # fmt: skip
    assert rows.rows[0].location.endswith(":3") and rows.rows[-1].location.endswith(":6")
    monkeypatch.setattr("whence.tasks.formats.AGAIN", 2)
    again = read_rows(write("b.csv", "\n".join(["id,text", "x,one", *lines[1:]]) + "\n"), options=ANY)
    assert [r.id for r in again.rows] == ["x", "e"] and [q.location.rpartition(":")[2] for q in again.quarantine] == [
        "3"
    ]


def test_a_parquet_bomb_is_stopped(tmp_path, monkeypatch):
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": ["x" * 10_000] * 200}), path)
    assert len(read_rows(str(path), options=ReadOptions(dup_ids="suffix"))) == 200  # under the floor anything goes
    monkeypatch.setattr("whence.tasks.formats.LIMITS", Limits(gzip_floor=2**10, gzip_ratio=2.0))
    with pytest.raises(DataError, match=r"bomb\.parquet: expands to [\d,]+ bytes; this looks like a bomb"):
        read_rows(str(path))


def test_rows_that_nest_without_end_are_left_out():
    """A list that holds itself must not take for ever."""
    cyclic: list = []
    cyclic.append(cyclic)
    looped: dict = {"text": "a"}
    looped["self"] = looped
    deep: list = []
    for _ in range(63):
        deep = [deep]  # with the row itself 65 deep
    odd = [{"text": "a", "x": cyclic}, looped, {"text": "c", "x": deep}, {"text": "d", "x": deep[0]}]
    odd += [{"text": "e", "x": (cyclic,)}]
    rows = read_rows(odd, options=ReadOptions(max_bad_rows=4))
    assert [(q.code, q.message) for q in rows.quarantine] == [("too_deep", "nested deeper than 64")] * 4
    assert [r.fields["text"] for r in rows.rows] == ["d"]


def test_hostile_lists():
    odd = [{"text": "a"}, {"text": "\ud800"}, {1: "x", "text": "y"}, "text", None, {"text": "z"}]
    rows = read_rows(odd, options=ReadOptions(max_bad_rows=4))
    assert [q.code for q in rows.quarantine] == ["lone_surrogate", "bad_column", "not_an_object", "not_an_object"]


def test_depth_and_surrogates():
    assert depth(5) == 0
    assert depth({"a": [1, {"b": []}]}) == 4
    assert not has_surrogate({"a": ["x", {"y": "😀"}], "b": 5})
    assert has_surrogate([{"\udc00": 1}])


def test_nothing_at_all_is_no_share_of_bad_rows():
    with pytest.raises(DataError, match="there are no rows"):
        check_bad_rows([], 0, 1.0)


def test_ten_thousand_rows_take_about_a_second(write):
    data = [{"text": "some words of a document " * 20, "meta": {"n": n}} for n in range(10_000)]
    path = write("many.jsonl", data)
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert len(read_rows(path)) == 10_000
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 4  # measured: well under one on an idle machine
    assert Path(path).exists()
