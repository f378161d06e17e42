"""Parts of pages: tables, layers gathered, stages, and the numbers as a page carries them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from whence.report import report_data, sheet
from whence.report.account import account_page
from whence.report.modules import module_shares, part_of
from whence.report.pack import island, page_data, short
from whence.report.records import LayerSums, ModuleShare
from whence.report.stages import MOST, stage_table
from whence.results import RowView, Scores, TokenTrack


def test_a_column_of_numbers_stands_right() -> None:
    html = sheet.table("T <1>", ("name", "n", "mixed"), [("a", 1.5, 2), ("<b>", None, "x"), ("c", 1000, None)])
    assert html.startswith('<h2>T &lt;1&gt;</h2><div class="scroll"><table><thead>')
    assert '<th>name</th><th class="num">n</th><th>mixed</th>' in html
    assert '<tr><td>a</td><td class="num">1.50</td><td>2</td></tr>' in html
    assert '<tr><td>&lt;b&gt;</td><td class="num">–</td><td>x</td></tr>' in html
    assert 'class="num"' not in sheet.table("", ("a",), [])


def test_pieces_of_a_page_keep_texts_as_texts() -> None:
    assert sheet.paragraphs(["a<b", "c\x1bd"]) == "<p>a&lt;b</p><p>c␛d</p>"
    assert sheet.folded("<t>", "x\n<y>") == "<details><summary>&lt;t&gt;</summary><pre>x\n&lt;y&gt;</pre></details>"
    page = sheet.sheet("<T>", "<v>", "BODY")
    assert page.startswith("<!doctype html>") and "<title>&lt;T&gt;</title>" in page and ">BODY</main>" in page
    assert '<p class="quiet">whence &lt;v&gt;</p><h1>&lt;T&gt;</h1>' in page


def test_the_page_of_a_choice_says_all_of_it() -> None:
    chart = {"title": "C", "x_axis": "x", "y_axis": "y", "kind": "line", "log_x": False, "groups": [], "curves": []}
    account = {
        "title": "What was chosen", "verb": "select", "words": ["Because."], "charts": [chart], "about": {"seed": "é"},
        "tables": [{"title": "Rows", "columns": ["id"], "rows": [["r1"]]}],
    }  # fmt: skip
    page = account_page(account)
    order = [
        page.index(s)
        for s in ("whence select", "<p>Because.</p>", "<h2>Rows</h2>", "<figcaption>C<", "<h2>Details</h2>")
    ]
    assert order == sorted(order) and "&quot;seed&quot;: &quot;é&quot;" in page


@pytest.mark.parametrize(
    ("layer", "part"),
    [("h.0.self_attn.q_proj", "attention"), ("h.0.attn.c_attn", "attention"), ("h.0.attention.query", "attention"),
     ("blk.k_proj", "attention"), ("h.0.mlp.up_proj", "MLP"), ("h.0.ffn.w1", "MLP"), ("fc2", "MLP"),
     ("h.0.feed_forward.x", "MLP"),
     ("experts.3.w", "MLP"), ("lm_head", "other"), ("attnx.w", "other"), ("h.fcx", "other")],
)  # fmt: skip
def test_parts_of_a_model_are_known_by_name(layer: str, part: str) -> None:
    assert part_of(layer) == part


def test_shares_are_gathered_by_part_and_kind() -> None:
    names = ("h.0.attn.q", "h.0.mlp.up", "h.1.attn.q", "head")
    found = module_shares(names, LayerSums((0.5, 0.25, 0.125, 0.125), (), {}))
    assert found == (
        ModuleShare("part", "attention", 2, 0.625, None), ModuleShare("part", "MLP", 1, 0.25, None),
        ModuleShare("part", "other", 1, 0.125, None), ModuleShare("kind", "q", 2, 0.625, None),
        ModuleShare("kind", "up", 1, 0.25, None), ModuleShare("kind", "head", 1, 0.125, None),
    )  # fmt: skip
    assert module_shares(names, None) == () == module_shares(names, LayerSums((), (), {}))
    assert module_shares(("a",), LayerSums((), (1.0,), {}))[0] == ModuleShare("part", "other", 1, None, 1.0)


def staged(queries: int = 2) -> Scores:
    ids = ("p1", "p2", "f1", "f2")
    rows = {i: RowView(i, "", ("pre:books", "pre", "fine:chat", "fine:chat")[n]) for n, i in enumerate(ids)}
    values = np.tile(np.array([[4.0, -2.0, -1.0, np.nan]]), (queries, 1))
    asked = tuple(f"q{n}" for n in range(queries))
    return Scores(values=values, query_ids=asked, train_ids=ids, n_train=2, train_rows=rows)


def test_stages_are_summed_apart() -> None:
    table = stage_table(staged(), {"pre": 20, "fine": 5})
    assert table.columns == (
        "question",
        "stage",
        "rows",
        "for, nats",
        "against, nats",
        "strongest row",
        "its effect, nats",
    )
    assert table.rows[:2] == (("q0", "pre", 20, 2.0, -1.0, "p1", 2.0), ("q0", "fine", 5, 0.0, -0.5, "none", None))
    assert len(table.rows) == 4 and table.rows[2][0] == "q1"
    assert len(stage_table(staged(MOST + 3), {"pre": 1}).rows) == MOST


@pytest.mark.parametrize(
    ("value", "digits", "found"),
    [(1.23456789, 6, 1.23457), (1.23456789, 3, 1.23), (2.0, 6, 2), (1e20, 6, 1e20), (-0.0, 6, 0), (None, 6, None),
     (math.nan, 6, None), (math.inf, 6, None), (-math.inf, 6, None), (123456789.0, 6, 123457000)],
)  # fmt: skip
def test_numbers_of_a_page_are_short(value: float | None, digits: int, found: float | None) -> None:
    got = short(value, digits)
    assert got == found and isinstance(got, int) == (isinstance(found, int))


def test_a_page_carries_what_the_report_says(make) -> None:
    scores = make(n=6, queries=1)
    best = scores.proponents(0, 1)[0].train_id
    text = scores.train_rows[best].text
    track = TokenTrack(((0, 8), (9, 10), (10, 99)), (2.0, -1.0, 5.0), (False, True, False), "position", 0.5)
    cells = np.array([[0.0, 0.0, 7.0], [1.23456, np.nan, 7.0], [0.0, 0.0, 7.0]], dtype=np.float32)
    told = scores.with_(token_tracks={("q-0", best): (track,)}, token_pairs={("q-0", best): cells},
                        query_tracks={"q-0": TokenTrack(((0, 5),), (1.0,))}, heads={"q-0": {"a": (1.0,)}})  # fmt: skip
    page = page_data(report_data(told))
    query, at = page["queries"][0], page["rows"]["id"].index(best)
    (tokens,) = query["tokens"][str(at)]
    assert tokens == {"kind": "position", "spans": [[0, 8], [9, 10]], "scores": [2, -1], "rest": 0.5, "masked": [1]}
    assert len(text) < 99  # the last span lies behind what is shown
    assert query["pairs"][str(at)] == {"lines": [1], "cells": [[1.23, 0]]}
    assert query["query_tokens"]["scores"] == [1] and query["heads"]["cells"] == [[1]]
    assert page["rows"]["sources"] == ["source-0", "source-1", "source-2"]
    ranked = query["ranking"]
    known = [line.score for line in report_data(told).queries[0].ranking.lines]
    assert ranked["score"] == [pytest.approx(s, rel=1e-5) for s in known] and ranked["rank"] == list(range(1, 6))
    assert page["format"] == 1 and json.loads(island(report_data(told))[0]) == json.loads(json.dumps(page))
