"""From folders to scores, report and command line; scores mean what they mean everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest

from folders import animal_rows, model_folder, tiny_llama, word_tokenizer, write_rows
from whence import load
from whence.cli.main import run
from whence.errors import OptionError
from whence.evaluate.trainers import Recipe
from whence.options import TraceOptions
from whence.pipeline import open_rows, open_subject
from whence.unrolled.course import course_of
from whence.unrolled.front import run_of, unroll
from whence.unrolled.replay import ReplayTrainer
from whence.watch import Silent

RECIPE = Recipe(rate=2e-3, epochs=2, batch=4, schedule="constant")
QUERY = [{"prompt": "where did the cat go", "completion": "the cat sat under the mat ."}]
OPTIONS = {"dtype": "float64", "lexical": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("unrolled")
    rows = [*animal_rows(7), {"text": "the"}]  # the last has nothing to predict
    return {
        "base": model_folder(place / "base"),
        "rows": write_rows(place / "rows.jsonl", rows),
        "query": write_rows(place / "query.jsonl", QUERY),
        "place": place,
    }


def test_a_score_over_n_is_what_leaving_the_row_out_does(world):
    """With plain gradient descent and small steps, whose effects add up; rows differ in weight and sign."""
    recipe = Recipe(optimiser="sgd", rate=0.002, epochs=4, batch=4, momentum=0.5)
    options = OPTIONS | {"max_bad_rows": 2}
    scores = unroll(str(world["base"]), train=str(world["rows"]), query=QUERY, recipe=recipe, options=options)
    assert scores.n_train == 7 and np.isnan(scores.row(0)[7]) and scores.about["method"] == "unrolled"
    subject = open_subject(str(world["base"]), TraceOptions(**OPTIONS), Silent())
    rows = open_rows(subject, animal_rows(7), what="train").examples
    asked = open_rows(subject, QUERY, what="query").examples
    trainer = ReplayTrainer(subject.loaded.model, subject.task, rows, asked, lambda seed: course_of(recipe, rows))
    without = [np.ones(7, dtype=bool), *(np.arange(7) != n for n in range(7))]
    whole, *left = trainer.losses(np.array(without), [0] * 8)[:, 0]
    measured, foretold = np.array(left) - whole, scores.removal_effect(0)[:7]
    assert np.corrcoef(measured, foretold)[0, 1] > 0.999
    assert (measured @ foretold) / (foretold @ foretold) == pytest.approx(1.0, abs=0.03)


def test_one_command(world, capsys):
    (world["place"] / "recipe.yaml").write_text("rate: 0.002\nepochs: 1\nbatch: 4\n")
    out = world["place"] / "run"
    words = ["unrolled", "--base", world["base"], "--data", world["rows"], "--query", world["query"]]
    words += ["--recipe", world["place"] / "recipe.yaml", "-o", out, "--json"]
    assert run([str(word) for word in words]) == 3  # one row of eight is bad
    write_rows(world["place"] / "rows.jsonl", animal_rows(8))
    assert run([str(word) for word in words]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any(r.get("type") == "score" for r in told)
    scores = load(out)
    assert scores.about["unrolled"]["steps"] == 2 and scores.about["coverage"]["share"] == 1.0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "training that was taken back" in page and "Is it smooth?" in page and "moves with the damping" not in page
    assert run(["info", str(out)]) == 0 and run(["report", str(out)]) == 0


def test_an_adapter_trains_its_own_layers(world):
    place = world["place"] / "adapter"
    adapted = peft.get_peft_model(tiny_llama(seed=0), peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    adapted.save_pretrained(place)
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(world["base"])}))
    word_tokenizer().save_pretrained(place)
    scores = unroll(str(place), train=animal_rows(6), query=QUERY, recipe=RECIPE, options=OPTIONS, smoothness=0)
    assert scores.about["layers"] and all("lora" in name for name in scores.about["layers"])
    assert np.isfinite(scores.values).all() and np.abs(scores.values).max() > 0


def test_a_contrast_and_a_top_are_those_of_all_scores(world):
    asked = [*QUERY, {"prompt": "who ran", "completion": "the dog ran ."}]
    given = {"train": animal_rows(6), "query": asked, "recipe": RECIPE, "smoothness": 0.0}
    each = unroll(str(world["base"]), options=OPTIONS, **given)
    both = unroll(str(world["base"]), options=OPTIONS | {"combine": "contrast"}, **given)
    np.testing.assert_allclose(both.values[0], each.values[0] - each.values[1], rtol=1e-5)  # float32 norms
    best = unroll(str(world["base"]), options=OPTIONS | {"top_k": 1}, **given)
    assert best.values.shape == (2, 2) and best.values[0, 0] == pytest.approx(each.values[0].max())


def test_settings_that_cannot_work_are_explained():
    with pytest.raises(OptionError, match="colour"):
        run_of(colour="red")
    with pytest.raises(OptionError, match="states = 0"):
        run_of(states=0)
