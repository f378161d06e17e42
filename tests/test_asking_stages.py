"""An index of the pre-training rows, asked about a fine-tuned model: as a trace through both stages answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from folders import animal_rows, model_folder, tiny_llama, word_tokenizer, write_rows
from whence import ask, attribute, build_index
from whence.cli.main import run
from whence.errors import OptionError, StoreError
from whence.indexing import Compression

QUERY = [{"prompt": "where did the cat go", "completion": "the cat sat under the mat ."}]
OPTIONS = {"dtype": "float64", "fit_rows": "all"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Path]:
    place, rows = tmp_path_factory.mktemp("stages"), animal_rows(14)
    model = tiny_llama(seed=0)
    with torch.no_grad():
        for n, parameter in enumerate(model.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n))
    model.save_pretrained(place / "tuned")
    word_tokenizer().save_pretrained(place / "tuned")
    found = {
        "base": model_folder(place / "base"),
        "tuned": place / "tuned",
        "pre": write_rows(place / "pre.jsonl", rows[:8]),
        "tune": write_rows(place / "tune.jsonl", rows[8:]),
        "query": write_rows(place / "query.jsonl", QUERY),
        "index": place / "index",
    }
    build_index(
        str(found["base"]), train=str(found["pre"]), out=found["index"], compression=Compression(1e3, "fp16"),
        options=OPTIONS,
    )  # fmt: skip
    return found


def tuned(world, **more):
    return {"model": str(world["tuned"]), "data": str(world["tune"]), "alpha": 0.5, **more}


def test_it_answers_as_a_trace_through_both_stages(world):
    found = ask(world["index"], QUERY, tuned=tuned(world))
    before = {"model": str(world["base"]), "data": str(world["pre"]), "alpha": 0.5}
    wanted = attribute(
        str(world["tuned"]), train=str(world["tune"]), query=QUERY, pretraining=before, tokens=0, **OPTIONS
    )
    assert found.train_ids == wanted.train_ids and found.n_train == wanted.n_train == 14
    np.testing.assert_allclose(found.values[0, :6], wanted.values[0, :6], rtol=1e-6)
    worst = np.abs(found.values[0, 6:] - wanted.values[0, 6:]).max() / np.abs(wanted.values[0, 6:]).max()
    assert worst < 2e-3  # rows of the index are in half precision
    assert found.about["stages"] == {"fine-tuning": 6, "pre-training": 8}
    assert found.train_rows[found.train_ids[-1]].source.startswith("pre-training")


def test_one_command_and_its_report(world, capsys):
    out = world["index"].parent / "run"
    words = ["ask", "--index", world["index"], "--tuned", world["tuned"], "--tuned-data", world["tune"]]
    words += ["--alpha", "0.5", "--query", world["query"], "-o", out, "--top-k", "3", "--json"]
    assert run([str(word) for word in words]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["source"].split(":")[0] for r in told if r["type"] == "score"} == {"fine-tuning", "pre-training"}
    assert "Which stage of training" in (out / "report.html").read_text(encoding="utf-8")
    assert run([str(word) for word in words if word not in ("--tuned-data", world["tune"])]) == 2


def test_what_cannot_work_is_explained(world):
    with pytest.raises(OptionError, match="no trainer_state"):
        ask(world["index"], QUERY, tuned={"model": str(world["tuned"]), "data": str(world["tune"])})
    with pytest.raises(OptionError, match="normalise"):
        ask(world["index"], QUERY, tuned=tuned(world), normalise="cosine")
    with pytest.raises(OptionError, match="two stages of an index"):
        ask(world["index"], QUERY, tuned=tuned(world), combine="mean")
    with pytest.raises(StoreError):
        ask(world["index"], QUERY, model=str(world["tuned"]), tuned=tuned(world))


def test_an_index_of_some_rows_knows_the_size_of_the_whole(world, tmp_path):
    given = {"train": str(world["pre"]), "compression": Compression(1e3, "fp16")}
    build_index(str(world["base"]), out=tmp_path / "some", options={**OPTIONS, "train_size": 80}, **given)
    part, whole = (ask(place, QUERY) for place in (tmp_path / "some", world["index"]))
    assert part.n_train == 80 and whole.n_train == 8
    np.testing.assert_allclose(part.removal_effect(0) * 10, whole.removal_effect(0), rtol=1e-6)
