"""``whence evaluate lds | loo | removal``: tables, files, banks that are used again or refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from folders import write_rows
from whence import retraining
from whence.dampings import choose_damping
from whence.demo.almanac import almanac
from whence.demo.quick import Quick, almanac_lds, almanac_loo, almanac_removal, divided
from whence.demo.train import Recipe as BookRecipe
from whence.errors import OptionError
from whence.evaluate.trainers import Recipe
from whence.evaluating import Terms
from whence.options import SweepOptions, TraceOptions
from whence.retraining import Retraining, in_nats, read_recipe
from whence.watch import Silent

QUERIES = [
    {"id": "mat", "prompt": "where did the cat go", "completion": "the cat sat under the mat ."},
    {"id": "log", "prompt": "who ran", "completion": "the dog ran over the log ."},
]


@pytest.fixture
def words(place, tmp_path):
    write_rows(tmp_path / "query.jsonl", QUERIES)
    (tmp_path / "recipe.yaml").write_text("rate: 0.01\nepochs: 2\nbatch: 4\n")
    given = ["--base", place.model, "--data", place.data, "--query", tmp_path / "query.jsonl"]
    return [*given, "--recipe", tmp_path / "recipe.yaml"]


def record(said) -> dict:
    (found,) = [r for r in said.records if r["type"] == "evaluation"]
    return found


def test_lds_and_its_bank(whence, words, place, tmp_path) -> None:
    lds = ["evaluate", "lds", *words, "--bank", tmp_path / "bank", "--subsets", "5", "--contenders", "ekfac,dot,random"]
    first = whence(*lds, "--out", tmp_path / "out")
    assert first.code == 0, first.err
    assert "noise ceiling" not in first.err and "0 models are there already" in first.err
    assert {"ekfac", "dot", "random"} <= set(first.out.split())
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"outcome.json", "report.html"} <= files
    again = whence(*lds, "--json")
    kept = json.loads((tmp_path / "out" / "outcome.json").read_text())
    assert record(again)["values"] == kept["values"]
    notes = [r for r in again.records if r.get("kind") == "bank"]
    assert notes[0]["there"] == notes[0]["members"] == 10
    (tmp_path / "recipe.yaml").write_text("rate: 0.02\nepochs: 2\nbatch: 4\n")
    refused = whence(*lds)
    assert refused.code == 4 and "recipe.rate: 0.01, now 0.02" in refused.err
    study = choose_damping(
        str(place.model),
        train=str(place.data),
        query=str(tmp_path / "query.jsonl"),
        options=TraceOptions(),
        tried=SweepOptions(bank=str(tmp_path / "bank"), values=("0.1", "1"), reference="none"),
    )
    assert study.evidence[0].kind == "lds" and "5 models" in study.evidence[0].sentence


def test_loo(whence, words) -> None:
    found = record(whence("evaluate", "loo", *words, "--rows", "4", "--seeds", "2", "--contenders", "dot", "--json"))
    assert found["verb"] == "loo" and len(found["values"]["rows"]) == 4
    assert any("Two seeds agree" in said for said in found["words"])
    assert np.shape(found["values"]["change"]) == (2, 4)


def test_removal(whence, words) -> None:
    given = ["--remove", "2", "--seeds", "2", "--contenders", "ekfac,bm25,random", "--json"]
    said = whence("evaluate", "removal", *words, *given)
    assert [r for r in said.records if r.get("kind") == "keep"]  # that a stopped run would begin anew is said
    found = record(said)
    assert found["verb"] == "removal" and {row[0] for row in found["rows"]} == {"ekfac", "bm25", "random"}
    assert set(found["values"]["foretold"]) == {"ekfac"} and found["values"]["sizes"]["seeds"] == 2


def test_with_out_a_stopped_run_goes_on(whence, words, tmp_path) -> None:
    """What was trained lies beside the answer: take one model away, as a kill would have, and one is trained."""
    loo = ["evaluate", "loo", *words, "--rows", "3", "--seeds", "1", "--contenders", "dot", "--json"]
    first = whence(*loo, "--out", tmp_path / "out")
    members = sorted((tmp_path / "out" / "bank" / "members").iterdir())
    assert len(members) == 4
    members[0].unlink()
    again = whence(*loo, "--out", tmp_path / "out")
    (note,) = [r for r in again.records if r.get("kind") == "bank"]
    assert note["there"] == 3 and record(again)["values"] == record(first)["values"]
    (tmp_path / "file").write_text("")
    assert whence(*loo, "--out", tmp_path / "file").code == 4


def test_any_function_from_python(place, tmp_path) -> None:
    write_rows(tmp_path / "query.jsonl", QUERIES)
    seen = []

    def trained(ids, seed):
        seen.append((tuple(ids), seed))
        return {"mat": -float(len(set(ids) & {"train:1", "train:2"})), "log": float(len(ids) * seed)}

    how = Retraining(function=trained, about={"recipe": 1}, seeds=1, terms=Terms(("dot", "random")))
    given = {"train": str(place.data), "query": str(tmp_path / "query.jsonl"), "how": how}
    found = retraining.lds(str(place.model), subsets=6, **given)
    assert len(seen) == 6 and all(len(ids) == 6 and seed == 0 for ids, seed in seen)
    assert found.about["training"]["recipe"] == 1 and np.isnan(found.values["per_query"]["dot"][1])
    with pytest.raises(OptionError, match="a function without a model"):
        retraining.lds(None, **given)


SCRIPT = """
import shutil, sys
rows, seed, out, base = sys.argv[1:]
shutil.copytree(base, out, dirs_exist_ok=True)
open(out + "/rows.txt", "w").write(open(rows).read())
"""


def test_a_command_that_leaves_a_model_folder(whence, place, tmp_path) -> None:
    """Every 'training' gives back the base: all losses alike, and said to be."""
    write_rows(tmp_path / "query.jsonl", QUERIES)
    (tmp_path / "train.py").write_text(SCRIPT)
    command = f"{sys.executable} {tmp_path}/train.py {{rows}} {{seed}} {{out}} {place.model}"
    given = ["--model", place.model, "--data", place.data, "--query", tmp_path / "query.jsonl", "--command", command]
    said = whence("evaluate", "lds", *given, "--subsets", "3", "--seeds", "1", "--contenders", "dot", "--json")
    assert said.code == 0, said.err
    assert record(said)["values"]["sizes"] == {"subsets": 3, "seeds": 1, "queries": 2, "rows": 12, "dropped": 0}


def test_what_is_missing_is_said(whence, words, place, tmp_path) -> None:
    for given, told in (
        (["lds", *words[:4]], "no --query"),
        (["loo", *words[:2]], "no --data"),
        (["lds", *words[2:]], "no base model and no command"),
        (["lds", *words, "--command", "x {rows} {out}"], "a base model and a command"),
        (["lds", *words[2:], "--command", "x {rows} {out}"], "a command without a model"),
        (["lds", "--quick", *words], "--quick with a model"),
        (["lds", *words, "--subsets", "many"], "subsets 'many'"),
        (["loo", *words, "--rows", "99"], "99 rows left out of 12"),
        (["removal", *words, "--remove", "12"], "removing 12 of 12"),
    ):
        said = whence("evaluate", *given)
        assert said.code == 2 and told in said.err, said.err


def test_recipes(tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("optimiser: sgd\nrate: 0.1\nbetas: [0.9, 0.95]\n")
    assert read_recipe(path) == Recipe("sgd", rate=0.1, betas=(0.9, 0.95)) and read_recipe(None) == Recipe()
    for text, told in (("speed: 3\n", "speed"), ("rate: 1e-3\n", "rate: '1e-3'"), ("schedule: step\n", "schedule")):
        path.write_text(text)
        with pytest.raises(OptionError, match=told):
            read_recipe(path)


def test_whose_scores_are_in_nats() -> None:
    names = ["ekfac", "relative:ekfac", "dot", "cosine", "bm25", "kfac@relative:1", "ekfac_cg:steps=5", "trackstar"]
    assert in_nats(names) == ["ekfac", "kfac@relative:1", "ekfac_cg:steps=5"]


def test_the_embedded_example_on_tiny_settings(tmp_path) -> None:
    base = BookRecipe(width=16, inner=16, layers=1, heads=2, passes=1)
    quick = Quick(rows=12, questions=2, subsets=3, learned=40, base=base, recipe=Recipe(rate=1e-3, epochs=1, batch=4))
    how = Retraining(bank=tmp_path / "bank", terms=Terms(("dot", "bm25", "random")))
    found = almanac_lds(tmp_path, how=how, quick=quick, watch=Silent())
    assert found.verb == "lds" and found.values["sizes"]["rows"] == 12 and found.values["sizes"]["queries"] == 4
    assert almanac_lds(tmp_path, how=how, quick=quick, watch=Silent()).values["lds"] == found.values["lds"]
    how = replace(how, bank=None)
    assert almanac_loo(tmp_path, how=how, quick=quick, count=3, watch=Silent()).verb == "loo"
    taken = almanac_removal(tmp_path, how=how, quick=quick, counts=(2,), watch=Silent())
    assert taken.verb == "removal" and taken.values["sizes"]["queries"] == 4
    kept = {path.parent.parent.name for path in (tmp_path / "quick").glob("base-*/bank-*/members/*.npz")}
    assert kept == {"bank-loo-12-2", "bank-removal-12-2"}  # without a bank of the user's, the example keeps its own


def test_quick_asks_about_what_it_fine_tunes_on() -> None:
    asked, tuned, learned = divided(almanac(0), Quick())
    ids = {d.id for d in tuned}
    assert len(tuned) == 256 and not ids & {d.id for d in learned} and len(learned) > 1000
    facts = [q for q in asked if q.kind == "fact"]
    assert len(facts) == 16 and all(q.relevant <= ids for q in facts)
