"""The terminal page: 80 columns, and nothing in the data can steer it."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata

import numpy as np
import pytest
from rich.console import Console

from whence.report import Extras, Table, render_text, report_data
from whence.report.characters import UNSEEN, calm, csv_cell, visible
from whence.report.export import COLUMNS, export_csv, export_jsonl
from whence.results import RowView, TokenTrack


def _print(data, **console):
    out = io.StringIO()
    render_text(data, Console(file=out, width=80, **console))
    return out.getvalue()


def test_fits_80_columns_and_says_it_all(scores):
    data = report_data(scores)
    text = _print(data)
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for query in data.queries:
        assert query.answer in flat and query.concentration in flat
        for line in query.ranking.top(5) + query.ranking.bottom(5):
            assert data.rows[line.row].id in text
    assert "not validated" in text
    assert "Where is 0? There." in text


def test_strong_tokens_are_named_also_the_blank_ones(make):
    scores = make(queries=1)
    best = scores.proponents(0, 1)[0].train_id
    row = RowView(best, "A b\nc d")
    spans = ((0, 1), (1, 2), (3, 4), (4, 5))
    told = {("q-0", best): tuple(TokenTrack(spans, (0.0, 5.0, -3.0, 2.0), kind=k) for k in ("position", "input"))}
    text = _print(report_data(scores.with_(train_rows={**scores.train_rows, best: row}, token_tracks=told)))
    assert "at these tokens: '␣' +50 %, '↵' −30 %, 'c' +20 %" in text
    assert "reading" not in text


def test_a_long_row_is_shown_around_its_strongest_token(make):
    """Tokens above two fifths of the strongest stand out."""
    scores = make(queries=1)
    best = scores.proponents(0, 1)[0].train_id
    text = " ".join(f"w{n}" for n in range(300))
    places = {name: (text.index(name), text.index(name) + 4) for name in ("w100", "w200", "w205", "w210")}
    track = TokenTrack(tuple(places.values()), (1.0, 5.0, -3.0, 1.0))
    told = scores.with_(train_rows={**scores.train_rows, best: RowView(best, text)})
    coloured = {"force_terminal": True, "color_system": "standard", "_environ": {}}
    plain = re.sub(r"\x1b\[[0-9;]*m", "", _print(report_data(told), **coloured))
    assert f"{best}\n       w0 w1" in re.sub(r" +\n", "\n", plain) and "w200" not in plain
    with_track = _print(report_data(told.with_(token_tracks={("q-0", best): (track,)})), **coloured)
    shown = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", with_track).split())
    excerpt = shown[shown.index("… ") : shown.index(" … at these tokens")]
    assert excerpt.startswith("… w178 w179 ") and excerpt.endswith(" w220 w221")  # 110 characters on each side
    styled = {m[2]: m[1] for m in re.finditer(r"\x1b\[([0-9;]+)m(w\d+)\x1b\[0m", with_track)}
    assert styled.keys() >= {"w200", "w205"} and "w210" not in styled
    assert "4" in styled["w200"].split(";") and "3" in styled["w205"].split(";")  # underlined, and slanted


def test_the_lines_of_a_row_follow_each_other(scores):
    lines = [line.rstrip() for line in _print(report_data(scores)).splitlines()]
    best = scores.proponents(0, 1)[0].train_id
    at = next(n for n, line in enumerate(lines) if line.lstrip().startswith(best))
    assert lines[at - 2].startswith("▲ proponents") and lines[at - 1].split()[0] == "1"
    assert lines[at + 1].lstrip().startswith("Document ") and lines[at + 2].split()[0] == "2"


def test_a_response_stands_out_from_its_prompt_and_a_text_alone_stands_out_whole(make):
    def shown(view):
        text = _print(report_data(make(queries=1).with_(query_rows={"q-0": view})),
                      force_terminal=True, color_system="standard", _environ={})  # fmt: skip
        return {m[2]: m[1] for m in re.finditer(r"\x1b\[([12])m([^\x1b]*)\x1b\[0m", text)}

    bold, dim = "1", "2"
    told = shown(RowView("q-0", "Where? There.", spans=(("prompt", "Where?"), ("completion", " There."))))
    assert told["Where?"] == dim and told[" There."] == bold
    assert shown(RowView("q-0", "Where? There."))["Where? There."] == bold
    labelled = shown(RowView("q-0", "Where?", label="good"))
    assert labelled["Where?"] == labelled["good"] == bold
    long = shown(RowView("q-0", "w" * 700))
    assert any(text.endswith(" …") for text in long)


def test_cautions_are_said(make):
    """The verdict on word overlap is one of them where it explains the ranking, and a plain line where it does not."""
    scores = make(queries=1)
    explained = scores.with_(lexical=np.nan_to_num(scores.values).clip(0).astype(np.float32))
    query = report_data(explained).queries[0]
    assert query.lexical.level == "explains" and query.warnings
    flat = " ".join(_print(report_data(explained)).split())
    assert flat.count("caution ") == len(query.warnings)
    assert flat.count(query.lexical.sentence) == 1 and f"caution {query.lexical.sentence}" in flat
    other = report_data(scores).queries[0]
    assert other.lexical.level == "little"
    assert other.lexical.sentence in " ".join(_print(report_data(scores)).split())


def test_word_overlap_stands_beside_every_score(make):
    scores = make(queries=1)
    best = scores.proponents(0, 2)
    lexical = np.zeros_like(scores.lexical)
    lexical[0, scores.train_ids.index(best[1].train_id)] = 2.0
    told = _print(report_data(scores.with_(lexical=lexical)))
    assert "no shared word" in told and "no. 1 by word overlap" in told
    assert "word" not in _print(report_data(scores.with_(lexical=None)))


def test_rows_without_a_text_and_tokens_without_weight(make):
    scores = make(queries=1)
    best = scores.proponents(0, 1)[0].train_id
    rows = {**scores.train_rows, best: RowView(best, "")}
    quiet = {("q-0", best): (TokenTrack(((0, 1),), (0.0,)),)}
    text = _print(report_data(scores.with_(train_rows=rows, token_tracks=quiet)))
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if best in line and "Training row" not in line)
    assert not lines[at + 1].strip() or lines[at + 1].split()[0] == "2"  # the next row, and nothing of this one
    assert "at these tokens" not in text


def test_tables_and_their_notes(scores):
    tables = [
        Table("Recall", ("method", "at 5"), (("ekfac", 0.25), ("bm25", None)), "of a toy"),
        Table("Bare", ("a",), ((1,),)),
    ]
    lines = [line.rstrip() for line in _print(report_data(scores, extras=Extras(tables=tables))).splitlines()]
    at = lines.index("Recall")
    assert lines[at + 2].startswith("ekfac ") and lines[at + 3].startswith("bm25 ")
    assert len(lines[at + 1]) == len(lines[at + 2]) == len(lines[at + 3])  # numbers stand right
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["method", "at", "5"],
        ["ekfac", "0.25"],
        ["bm25", "–"],
    ]
    assert lines[at + 4 : at + 7] == ["of a toy", "", "Bare"]
    assert lines[at + 9] == ""  # a table without a note ends with its rows


def test_rows_left_out_are_counted(scores):
    assert "1 row could not be used and have no score." in _print(report_data(scores))
    left = [{"location": f"a:{n}", "code": "bad", "message": ""} for n in range(1200)]
    assert "1,200 rows could not be used" in _print(report_data(scores, extras=Extras(quarantine=left)))
    assert "could not be used" not in _print(
        report_data(scores.with_(values=np.nan_to_num(scores.values), train_rows={}))
    )


def test_nothing_hostile_reaches_the_terminal(hostile):
    scores, extras = hostile
    text = _print(report_data(scores, extras=extras), color_system=None)
    assert not UNSEEN.findall(text)
    assert "\x1b" not in _print(report_data(scores, extras=extras), color_system=None, force_terminal=True)
    coloured = _print(report_data(scores, extras=extras), force_terminal=True, color_system="standard")
    assert set(re.findall(r"\x1b[^m]*m?", coloured)) <= set(re.findall(r"\x1b\[[0-9;]*m", coloured))
    assert "\x1b]" not in coloured
    assert "[bold red]x[/]" in text  # markup in data is text


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x9b", "\u202e", "\u200b", "\ud800", "\x7f", "\U000e0041"])
def test_marks_are_visible(character):
    shown = visible(f"a{character}b")
    assert character not in shown
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Cs"} for c in shown)
    assert visible("a\r\nb\tc", one_line=True) == "a ↵ b c"


def test_emoji_and_scripts_are_left_alone():
    for text in ("👩‍👩‍👧‍👦🇫🇷", "שלום", "مرحبا", "東京", "é", "हिन्दी"):
        assert visible(text) == text == calm(text)


def test_combining_floods_are_calmed():
    assert len(calm("Z" + "\u0301" * 300)) == 5


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "\n=1", "＝1", "|x", "%x", "\x00=1"])
def test_formulas_are_disarmed(cell):
    assert csv_cell(cell) == "'" + cell


def test_csv_is_safe_and_numbers_stay_numbers(hostile):
    scores, extras = hostile
    data = report_data(scores, extras=extras)
    table = list(csv.reader(io.StringIO(export_csv(data, 0), newline="")))
    assert tuple(table[0]) == COLUMNS
    assert len(table) == 1 + len(data.queries[0].ranking.lines)
    for record in table[1:]:
        for name, cell in zip(COLUMNS, record, strict=True):
            if name in {"rank", "score", "removal_effect", "share", "percentile", "lexical"}:
                float(cell)
            else:
                assert not cell or cell.lstrip()[:1] not in set("=+-@")
    records = [json.loads(line) for line in export_jsonl(data, 0).splitlines()]
    assert records[0]["text"] == data.rows[data.queries[0].ranking.lines[0].row].text
