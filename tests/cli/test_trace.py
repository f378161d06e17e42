"""``whence trace`` end to end: what it prints, what it writes, and that the same comes out of Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import whence as library
from cli.conftest import Place, Said
from folders import animal_rows, model_folder, write_rows

Call = Callable[..., Said]


def test_the_main_job(place: Place, whence: Call) -> None:
    said = whence(*place.trace, "-o", "run")
    assert said.code == 0, said.err
    order = [
        said.err.index(word) for word in ("model ", "layers ", "rows ", "questions ", "fit ", "written ", "next: ")
    ]
    assert order == sorted(order)
    assert "7 linear maps" in said.err
    assert "12 of 12 from" in said.err
    assert "shape text" in said.err
    assert "attention sdpa" in said.err
    assert "proponents" in said.out
    assert "train:" in said.out
    assert {p.name for p in Path("run").iterdir()} >= {"run.json", "scores.parquet", "report.html", "quarantine.jsonl"}


def test_the_run_equals_the_python_call(place: Place, whence: Call) -> None:
    assert whence(*place.trace, "-o", "run").code == 0
    question = {"prompt": "the cat sat on", "response": " the mat ."}
    scores = library.attribute(str(place.model), train=str(place.data), query=question)
    loaded = library.load("run")
    np.testing.assert_array_equal(loaded.values, scores.values)
    assert loaded.train_ids == scores.train_ids == tuple(f"train:{n}" for n in range(1, 13))
    assert loaded.train_rows == scores.train_rows
    assert loaded.proponents(0, 3) == scores.proponents(0, 3)


def test_run_json_tells_all(place: Place, whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisisasecrettoken")
    monkeypatch.setattr("sys.argv", ["whence", "trace", "--hf-token", "hf_thisisasecrettoken"])
    assert whence(*place.trace, "-o", "run").code == 0
    text = Path("run/run.json").read_text()
    assert "secret" not in text
    body = json.loads(text)
    assert body["options"]["method"] == "ekfac"
    assert body["request"]["prompt"] == "the cat sat on"
    assert set(body["damping_per_layer"]) == set(body["layers"])
    assert all(value > 0 for value in body["damping_per_layer"].values())
    assert body["model"]["model"]["files"]["model.safetensors"]["checksum"].startswith("xxh3:")
    assert body["model"]["tokenizer"]["checksum"].startswith("xxh3:")
    assert body["train"]["fingerprint"]
    assert body["about"]["rows"] == {"read": 12, "scored": 12, "truncated": 0, "quarantined": 0}
    assert body["about"]["seconds"]["total"] > 0
    assert body["about"]["coverage"]["share"] > 0.3
    assert body["peak_memory_bytes"] > 10_000_000
    assert body["environment"]["versions"]["torch"]
    assert body["environment"]["cpus"]
    assert set(body["files"]) >= {
        "scores.parquet",
        "rows.parquet",
        "queries.parquet",
        "quarantine.jsonl",
        "report.html",
    }


def test_json_owns_stdout(place: Place, whence: Call) -> None:
    said = whence(*place.trace, "--json")
    assert said.code == 0, said.err
    kinds = [record["type"] for record in said.records]
    assert kinds[0] == "note"
    assert kinds[-1] == "done"
    best = next(record for record in said.records if record["type"] == "score")
    assert {"train_id", "score", "removal_effect", "lexical", "location", "text", "rank", "side"} <= set(best)
    assert best["removal_effect"] == pytest.approx(best["score"] / 12)
    assert "model " in said.err


def test_quiet(place: Place, whence: Call) -> None:
    said = whence(*place.trace, "--quiet")
    assert said.code == 0
    assert said.err == ""
    assert "proponents" in said.out


def test_several_questions_from_files(place: Place, whence: Call) -> None:
    pair = {"prompt": "the cat", "completion": " sat"}
    write_rows(Path("q.jsonl"), [{"id": "a", **pair}, {"id": "b", **pair}])
    write_rows(Path("more.jsonl"), [{"text": "the bird flew"}])
    said = whence(*place.trace, "--query", "q.jsonl", "--query", "more.jsonl", "-o", "run")
    assert said.code == 0, said.err
    assert library.load("run").query_ids == ("a", "b", "more:1", "question:1")


def test_several_sources(place: Place, whence: Call) -> None:
    write_rows(Path("more.jsonl"), animal_rows(4))
    said = whence(*place.trace, "--data", "extra=more.jsonl", "-o", "run")
    assert said.code == 0, said.err
    views = library.load("run").train_rows
    assert {view.source for view in views.values()} == {"train", "extra"}
    assert views["extra:2"].location.endswith("more.jsonl:2")


@pytest.mark.parametrize(
    "extra",
    [
        ["--method", "identity"],
        ["--method", "kfac", "--damping", "absolute:1e-3"],
        ["--method", "diagonal", "--fisher", "empirical"],
        ["--damping", "factored:0.1", "--fit-rows", "all"],
        ["--layers", "*.mlp.*", "--layers", "!*down*"],
        ["--normalise", "cosine"],
        ["--normalise", "relative", "--top-k", "3"],
        ["--top_k", "3", "--per-layer"],
        ["--fit_rows", "6", "--seed", "3", "--no-lexical", "--self-influence"],
        ["--max-length", "7", "--batch-tokens", "16", "--dtype", "float64", "--attention", "eager"],
    ],
    ids=" ".join,
)
def test_options(place: Place, whence: Call, extra: list[str]) -> None:
    said = whence(*place.trace, *extra, "-o", "run")
    assert said.code == 0, said.err
    loaded = library.load("run")
    assert np.isfinite(loaded.values).any()
    replay = whence("info", "run", "--replay").out
    assert replay.startswith("whence trace --model")
    for word in extra:
        assert word.replace("_", "-") in replay or word.lstrip("-") in replay, replay


def test_cosine_is_at_most_one(place: Place, whence: Call) -> None:
    assert whence(*place.trace, "--normalise", "cosine", "--dtype", "float64", "-o", "run").code == 0
    values = library.load("run").values
    assert np.abs(values).max() <= 1 + 1e-9
    write_rows(Path("self.jsonl"), [animal_rows()[0]])
    given = ["trace", "--model", place.model, "--data", place.data, "--query", "self.jsonl", "-o", "self"]
    assert whence(*given, "--normalise", "cosine", "--dtype", "float64").code == 0
    assert library.load("self").values[0, 0] == pytest.approx(1, abs=1e-9)


def test_top_k_is_the_top_of_all(place: Place, whence: Call) -> None:
    assert whence(*place.trace, "--dtype", "float64", "-o", "all").code == 0
    assert whence(*place.trace, "--dtype", "float64", "--top-k", "3", "-o", "top").code == 0
    assert whence(*place.trace, "--dtype", "float64", "--top-k", "3", "--per-layer", "-o", "layers").code == 0
    every, top, layers = (library.load(name) for name in ("all", "top", "layers"))
    for side in ("proponents", "opponents"):
        wanted = getattr(every, side)(0, 3)
        for found in (getattr(top, side)(0, 3), getattr(layers, side)(0, 3)):
            assert [line.train_id for line in found] == [line.train_id for line in wanted]
            np.testing.assert_allclose([line.score for line in found], [line.score for line in wanted], rtol=1e-9)
    assert layers.per_layer is not None
    known = layers.columns[0] >= 0
    np.testing.assert_allclose(layers.per_layer[0][known].sum(-1), layers.values[0][known], rtol=1e-4)
    assert top.lexical.shape == top.values.shape


def test_several_layer_patterns_with_commas(place: Place, whence: Call) -> None:
    """In one flag, in one line of YAML, and as two flags they are the same request; brackets keep their commas."""
    Path("one.yaml").write_text("layers: '*.mlp.*, !*down*'\n")
    Path("many.yaml").write_text("layers: ['*.mlp.*,!*down*']\n")
    ways = {
        "flag": ["--layers", "*.mlp.*,!*down*"],
        "flags": ["--layers", "*.mlp.*", "--layers", "!*down*"],
        "one": ["-c", "one.yaml"],
        "many": ["-c", "many.yaml"],
        "brackets": ["--layers", "*.[0,1].mlp.up_proj,*.[!2,].mlp.gate_proj"],
    }
    found = {}
    for name, words in ways.items():
        said = whence(*place.trace, *words, "--method", "identity", "-o", name)
        assert said.code == 0, said.err
        found[name] = set(library.load(name).about["layers"])
    assert found["flag"] == found["flags"] == found["one"] == found["many"] == found["brackets"]
    assert found["flag"] and all("up_proj" in layer or "gate_proj" in layer for layer in found["flag"])
    wrong = whence(*place.trace, "--layers", "*.mlp.*,nonsense", "-o", "wrong")
    assert wrong.code != 0 and "'nonsense' matches nothing" in wrong.err


def test_yaml_and_flags(place: Place, whence: Call) -> None:
    Path("run.yaml").write_text(
        f"model: {place.model}\ndata: train.jsonl\nprompt: the cat\nresponse: ' sat'\nmethod: kfac\nfit-rows: 6\n"
    )
    said = whence("trace", "-c", "run.yaml", "--method", "identity", "-o", "run")
    assert said.code == 0, said.err
    body = json.loads(Path("run/run.json").read_text())
    assert body["options"]["method"] == "identity"
    assert body["options"]["fit_rows"] == 6


def test_a_run_replays(place: Place, whence: Call) -> None:
    assert whence(*place.trace, "--damping", "0.01", "-o", "run").code == 0
    said = whence("trace", "-c", "run/run.json", "-o", "again")
    assert said.code == 0, said.err
    np.testing.assert_array_equal(library.load("run").values, library.load("again").values)
    assert library.load("again").about["damping"] == "relative:0.01"


def test_the_environment_gives_defaults(place: Place, whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHENCE_METHOD", "identity")
    monkeypatch.setenv("WHENCE_PROMPT", "must not count")
    assert whence(*place.trace, "-o", "run").code == 0
    assert library.load("run").about["method"] == "identity"


def test_bad_rows_are_listed_and_do_not_stop(place: Place, whence: Call) -> None:
    write_rows(place.data, ["{not json", *animal_rows(12), {"text": "cat"}])
    said = whence(*place.trace, "--max-bad-rows", "2", "-o", "run")
    assert said.code == 0, said.err
    assert "2 quarantined" in said.err
    left = [json.loads(line) for line in Path("run/quarantine.jsonl").read_text().splitlines()]
    assert left[0]["location"].startswith("train.jsonl:1") or "train.jsonl:1" in left[0]["location"]
    assert left[1]["code"] == "no_loss_tokens"
    loaded = library.load("run")
    assert len(loaded.train_ids) == 14
    assert loaded.n_train == 12
    assert np.isnan(loaded.values[0, [0, 13]]).all()
    assert np.isfinite(loaded.values[0, 1:13]).all()
    assert loaded.train_rows["train:14"].status == "quarantined:no_loss_tokens"


def test_a_bad_row_changes_no_other_score(place: Place, whence: Call) -> None:
    assert whence(*place.trace, "-o", "clean").code == 0
    write_rows(place.data, [*animal_rows(12), "{broken"])
    assert whence(*place.trace, "--max-bad-rows", "1", "-o", "spoilt").code == 0
    np.testing.assert_array_equal(library.load("clean").values, library.load("spoilt").values[:, :12])


def test_a_classifier(tmp_path: Path, place: Place, whence: Call) -> None:
    model = model_folder(tmp_path / "classifier", classes=2)
    rows = [{**row, "label": ["calm", "lively"][n % 2]} for n, row in enumerate(animal_rows())]
    write_rows(place.data, rows)
    write_rows(Path("q.jsonl"), [{"text": "the dog ran", "label": "lively"}])
    said = whence("trace", "--model", model, "--data", place.data, "--query", "q.jsonl", "-o", "run")
    assert said.code == 0, said.err
    assert "shape text_label" in said.err
    assert library.load("run").about["train"]["loss_tokens"] == 12


def test_hostile_text_reaches_no_terminal(place: Place, whence: Call) -> None:
    nasty = "the cat \x1b]52;c;aGk=\x07 [bold]sat[/bold] \x1b[31m on \u202e the mat <script>alert(1)</script>"
    write_rows(place.data, [{"text": nasty}, *animal_rows(11)])
    said = whence(
        "trace",
        "--model",
        place.model,
        "--data",
        place.data,
        "--prompt",
        "\x1b[2J the cat",
        "--response",
        " sat",
        "-o",
        "run",
    )
    assert said.code == 0, said.err
    for stream in (said.out, said.err):
        assert "\x1b" not in stream
        assert "\x07" not in stream
        assert "\u202e" not in stream
    assert "<script>alert(1)" not in Path("run/report.html").read_text()


def test_a_report_elsewhere(place: Place, whence: Call) -> None:
    said = whence(*place.trace, "--report", "why.html")
    assert said.code == 0, said.err
    assert Path("why.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert "why.html" in said.err
