"""The studies of language models on tiny made-up text: they run, and write a page, a plot and a JSON."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from whence.demo.almanac import almanac, questions
from whence.demo.tokens import build_tokenizer
from whence.demo.train import Recipe, new_model
from whence.demo.world import World

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture
def study(monkeypatch):
    """Studies are scripts: they import their neighbours as a script does."""
    monkeypatch.syspath_prepend(str(STUDIES))

    def load(name):
        sys.modules.pop(name, None)
        return __import__(name)

    return load


@pytest.fixture
def small_almanac(study, monkeypatch):
    """A tenth of the Almanac and a model that has read nothing, where studies expect those of the demo."""
    book = almanac(0)
    known = {fact.subject for fact in book.facts[:16]}
    about = [d for d in book.documents if d.subject in known]
    book = replace(book, documents=(*about, *[d for d in book.documents if not d.subject][::12]))

    def reader(_place, recipe=None, seed=0):
        tokenizer = build_tokenizer(document.text for document in book.documents)
        model = new_model(replace(recipe or Recipe(), width=8, inner=8, heads=2, seed=seed), len(tokenizer)).eval()
        return World(book, questions(almanac(0)), [], "", Path()), language.Reader(model, tokenizer, 128)

    language = study("_language")
    monkeypatch.setattr(language, "almanac_reader", reader)
    return book


def written(folder: Path, name: str) -> dict:
    record = json.loads((folder / f"{name}.json").read_text())
    page, plot = (folder / f"{name}.md").read_text(), (folder / f"{name}.svg").read_text()
    assert len(record["about"]["config_hash"]) == 16 and record["about"]["config_hash"] in page
    assert page.startswith("# ") and "| --- |" in page
    assert plot.startswith("<svg") and "nan" not in plot
    return record


def sentences(count: int, seed: int = 0, words: int = 4) -> list[str]:
    rng = np.random.default_rng(seed)
    known = ["".join(chr(c) for c in rng.integers(97, 123, 3)) for _ in range(40)]
    return [" ".join(rng.choice(known, words)) for _ in range(count)]


def test_word_order_runs(study, small_almanac, tmp_path):
    module = study("word_order")
    rows = [{"en": a, "fr": b} for a, b in zip(sentences(30), sentences(30, 1), strict=True)]
    with gzip.open(tmp_path / "en_fr.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    shape = module._language.Shape(vocabulary=270, width=8, inner=8, layers=1, passes=1)
    config = module.Config(languages=("fr",), pairs=10, planted=3, shape=shape, facts=3)
    result = module.run(config, tmp_path, tmp_path / "demo")
    module.page(config, result, module._page.circumstances(config, 1.0), tmp_path / "docs")
    record = written(tmp_path / "docs", "word_order")
    assert len(record["met"]) == 3 and set(record["result"]["translations"]) == {"fr"}
    assert all(len(v) == 3 for v in record["result"]["almanac"]["effect"].values())


def test_two_phrases_change_places_and_a_ratio_to_nothing_is_not_claimed(study):
    module = study("word_order")
    assert module.exchanged("Ada was born in Vell. Ada left Vell.", "Ada", "Vell") == (
        "Vell was born in Ada. Vell left Ada."
    )
    rng = np.random.default_rng(0)
    strong, weak, none = 1 + 0.1 * rng.random(40), 0.2 + 0.1 * rng.random(40), 0.1 * rng.standard_normal(40) - 0.01
    groups = {kind: {"a": strong, "b": weak, "c": none} for kind in ("effect", "relative")}
    assert module.comparison(groups, "a", "b")["effect"]["ratio"] == pytest.approx(strong.mean() / weak.mean())
    assert module.passed(module.comparison(groups, "a", "b")) and not module.passed(module.comparison(groups, "b", "a"))
    assert "cannot be told from 0" in module.said(module.comparison(groups, "a", "c")["effect"])
    assert module.closing({"met": {"x": True, "y": False, "z": True}}).count("**not**") == 1


def stories_model(folder: Path, language) -> None:
    """DATA/stories260K and DATA/tinystories, made up."""
    texts = [". ".join(sentences(4, n)) + "." for n in range(60)]
    (folder / "tinystories").mkdir()
    with (folder / "tinystories" / "stories_cased.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    shape = language.Shape(vocabulary=270, width=8, inner=8, layers=2, passes=1)
    reader = language.trained_reader(texts, shape)
    reader.model.save_pretrained(folder / "stories260K")
    reader.tokenizer.save_pretrained(folder / "stories260K")


def test_sparsity_runs(study, small_almanac, tmp_path):
    module = study("sparsity")
    stories_model(tmp_path, module._language)
    config = module.Config(stories=50, endings=3, tokens=32, facts=4, habits=4)
    result = module.run(config, tmp_path, tmp_path / "demo")
    module.page(config, result, module._page.circumstances(config, 1.0), tmp_path / "docs")
    record = written(tmp_path / "docs", "sparsity")
    assert set(record["figures"]) == {module.FACTS, module.HABITS, module.STORIES}
    assert all(group["curve"][-1] == pytest.approx(1.0) for group in result.values())


def test_each_tail_is_told_from_the_other(study):
    module = study("sparsity")
    rng = np.random.default_rng(0)
    power, thin = 1 + rng.pareto(1.5, 400), 1 + rng.exponential(0.5, 400)
    assert module.lead_over_exponential(power)[1] > 1.96 and module.lead_over_exponential(thin)[1] < -1.96
    found = module.judged(np.concatenate([power, np.zeros(20), -rng.random(3000)]))
    assert found["exponent"] == pytest.approx(2.5, abs=0.8) and found["proponents"] == 400
    assert module.curve(np.array([[3.0, 1.0, 0.0, -5.0] * 1]))[-2:] == [1.0, 1.0]


def test_filter_recall_runs(study, small_almanac, tmp_path):
    module = study("filter_recall")
    text = "\n".join([" = heading = ", *sentences(40, words=8)])
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(text.encode()))
    shape = module._language.Shape(vocabulary=270, width=8, inner=8, layers=1, passes=1)
    config = module.Config(rows=20, questions=3, words=8, top=5, few=2, shape=shape, facts=2, habits=2)
    result = module.run(config, tmp_path, tmp_path / "demo")
    module.page(config, result, module._page.circumstances(config, 1.0), tmp_path / "docs")
    assert set(written(tmp_path / "docs", "filter_recall")["checks"]) == {module.WIKI, module.FACTS, module.HABITS}


def test_recall_of_the_same_ranking_is_whole_and_ties_count_by_their_odds(study):
    module = study("filter_recall")
    exact = np.random.default_rng(0).standard_normal((3, 100))
    np.testing.assert_allclose(module.recall(exact, exact, top=10, kept=10), 1.0)
    np.testing.assert_allclose(module.recall(exact, -exact, top=10, kept=50), 0.0)
    np.testing.assert_allclose(module.recall(exact, np.zeros_like(exact), top=10, kept=25), 0.25)


def test_funnel_runs(study, small_almanac, tmp_path):
    module = study("funnel")
    text = "\n".join([" = heading = ", *sentences(40, words=8)])
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(text.encode()))
    shape = module._language.Shape(vocabulary=270, width=8, inner=8, layers=1, passes=1)
    config = module.Config(
        rows=20, questions=3, words=8, top=2, shares=(0.05, 0.2), shape=shape, facts=2, habits=2, audits=2
    )
    result = module.run(config, tmp_path, tmp_path / "demo")
    module.page(config, result, module._page.circumstances(config, 1.0), tmp_path / "docs")
    record = written(tmp_path / "docs", "funnel")
    assert set(record["checks"]) == {module.WIKI, module.FACTS, module.HABITS}
    for group in result.values():
        for line in group["filters"].values():
            assert 0 <= line["estimated"]["truth"] <= 1 and line["curve"][0]["recall"] <= line["curve"][1]["recall"]
        # the rows of this model are short enough for an index of 10 KB to keep every number: it is the exact ranking
        assert group["filters"][module.index_name(10)]["curve"][1]["recall"] == 1.0


def test_cross_lingual_runs(study, tmp_path):
    module = study("cross_lingual")
    for part in ("udhr", "tatoeba"):
        (tmp_path / part).mkdir()
    sides = list(zip(sentences(12, 0, 8), sentences(12, 1, 8), strict=True))
    with (tmp_path / "udhr" / "articles.jsonl").open("w") as file:
        file.writelines(json.dumps({"article": n, "en": a, "fr": b}) + "\n" for n, (a, b) in enumerate(sides))
    with gzip.open(tmp_path / "tatoeba" / "en_fr.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"en": a, "fr": b}) + "\n" for a, b in sides)
    shape = module._language.Shape(vocabulary=270, width=8, inner=8, layers=1, passes=1, length=40)
    config = module.Config(languages=("fr",), articles=3, pairs=6, asked=2, top=2, shape=shape)
    result = module.run(config, tmp_path)
    module.page(config, result, module._page.circumstances(config, 1.0), tmp_path / "docs")
    record = written(tmp_path / "docs", "cross_lingual")
    assert set(record["result"]["articles"]["EK-FAC"]["en"]) == {"en", "fr"}


def test_places_count_from_first_to_last(study):
    module = study("cross_lingual")
    scores = np.array([0.1, 0.9, 0.5, 0.5])
    assert [module.place(scores, n) for n in range(4)] == pytest.approx([0.0, 1.0, 0.5, 0.5])
    assert module.in_two("one two three four five") == ("one two", "three four five")
    assert module.against_chance(np.full(9, 0.6)) == "above chance"


def test_layer_depth_runs(study, small_almanac, tmp_path):
    module = study("layer_depth")
    stories_model(tmp_path, module._language)
    config = module.Config(
        recipe=Recipe(layers=3), seeds=(0,), facts=3, habits=3, plain=3, top=10, stories=40, endings=2, tokens=32
    )
    result = module.run(config, tmp_path, tmp_path / "demo")
    module.page(config, result, module._page.circumstances(config, 1.0), tmp_path / "docs")
    record = written(tmp_path / "docs", "layer_depth")
    shares = result["almanac"][0]["shares"]
    assert set(shares) == {"facts", "habits", "plain sentences", "plain, one word"}
    assert shares["facts"]["mlp"].shape == (3, 3) and len(record["means"]["almanac"]) == 1
    np.testing.assert_allclose(shares["facts"]["mlp"].sum(1), 1.0)


def test_shares_by_block_are_the_sums_over_the_strongest_rows(study):
    module = study("layer_depth")
    names = ("model.layers.0.mlp.up", "model.layers.0.self_attn.q", "model.layers.1.mlp.up", "model.layers.1.mlp.down")
    by_layer = np.zeros((1, 3, 4))
    by_layer[0] = [[1, 9, 2, 1], [0, 0, -1, 0], [3, 0, 0, 1]]  # rows x layers
    found = module.shares(by_layer, names, 2)
    np.testing.assert_allclose(found["mlp"], [[0.5, 0.5]])  # rows 0 and 2: 1 + 3 against 2 + 1 + 1
    np.testing.assert_allclose(found["attention"], [[1.0, 0.0]])
    assert module.centre(np.array([[0.0, 0.0, 1.0], [0.5, 0.0, 0.5]])).tolist() == [1.0, 0.5]
    assert "against the paper" in module.verdict([(-1, -2, -0.5)]) and "not clearly" in module.verdict([(1, -1, 2)])
