"""Token scores end to end: they add up to the row's score, stand at the right characters, and survive the disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

import whence
from folders import animal_rows, model_folder, word_tokenizer
from whence.errors import OptionError
from whence.report import report_data
from whence.results import RowView
from whence.tasks.base import Example
from whence.tasks.placing import aligned, place_tokens
from whence.tasks.rows import Row

torch.set_num_threads(1)
OUTPUTS = ("o_proj.weight", "attention.dense.weight", "attn.c_proj.weight")
QUESTION = {"prompt": "the cat sat on", "response": " the mat ."}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(model_folder(tmp_path_factory.mktemp("tokenwise") / "model"))


@pytest.fixture(scope="module")
def scores(model):
    return whence.attribute(model, train=animal_rows(), query=QUESTION, dtype="float64", tokens=3, per_layer=True)


def test_tokens_add_up_to_the_score_of_their_row(scores):
    assert scores.token_tracks and len(scores.token_tracks) <= 6
    strongest = {line.train_id for line in scores.proponents(0, 3) + scores.opponents(0, 3)}
    assert {train_id for _, train_id in scores.token_tracks} == strongest
    for (query_id, train_id), tracks in scores.token_tracks.items():
        score = scores.row(query_id)[scores.train_ids.index(train_id)]
        assert [track.kind for track in tracks] == ["position", "output", "input"]
        assert tracks[0].total == pytest.approx(score, rel=1e-9)
        assert tracks[1].total == pytest.approx(score, rel=1e-5, abs=1e-6)  # rotary angles are computed in float32
        pairs = scores.token_pairs[query_id, train_id]
        assert pairs.shape == (len(scores.query_tracks[query_id].spans) + 1, len(tracks[0].spans) + 1)
        np.testing.assert_allclose(pairs[:, :-1].sum(0), tracks[0].scores, rtol=1e-4, atol=1e-4)
        assert pairs.sum() == pytest.approx(score, rel=1e-5)


def test_a_question_carries_what_its_proponents_give(scores):
    track = scores.query_tracks["query:1"]
    given = sum(line.score for line in scores.proponents(0, 3))
    assert track.total == pytest.approx(given, rel=1e-9)
    text = scores.query_rows["query:1"].text
    shown = [text[a:b] for (a, b), masked in zip(track.spans, track.masked, strict=True) if not masked]
    assert shown == ["the", "mat", "."]
    assert all(score == 0 for score, masked in zip(track.scores, track.masked, strict=True) if masked)


@pytest.mark.parametrize("options", [{}, {"normalise": "relative"}, {"method": "cg:tolerance=1e-12"}])
def test_a_long_question_carries_the_same_without_its_pairs(model, monkeypatch, options):
    """One derivative along the strongest rows against a query for every token."""
    given = {"train": animal_rows(), "query": QUESTION, "dtype": "float64", "tokens": 3, **options}
    if "method" not in options:
        table = whence.attribute(model, **given).query_tracks["query:1"]
    monkeypatch.setattr("whence.scores.tracks.WORK_POSITIONS", 1)
    without = whence.attribute(model, **given)
    track = without.query_tracks["query:1"]
    assert without.token_tracks and not without.token_pairs
    assert track.total == pytest.approx(sum(line.score for line in without.proponents(0, 3)), rel=1e-5)
    if "method" not in options:
        assert (track.spans, track.masked, track.kind) == (table.spans, table.masked, table.kind)
        np.testing.assert_allclose(track.scores, table.scores, rtol=1e-4, atol=1e-5)


def test_spans_are_the_words_of_the_row(scores):
    for (_, train_id), tracks in scores.token_tracks.items():
        text = scores.train_rows[train_id].text
        assert [text[a:b] for a, b in tracks[0].spans] == text.split()
        assert tracks[0].masked == (True, *[False] * (len(text.split()) - 1))


def test_heads_add_up_to_their_layer(scores):
    layers = dict.fromkeys(scores.heads["query:1"], 0.0)
    for line in scores.proponents(0, 3):
        for name in layers:
            layers[name] += scores.layers(line.train_id)[name]
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    counts = {name.rpartition(".")[2]: len(shares) for name, shares in scores.heads["query:1"].items()}
    assert counts == {
        "q_proj": 2,
        "k_proj": 1,
        "v_proj": 1,
        "o_proj": 2,
    }  # two query heads share one of keys and values
    for name, total in layers.items():
        assert sum(scores.heads["query:1"][name]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_classifier_has_tokens_too(kind, tmp_path):
    rows = [{"text": row["text"], "label": ("calm", "lively")[n % 2]} for n, row in enumerate(animal_rows(8))]
    model: object = str(model_folder(tmp_path / "model", classes=2))
    if kind == "bert":
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        labels = {"num_labels": 2, "label2id": {"calm": 0, "lively": 1}, "id2label": {0: "calm", 1: "lively"}}
        tokenizer = word_tokenizer()
        config = BertConfig(vocab_size=len(tokenizer), pad_token_id=3, max_position_embeddings=32, **sizes, **labels)
        model = (BertForSequenceClassification(config).double(), tokenizer)
    found = whence.attribute(model, train=rows, query=rows[:1], tokens=2, dtype="float64", layers=LAYERS[kind])
    assert found.token_tracks and not found.query_tracks
    for (query_id, train_id), tracks in found.token_tracks.items():
        text, score = found.train_rows[train_id].text, found.row(query_id)[found.train_ids.index(train_id)]
        assert [track.kind for track in tracks] == ["position", "input"]
        assert [text[a:b] for a, b in tracks[0].spans] == text.split()
        assert tracks[0].total == pytest.approx(score, rel=1e-9)
        assert not any(tracks[0].masked)
        assert (abs(tracks[0].rest) > 0) == (kind == "bert")  # its pooler and head see one vector, not tokens


LAYERS = {"llama": (), "bert": ("*.encoder.*", "*pooler*", "classifier")}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 32}
MODELS = {
    "gpt2": lambda v: GPT2LMHeadModel(GPT2Config(vocab_size=v, n_embd=16, n_layer=1, n_head=4, n_positions=32)),
    "gpt_neox": lambda v: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=v, intermediate_size=24, **SIZES)),
    "phi3": lambda v: Phi3ForCausalLM(
        Phi3Config(vocab_size=v, intermediate_size=24, num_key_value_heads=2, pad_token_id=3, **SIZES)
    ),
    "llama": lambda v: LlamaForCausalLM(
        LlamaConfig(vocab_size=v, intermediate_size=24, num_key_value_heads=2, **SIZES)
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_head_that_hands_nothing_on_has_no_score(kind):
    """Cut off the output of head 1 (and 0 where they share keys): its queries, keys and values move nothing."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    model = MODELS[kind](len(tokenizer)).eval()
    shared = kind in ("phi3", "llama")
    weight = next(
        p for n, p in model.named_parameters() if n.endswith(OUTPUTS) and n.endswith("weight") and p.ndim == 2
    )
    columns = weight.data.T if kind == "gpt2" else weight.data
    columns[:, 0 if shared else 4 : 8] = 0
    found = whence.attribute((model, tokenizer), train=animal_rows(4), query=QUESTION, tokens=2, method="identity",
                             dtype="float64", per_layer=True)  # fmt: skip
    heads, ups = found.heads["query:1"], [x.train_id for x in found.proponents(0, 2)]
    dead, dead_shared = ({0, 1} if shared else {1}), ({0} if shared else {1})
    sums: dict[str, float] = {}
    for name, shares in heads.items():
        layer = name.removesuffix(".q").removesuffix(".k").removesuffix(".v")
        sums[layer] = sums.get(layer, 0.0) + sum(shares)
        if "dense" in name or "o_proj" in name or "c_proj" in name:
            continue
        expected = dead_shared if len(shares) == 2 else dead
        assert {n for n, share in enumerate(shares) if share == 0} == expected, name
    expected = {"gpt2": 4, "gpt_neox": 2, "phi3": 4, "llama": 4}[kind]
    assert len(heads) == expected
    for layer, total in sums.items():
        whole = sum(found.layers(up)[layer] for up in ups)
        if "dense" not in layer and "c_proj" not in layer:  # their bias belongs to no head
            assert total == pytest.approx(whole, rel=1e-5)


def test_they_survive_the_disk_and_a_damaged_table_is_found(scores, tmp_path):
    scores.save(tmp_path / "run")
    loaded = whence.load(tmp_path / "run")
    assert loaded.token_tracks == scores.token_tracks
    assert loaded.query_tracks == scores.query_tracks
    assert loaded.heads == scores.heads
    for key, pairs in scores.token_pairs.items():
        np.testing.assert_array_equal(loaded.token_pairs[key], pairs)
    with (tmp_path / "run/tokens.parquet").open("r+b") as file:
        file.seek(200)
        byte = file.read(1)
        file.seek(200)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(whence.WhenceError, match=r"tokens\.parquet is damaged"):
        whence.load(tmp_path / "run")


def test_access_by_name(scores):
    best = scores.proponents(0, 1)[0].train_id
    assert scores.tokens(best) == scores.token_tracks["query:1", best]
    unseen = next(id_ for id_ in scores.train_ids if ("query:1", id_) not in scores.token_tracks)
    with pytest.raises(OptionError, match="no token scores"):
        scores.tokens(unseen)
    total = sum(scores.layers().values())
    assert total == pytest.approx(scores.values[scores.values > 0].sum(), rel=1e-5)
    with pytest.raises(OptionError, match="per_layer"):
        scores.with_(per_layer=None).layers()


@pytest.mark.parametrize("extra", [{"normalise": "cosine"}, {"top_k": 2}, {"method": "identity"}])
def test_other_rankings_keep_the_sums(model, extra):
    found = whence.attribute(model, train=animal_rows(6), query=QUESTION, dtype="float64", tokens=2, **extra)
    for (query_id, train_id), tracks in found.token_tracks.items():
        assert tracks[0].total == pytest.approx(found.row(query_id)[found.train_ids.index(train_id)], rel=1e-6)
        assert found.token_pairs[query_id, train_id].sum() == pytest.approx(tracks[0].total, rel=1e-4)


def test_none_are_made_when_none_are_wanted(model):
    found = whence.attribute(model, train=animal_rows(6), query=QUESTION, tokens=0)
    assert not found.token_tracks and not found.query_tracks and not found.heads


def test_they_reach_the_report(scores):
    data = report_data(scores)
    query = data.queries[0]
    assert query.query_tokens == scores.query_tracks["query:1"]
    assert {data.rows[row].id for row in query.tokens} == {train_id for _, train_id in scores.token_tracks}


class _Seen:
    """A task whose rendered text differs from the row's own."""

    def __init__(self, text, spans):
        self.text, self.spans = text, spans

    def token_spans(self, _row):
        return self


def test_template_tokens_have_no_place_and_bytes_share_one():
    view = RowView("r", "hi\né!", spans=(("user", "hi"), ("assistant", "é!")))
    rendered = "<u>hi</u><a>é!</a>"
    assert aligned(rendered, view) == [(3, 5, -3), (12, 14, -9)]
    spans = ((0, 3), (3, 5), (5, 9), (9, 12), (12, 13), (12, 13), (13, 14), (14, 18))
    labels = np.array([-100, -100, -100, -100, 7, 8, 9, 10])
    example = Example("r", {}, labels, 8, 4)
    place = place_tokens(_Seen(rendered, spans), Row("r", {}, "", ""), example, view)
    assert place.spans == ((0, 2), (3, 4), (4, 5))
    assert place.masked == (True, False, False)
    np.testing.assert_array_equal(place.folded(np.arange(8.0)), [1, 4 + 5, 6, 0 + 2 + 3 + 7])
