"""The terminal page: 80 columns, and nothing in the data can steer it."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata

import pytest
from rich.console import Console

from whence.report import render_text, report_data
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
