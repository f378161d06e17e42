"""``whence plan``: what it foresees against what the jobs then do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import whence
from folders import animal_rows, model_folder, tiny_llama, word_tokenizer, write_rows
from whence.cli.main import run
from whence.errors import DataError, OptionError, ResourceError
from whence.plan.alternatives import alternatives
from whence.planning import estimate

QUESTION = [{"prompt": "the cat sat", "completion": " on the mat ."}, {"prompt": "the dog", "completion": " ran ."}]
MANY = animal_rows(400)
SHORT = {"calibrate": 0.2}


def live() -> tuple[Any, Any]:
    return tiny_llama(), word_tokenizer()


def stages(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in found["stages"]}


def on_disk(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.iterdir() if p.is_file())


def test_a_trace_reads_the_rows_that_were_foreseen_and_writes_that_much(tmp_path: Path) -> None:
    given: dict[str, Any] = {"train": MANY, "query": QUESTION, "batch_tokens": 256}
    found = estimate(live(), out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    done = whence.attribute(live(), out=tmp_path / "run", **given)
    planned = stages(found)
    for fitted in done.about["fit"]:
        assert planned[f"fit: {fitted['name']}"]["rows"] == pytest.approx(fitted["rows"], rel=0.35)
    assert planned["score"]["rows"] == 400 and planned["score"]["passes"] == 1.0
    assert found["rows"]["tokens"] == done.about["train"]["tokens"]
    assert found["disk"]["bytes"] == pytest.approx(on_disk(tmp_path / "run"), rel=0.10)
    assert found["questions"] == 2 and found["problems"] == []
    assert found["seconds"] > 0 and found["peak_bytes"] > 0 and found["disk"]["free_bytes"] > 0
    json.dumps(found, allow_nan=False)


def test_with_fsdp_it_says_whose_figures_they_are(tmp_path: Path) -> None:
    """One process plans: it needs no launcher, and does not pretend to have been many."""
    found = estimate(live(), train=animal_rows(40), plan={"job": "index", "calibrate": 0.1}, fsdp=True)
    assert found["job"] == "index" and found["problems"] == [] and found["model_bytes"] > 0
    (note,) = (note for note in found["notes"] if "fsdp" in note)
    assert f"1/n of the weights ({found['model_bytes'] / 1e6:,.1f} MB)" in note and "one process" in note
    plain = estimate(live(), train=animal_rows(40), plan={"job": "index", "calibrate": 0.0})
    assert not any("fsdp" in note for note in plain["notes"])


def test_an_index_has_the_bytes_that_were_foreseen(tmp_path: Path) -> None:
    found = estimate(live(), train=MANY, plan={"budget": 0.3}, fit_rows=100, out=tmp_path / "i")
    whence.build_index(live(), train=MANY, out=tmp_path / "i", compression={"budget": 0.3}, fit_rows=100)
    assert found["job"] == "index"
    assert found["disk"]["bytes"] == pytest.approx(on_disk(tmp_path / "i"), rel=0.10)
    assert found["disk"]["files"]["factors.safetensors"] == (tmp_path / "i" / "factors.safetensors").stat().st_size
    assert stages(found)["index"]["passes"] == 1.0


def test_settings_that_fix_the_rows_of_the_fit() -> None:
    common: dict[str, Any] = {"train": MANY, "query": QUESTION, "batch_tokens": 256}
    some = stages(estimate(live(), fit_rows=60, plan=SHORT, **common))
    assert 60 <= some["fit: covariance"]["rows"] <= 60 + 256
    assert stages(estimate(live(), fit_rows="all", plan=SHORT, **common))["fit: covariance"]["rows"] == 400
    plain = estimate(live(), method="identity", tokens=0, plan=SHORT, **common)
    assert not [name for name in stages(plain) if name.startswith("fit")] and "tokens" not in stages(plain)
    assert plain["passes"] == 1.0 and plain["disk"]["bytes"] == 0


@pytest.mark.parametrize("method", ["kfac", "diagonal", "ekfac:blocks=2", "trak:size=4"])
def test_any_method_can_be_planned(method: str) -> None:
    found = estimate(live(), train=animal_rows(60), query=QUESTION, method=method, batch_tokens=64, plan=SHORT)
    assert {"load", "read", "score", "write"} <= set(stages(found))


@pytest.mark.parametrize(
    "given", [{"combine": "contrast"}, {"top_k": 3}, {"per_layer": True}, {"self_influence": True}, {"span": "1:4"}]
)
def test_settings_of_the_question_can_be_planned(given: dict[str, Any], tmp_path: Path) -> None:
    common: dict[str, Any] = {"train": animal_rows(120), "query": QUESTION, "batch_tokens": 128, **given}
    found = estimate(live(), out=tmp_path / "run", plan=SHORT, **common)
    whence.attribute(live(), out=tmp_path / "run", **common)
    assert found["disk"]["bytes"] == pytest.approx(on_disk(tmp_path / "run"), rel=0.15)  # small: 10 KB of run.json


def test_more_questions_than_are_tried_out(tmp_path: Path) -> None:
    asked = [{"prompt": row["text"][:9], "completion": row["text"][9:]} for row in animal_rows(48)]
    common: dict[str, Any] = {"train": animal_rows(90), "query": asked, "tokens": 0, "batch_tokens": 128}
    found = estimate(live(), out=tmp_path / "run", plan=SHORT, **common)
    whence.attribute(live(), out=tmp_path / "run", **common)
    assert found["questions"] == 48
    assert found["disk"]["bytes"] == pytest.approx(on_disk(tmp_path / "run"), rel=0.15)


def test_a_page_without_room_for_every_row_of_every_question(tmp_path: Path) -> None:
    """It has fewer rows of each than a page of few questions has: the rehearsal's has as few."""
    drawn, words = random.Random(0), " ".join(row["text"] for row in animal_rows(40)).split()
    rows = [{"text": " ".join(drawn.choices(words, k=drawn.randint(4, 12)))} for _ in range(900)]
    asked = [{"prompt": row["text"][:9], "completion": row["text"][9:]} for row in animal_rows(96)]
    common: dict[str, Any] = {"train": rows, "query": asked, "tokens": 0, "batch_tokens": 128}
    found = estimate(live(), out=tmp_path / "run", plan=SHORT, **common)
    whence.attribute(live(), out=tmp_path / "run", **common)
    page = (tmp_path / "run" / "report.html").stat().st_size
    assert found["disk"]["files"]["report.html"] == pytest.approx(page, rel=0.15)


def test_bad_rows_are_named_and_do_not_stop_the_plan(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [*animal_rows(20), "not json", {"text": 5}, {"text": "."}])
    found = estimate(live(), train=str(path), plan={"calibrate": 0})
    assert found["quarantine"]["reasons"] == {"invalid_json": 1, "wrong_type": 1, "no_loss_tokens": 1}
    assert found["quarantine"]["first"][0]["location"].endswith("rows.jsonl:21:1")
    assert "3 of 23 rows" in found["problems"][0]
    assert found["seconds"] is None and found["rows"]["used"] == 20
    allowed = estimate(live(), train=str(path), plan={"calibrate": 0}, max_bad_rows=3)
    assert allowed["problems"] == []


def test_not_enough_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("whence.planning.estimating.free_disk", lambda folder: (str(folder), 10))
    found = estimate(live(), train=animal_rows(20), out=tmp_path)
    assert "10 free" in found["problems"][0] and "no --budget makes it fit" in found["problems"][0]
    assert found["disk"]["enough"] is False and found["disk"]["budget"] is None


def test_the_budget_that_fits_does_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its bytes on disk are below those that were free, and another tenth more would not have been."""
    given: dict[str, Any] = {"train": MANY, "fit_rows": 100}
    whole = estimate(live(), plan={"budget": 1.0, **SHORT}, out=tmp_path / "a", **given)
    shards = whole["disk"]["files"]["shards"]
    free = whole["disk"]["bytes"] - shards // 2
    monkeypatch.setattr("whence.planning.estimating.free_disk", lambda folder: (str(folder), free))
    found = estimate(live(), plan={"budget": 1.0, **SHORT}, out=tmp_path / "b", **given)
    budget = found["disk"]["budget"]
    assert f"--budget {budget:g} would fit" in found["problems"][0]
    whence.build_index(live(), out=tmp_path / "i", compression={"budget": budget}, **given)
    assert 0.7 * free < on_disk(tmp_path / "i") <= free


def test_room_is_said(tmp_path: Path) -> None:
    found = estimate(live(), train=animal_rows(20), plan=SHORT, out=tmp_path)
    assert found["disk"]["enough"] is True and "of what is free" in found["disk"]["verdict"]


def test_a_trace_without_room_names_what_would_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = animal_rows(1500)
    given: dict[str, Any] = {"train": rows, "query": [dict(q, id=f"{n}{m}") for n in range(20) for m, q in
                             enumerate(QUESTION)], "plan": SHORT, "tokens": 0, "fit_rows": 50}  # fmt: skip
    whole = estimate(live(), out=tmp_path / "a", **given)
    strongest = next(a for a in whole["alternatives"] if a["flags"] == "--top-k 100")
    free = whole["disk"]["bytes"] - strongest["saves"]["disk_bytes"] // 2
    monkeypatch.setattr("whence.planning.estimating.free_disk", lambda folder: (str(folder), free))
    found = estimate(live(), out=tmp_path / "b", **given)
    assert found["disk"]["enough"] is False and found["disk"]["verdict"] in found["problems"]
    assert "--top-k 100 would fit" in found["disk"]["verdict"]


def test_an_index_without_room_stops_before_its_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("whence.indexing.free_disk", lambda folder: (str(folder), 100))
    with pytest.raises(ResourceError, match="100 are free"):
        whence.build_index(live(), train=animal_rows(20), out=tmp_path / "i")
    assert not list((tmp_path / "i").glob("shard-*"))


def test_out_of_memory_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes.")

    monkeypatch.setattr("whence.planning.estimating.rehearse_index", full)
    assert "does not fit in memory" in estimate(live(), train=animal_rows(20))["problems"][0]


def test_cheaper_ways_say_what_they_save() -> None:
    found = estimate(live(), train=MANY, query=QUESTION, batch_tokens=128, fit_rows="all", plan=SHORT)
    flags = {other["flags"]: other for other in found["alternatives"]}
    assert flags["--fit-rows 256"]["saves"]["seconds"] > 0
    assert all(other["price"] and max(other["saves"].values()) > 0 for other in found["alternatives"])
    fit = sum(stage["seconds"] for stage in found["stages"] if stage["name"].startswith("fit"))
    plain = flags["--method identity"]
    assert fit <= plain["saves"]["seconds"] + 0.2 and plain["saves"]["memory_bytes"] >= found["factor_bytes"] > 0
    for other in found["alternatives"]:
        left = found["seconds"] - other["saves"]["seconds"]
        assert other["costs"]["seconds"] == pytest.approx(max(0.0, left), abs=0.11)
        assert other["costs"]["peak_bytes"] <= found["peak_bytes"]


def test_rules_of_cheaper_ways() -> None:
    """On a plan written down by hand: each rule's number is what its sentence says."""
    step = {"rows": 10_000, "seconds": 100.0}
    plan: dict[str, Any] = {
        "job": "trace", "questions": 1, "rows": {"rows": 10_000, "used": 10_000}, "seconds": 300.0,
        "stages": [{"name": name, **step} for name in ("fit: covariance", "fit: eigenvalues", "score")],
        "disk": {"bytes": 0, "files": {}}, "peak_bytes": 1000, "factor_bytes": 500, "batch_bytes": 0,
        "model_bytes": 400,
    }  # fmt: skip
    settings = {"method": "ekfac", "top_k": 5, "candidates": None, "batch_tokens": 4096, "budget": 10.0,
                "device": "cpu", "layers": {"a": (8, 8)}, "dtype": "torch.float32"}  # fmt: skip
    found = {other["flags"]: other for other in alternatives(plan, settings)}
    assert found["--candidates bm25:5%"]["saves"]["seconds"] == pytest.approx(100 * (1 - 0.05 - 0.05))
    assert found["--method identity"]["costs"] == {"seconds": 100.0, "disk_bytes": 0, "peak_bytes": 500}
    assert found["--method kfac"]["costs"]["seconds"] == 200.0
    assert found["--dtype bfloat16"]["saves"] == {"seconds": 0.0, "disk_bytes": 0, "memory_bytes": 200}
    assert "--method projected" in found and found["--fit-rows 256"]["saves"]["seconds"] == pytest.approx(
        194.9, abs=0.1
    )
    narrowed = alternatives(plan, {**settings, "candidates": "bm25:5%", "method": "identity"})
    assert not {"--candidates bm25:5%", "--method identity"} & {other["flags"] for other in narrowed}


def test_mistakes_are_typed() -> None:
    with pytest.raises(OptionError, match="no question"):
        estimate(live(), train=animal_rows(), plan={"job": "trace"})
    with pytest.raises(OptionError, match="unknown option"):
        estimate(live(), train=animal_rows(), plan={"jobs": "trace"})
    with pytest.raises(DataError):
        estimate(live(), train="nowhere.jsonl")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, rows = model_folder(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl", [*animal_rows(), "bad"])
    common = ["plan", "--model", str(model), "--data", str(rows), "-o", str(tmp_path / "out")]
    assert run([*common, "--prompt", "the cat", "--response", " sat .", "--calibrate", "0.2"]) == 0
    said = capsys.readouterr()
    assert "fit: eigenvalues" in said.out and "invalid_json" in said.out and "it would stop: 1 of 13" in said.err
    assert run([*common, "--json", "--budget", "1", "--calibrate", "0.2"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    plan = next(record for record in records if record["type"] == "plan")
    assert plan["job"] == "index" and plan["stages"][0]["name"] == "start" and not (tmp_path / "out").exists()
    assert run([*common, "--calibrate", "0"]) == 0
