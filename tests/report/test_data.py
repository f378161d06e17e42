"""The numbers of the report against plain NumPy, and its sentences against the numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from whence.report import Extras, Table, TokenScores, report_data
from whence.report.data import arrange_layers, locate_parts
from whence.report.pack import page_data
from whence.tasks.records import Quarantined


def test_every_line_is_the_score(scores):
    data = report_data(scores)
    for q, query in enumerate(data.queries):
        values, lexical = scores.row(q), scores.lexical[q]
        known = values[np.isfinite(values)]
        assert len(query.ranking.lines) == len(known) == query.ranking.scored
        assert [line.rank for line in query.ranking.lines] == list(range(1, len(known) + 1))
        for line in query.ranking.lines:
            n = scores.train_ids.index(data.rows[line.row].id)
            side = known[known > 0].sum() if values[n] > 0 else known[known < 0].sum()
            assert line.score == values[n]
            assert line.removal_effect == pytest.approx(values[n] / scores.n_train, rel=1e-12)
            assert line.share == pytest.approx(values[n] / side, rel=1e-12)
            assert line.percentile == pytest.approx(100 * (known < values[n]).sum() / (len(known) - 1), abs=1e-9)
            assert line.lexical == pytest.approx(lexical[n])
            positive = lexical[np.isfinite(values)]
            assert (line.lexical_rank is None) == (lexical[n] == 0)
            if line.lexical_rank:
                assert line.lexical_rank == 1 + (positive > lexical[n]).sum()
        assert [data.rows[x.row].id for x in query.ranking.top(5)] == [r.train_id for r in scores.proponents(q, 5)]
        assert [data.rows[x.row].id for x in query.ranking.bottom(5)] == [r.train_id for r in scores.opponents(q, 5)]


def test_the_unscored_row_is_left_out_and_counted(scores):
    data = report_data(scores)
    listed = {data.rows[line.row].id for query in data.queries for line in query.ranking.lines}
    assert "row-005" not in listed
    assert data.unscored == 1
    assert [(x.id, x.code) for x in data.quarantine] == [("row-005", "no_loss_tokens")]
    assert any("1 row could not be used" in said for said in data.limits)


def test_top_k_counts_opponents_from_the_end(make):
    full = make(n=60)
    k = 5
    columns = np.stack(
        [
            np.r_[np.argsort(-np.nan_to_num(v, nan=-np.inf))[:k], np.argsort(np.nan_to_num(v, nan=np.inf))[:k]]
            for v in full.values
        ]
    )
    take = np.take_along_axis
    cut = full.with_(
        values=take(full.values, columns, 1),
        columns=columns,
        lexical=take(full.lexical, columns, 1),
        per_layer=take(full.per_layer, columns[:, :, None], 1),
    )
    data, whole = report_data(cut), report_data(full)
    for query, reference in zip(data.queries, whole.queries, strict=True):
        assert not query.ranking.complete
        ranks = {whole.rows[x.row].id: x.rank for x in reference.ranking.lines}
        assert [(data.rows[x.row].id, x.rank) for x in query.ranking.lines] == [
            (data.rows[x.row].id, ranks[data.rows[x.row].id]) for x in query.ranking.lines
        ]
        assert len(query.ranking.lines) == 2 * k
        row = query.ranking.lines[0].row
        assert sum(query.layers.rows[row]) == pytest.approx(query.ranking.lines[0].score)
    assert any("Only the strongest rows were kept" in said for said in data.limits)
    json.dumps(page_data(data), allow_nan=False)


def test_a_large_table_keeps_both_ends(make):
    scores = make(n=500, queries=2)
    data = report_data(scores, extras=Extras(max_cells=200))
    ranking = data.queries[0].ranking
    assert len(ranking.lines) == 100
    assert ranking.unlisted == 399
    assert ranking.lines[0].rank == 1 and ranking.lines[-1].rank == 499 == ranking.scored


@pytest.mark.parametrize("window", [(0, 10), (15, 25), (30, 60), (100, 110)])
def test_a_window_keeps_the_ends(make, window):
    """The answer names the strongest rows whatever page of the list is shown."""
    scores = make(n=40, queries=1)
    whole = report_data(scores)
    data = report_data(scores, extras=Extras(window=window))
    start, stop = window
    wanted = [n for n in range(1, 40) if n <= 5 or n > 34 or start < n <= stop]  # ranks; 39 rows have a score
    assert [line.rank for line in data.queries[0].ranking.lines] == wanted
    assert data.queries[0].answer == whole.queries[0].answer
    assert data.queries[0].ranking.scored == 39 and data.queries[0].ranking.unlisted == 39 - len(wanted)


def test_layers_add_up(scores):
    data = report_data(scores)
    for query in data.queries:
        assert sum(query.layers.proponents) == pytest.approx(1)
        assert sum(query.layers.opponents) == pytest.approx(1)
        for line in query.ranking.top(5):
            assert sum(query.layers.rows[line.row]) == pytest.approx(line.score)
    assert data.grid.depths == ("0", "1")
    assert data.grid.kinds == ("mlp.up_proj", "self_attn.q_proj")
    assert data.grid.cells == ((0, 1), (2, 3))


@pytest.mark.parametrize(
    "names",
    [
        ("h.0.up", "h.1.up"),  # one kind alone
        ("h.0.up", "h.0.down"),  # one depth alone
        ("h.0.up", "h.0.down", "g.1.up", "g.1.down"),  # two towers
        ("h.0.up", "h.1.down", "head"),
    ],
)
def test_a_list_of_layers_is_no_grid(names):
    assert arrange_layers(names) is None


def test_a_grid_has_holes_and_counts_as_people_do():
    grid = arrange_layers(("h.10.up", "h.9.up", "h.9.down"))
    assert grid.depths == ("9", "10") and grid.kinds == ("up", "down") and grid.cells == ((1, 2), (0, -1))


def test_names_without_depth_have_no_grid():
    assert arrange_layers(["encoder", "head"]) is None
    assert arrange_layers([]) is None
    assert arrange_layers(["h.0.a", "h.1.b"]).cells == ((0, -1), (-1, 1))


def test_parts_are_found_in_order():
    assert locate_parts("ab ab", (("x", "ab"), ("y", "ab"))) == (("x", 0, 2), ("y", 3, 5))
    assert locate_parts("ab", (("x", "zz"), ("y", "b"))) == (("y", 1, 2),)
    assert locate_parts("abc", (("x", "ab"), ("y", "cdef"))) == (("x", 0, 2), ("y", 2, 3))  # the text was cut


def test_bm25_alone_is_called_out(make):
    scores = make()
    data = report_data(scores.with_(lexical=np.nan_to_num(np.maximum(scores.values, 0)).astype(np.float32)))
    assert data.queries[0].lexical.level == "explains"
    assert data.queries[0].lexical.overlap == 10
    assert any("Word overlap alone explains" in w for w in data.queries[0].warnings)
    data = report_data(scores.with_(lexical=np.nan_to_num(np.maximum(-scores.values, 0)).astype(np.float32)))
    assert data.queries[0].lexical.level == "little"
    assert not any("Word overlap" in w for w in data.queries[0].warnings)


def test_the_first_sentence_names_model_and_data_shortly(make):
    names = {"train": {"name": ", ".join(f"/long/way/{n}.jsonl" for n in "abcde")}, "model": {"name": "./runs/7/model"}}
    said = report_data(make(about={**make().about, **names})).summary
    assert "(a.jsonl, b.jsonl, c.jsonl and 2 more)" in said and "the model 7/model;" in said
    hub = report_data(make(about={**make().about, "model": {"name": "owner/name"}})).summary
    assert "the model owner/name;" in hub


def test_tokens_from_both_places_are_tokens(scores):
    track = {("q-0", "row-000"): (TokenScores(((0, 1),), (1.0,)),)}
    told = scores.with_(token_tracks=track)
    assert report_data(told, extras=Extras(tokens=track)).untold == report_data(told).untold
    assert "No token scores" in report_data(scores).untold


def test_missing_tokens_are_explained(make):
    scores = make(queries=1)
    best = scores.proponents(0, 1)[0].train_id
    track = TokenScores(((0, 8),), (1.0,))
    rows = scores.with_(token_tracks={("q-0", best): (track,)})
    assert "switched off" in report_data(scores).untold
    over = scores.with_(about={**scores.about, "checkpoints": [{"step": 1}]})
    assert "several checkpoints" in report_data(over).untold
    assert "of the rows only" in report_data(rows).untold
    assert report_data(rows.with_(query_tracks={"q-0": track})).untold == ""


def test_trust_needs_evidence(make):
    assert report_data(make()).trust.level == "not validated"
    assert "50 %" in report_data(make()).trust.sentence
    for nothing in ({}, "", None, "not validated", "Not validated yet"):
        assert report_data(make(about={"validation": nothing})).trust.level == "not validated"
    data = report_data(make(about={"validation": {"LDS": 0.41}}))
    assert data.trust.level == "validated" and "LDS 0.41" in data.trust.sentence


def test_a_push_that_all_rows_share_is_called_out(make):
    scores = make(n=40, queries=1)
    assert "Read the order, not the sizes" not in " ".join(report_data(scores).queries[0].warnings)
    moved = scores.with_(values=scores.values - 0.2 * np.nanmax(np.abs(scores.values)))
    said = " ".join(report_data(moved).queries[0].warnings)
    against = int((moved.values < 0).sum())
    assert f"{against} of 39 rows push against it" in said
    few = scores.with_(values=moved.values[:, :12], train_ids=scores.train_ids[:12], per_layer=None, layer_names=(),
                       lexical=None, self_influence=None)  # fmt: skip
    assert "push against" not in " ".join(report_data(few).queries[0].warnings)


def test_rows_that_were_cut_are_cautioned_about(make):
    scores = make(queries=1)
    best = [line.train_id for line in scores.proponents(0, 6)]

    def cautions(*cut):
        rows = {id_: replace(v, status="truncated" if id_ in cut else "scored") for id_, v in scores.train_rows.items()}
        return [w for w in report_data(scores.with_(train_rows=rows)).queries[0].warnings if "truncated" in w]

    assert cautions() == cautions(best[5]) == []
    assert cautions(best[4]) == ["1 of the 5 strongest proponents was scored on its first tokens only (truncated)."]
    assert cautions(*best) == ["5 of the 5 strongest proponents were scored on their first tokens only (truncated)."]


def test_rows_left_out_are_told_from_mappings_records_and_statuses(scores):
    left = [{"location": "a:1", "code": "bad_json", "message": None}, Quarantined("b:2", "no_text", "none", "row-9")]
    data = report_data(scores, extras=Extras(quarantine=left))
    assert [(x.location, x.code, x.message, x.id) for x in data.quarantine] == [
        ("a:1", "bad_json", "", ""), ("b:2", "no_text", "none", "row-9"),
    ]  # fmt: skip
    many = report_data(scores, extras=Extras(quarantine=left * 150))
    assert many.quarantined == 300 and len(many.quarantine) == 200
    assert [x.id for x in report_data(scores.with_(about={"quarantine": left})).quarantine] == ["", "row-9"]


def test_heads_are_a_grid_in_the_order_of_the_layers(scores):
    heads = {"h.10.attn": (1.0, -2.0), "h.9.attn": (0.5,), "a.attn": ()}
    grid = report_data(scores.with_(heads={"q-0": heads})).queries[0].heads
    assert grid.layers == ("a.attn", "h.9.attn", "h.10.attn") and grid.heads == 2
    assert grid.cells == ((None, None), (0.5, None), (1.0, -2.0))
    assert report_data(scores).queries[0].heads is None


def test_same_texts_are_grouped(make):
    scores = make()
    best = [r.train_id for r in scores.proponents(0, 2)]
    rows = dict(scores.train_rows)
    rows[best[1]] = rows[best[0]].__class__(best[1], rows[best[0]].text.upper() + "  ")
    data = report_data(scores.with_(train_rows=rows))
    first, second = (next(r for r in data.rows if r.id == b) for b in best)
    assert first.group and first.group == second.group
    assert any("have the same text" in w for w in data.queries[0].warnings)


def test_one_dominating_token_is_flagged(scores):
    best = scores.proponents(0, 2)
    spans = tuple((i, i + 1) for i in range(10))
    spiky, flat = (10.0,) + (0.01,) * 9, (1.0,) * 10
    tokens = {
        ("q-0", best[0].train_id): [TokenScores(spans, spiky)],
        ("q-0", best[1].train_id): [TokenScores(spans, flat)],
    }
    lines = report_data(scores, extras=Extras(tokens=tokens)).queries[0].ranking.lines
    assert [line.spurious for line in lines[:3]] == [True, False, False]


def test_without_texts_words_or_layers(make):
    plain = {"lexical": None, "per_layer": None, "layer_names": (), "self_influence": None}
    bare = make(train_rows={}, query_rows={}, about={}, **plain)
    data = report_data(bare)
    assert data.queries[0].lexical is None and data.queries[0].layers is None and data.grid is None
    assert data.rows[0].text == ""
    json.dumps(page_data(data), allow_nan=False)


@pytest.mark.parametrize("value", [0.0, np.nan, 1.0, -1.0])
def test_degenerate_scores_still_make_a_report(make, value):
    scores = make(values=np.full((3, 40), value), per_layer=None)
    data = report_data(scores)
    assert data.queries[0].answer
    assert data.queries[0].concentration
    json.dumps(page_data(data), allow_nan=False)


def test_a_single_query_and_row(make):
    data = report_data(make(n=40, queries=1))
    assert data.similarity is None


def test_offsets_are_utf16_on_the_page(make):
    scores = make()
    best = scores.proponents(0, 1)[0].train_id
    text = "😀 é東 x"
    rows = dict(scores.train_rows)
    rows[best] = rows[best].__class__(best, text, spans=(("prompt", "😀"), ("completion", " é東 x")))
    tokens = {("q-0", best): [TokenScores(((0, 1), (2, 3), (3, 4)), (1.0, 2.0, 3.0))]}
    data = report_data(scores.with_(train_rows=rows), extras=Extras(tokens=tokens))
    page = page_data(data)
    at = page["rows"]["id"].index(best)
    units = text.encode("utf-16-le")
    shown = [units[2 * a : 2 * b].decode("utf-16-le") for a, b in page["queries"][0]["tokens"][str(at)][0]["spans"]]
    assert shown == ["😀", "é", "東"]
    assert [units[2 * a : 2 * b].decode("utf-16-le") for _, a, b in page["rows"]["parts"][at]] == ["😀", " é東 x"]


def test_other_methods_stand_beside(scores):
    assert {q.view for q in report_data(scores).queries} == {""}  # one alone needs no name
    other = scores.with_(values=-scores.values, about={"method": "identity"})
    data = report_data(scores, extras=Extras(rankings={"gradient dot": other}))
    assert [(q.id, q.view) for q in data.queries[:1] + data.queries[3:4]] == [
        ("q-0", "EK-FAC"),
        ("q-0", "gradient dot"),
    ]
    assert data.queries[0].ranking.lines[0].row == data.queries[3].ranking.lines[-1].row


def test_sentences_name_the_best_rows(scores):
    data = report_data(scores, extras=Extras(tables=[Table("t", ("a",), ((1.0,),))]))
    for q, query in enumerate(data.queries):
        assert scores.proponents(q, 1)[0].train_id in query.answer
        assert scores.opponents(q, 1)[0].train_id in query.answer
        assert "response" in query.answer
    assert data.summary.startswith("EK-FAC influence of 39 training rows on 3 questions to the model tiny")


def test_normalised_scores_claim_no_nats(make):
    data = report_data(make(about={"method": "ekfac", "normalise": "relative"}))
    query = data.queries[0]
    assert data.unit == "relative units"
    assert "loss" not in query.answer and "nats" not in query.answer and "relative units" in query.answer
    assert any("not in nats" in w for w in query.warnings)
    assert not any("normalised" in w for w in report_data(make()).queries[0].warnings)


def test_provenance_is_flat_and_complete(make):
    about = {
        "method": "ekfac",
        "fit": [{"name": "covariance", "rows": 12}],
        "versions": {"torch": "2"},
        "quarantine": [{}],
    }
    facts = {(f.section, f.name): f.value for f in report_data(make(about=about)).facts}
    assert facts["How it was computed", "fit · covariance · rows"] == "12"
    assert facts["Versions", "torch"] == "2"
    assert not any("quarantine" in name for _, name in facts)
