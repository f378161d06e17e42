"""``whence damping`` from the command line: table, file, page, and the file given to ``trace``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from folders import animal_rows, model_folder, write_rows
from whence import attribute, dampings, load
from whence.cli.main import run
from whence.dampings import choose_damping, read_study
from whence.errors import DataError, OptionError
from whence.evaluate.bank import Given, Plan, open_bank, train_members
from whence.evaluate.pbrf import PbrfSettings
from whence.evaluate.trainers import FunctionTrainer
from whence.options import SweepOptions, TraceOptions, sweep_options
from whence.report.damping import render_damping

QUERIES = [
    {"prompt": "where did the cat go", "completion": "the cat sat under the mat ."},
    {"prompt": "who ran", "completion": "the dog ran over the log ."},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("dampings")
    model_folder(place / "model")
    write_rows(place / "train.jsonl", animal_rows(16))
    write_rows(place / "query.jsonl", QUERIES)
    return place


def words(place: Path, *more: str) -> list[str]:
    files = ["--model", place / "model", "--data", place / "train.jsonl", "--query", place / "query.jsonl"]
    return [*map(str, files), "--dtype", "float64", *more]


def test_study_then_trace(place, capsys):
    study, page, out = place / "damping.json", place / "damping.html", place / "run"
    given = ["-o", str(study), "--report", str(page), "--values", "relative:0.01,0.1,1,10"]
    assert run(["damping", *words(place), *given, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (found,) = [r for r in records if r["type"] == "damping"]
    assert found["dampings"] == ["relative:0.01", "relative:0.1", "relative:1", "relative:10"]
    assert [e["kind"] for e in found["evidence"]] == ["reference"]
    assert found["recommended"]["damping"] in found["dampings"]
    assert read_study(study)["recommended"] == found["recommended"]
    text = page.read_text(encoding="utf-8")
    assert text.count("<polyline") == 4 and "script" not in text.lower().replace("description", "")
    assert run(["trace", *words(place), "--damping", str(study), "-o", str(out)]) == 0
    scores = load(out)
    assert scores.about["damping"] == found["recommended"]["damping"]
    assert scores.about["damping_study"]["values"] == found["values"]


def test_prose_shows_the_table(place, capsys):
    assert run(["damping", *words(place), "--values", "0.1,1", "--reference", "none"]) == 0
    said = capsys.readouterr()
    assert "rank correlation" in said.out and "not correctness" in said.out.replace("\n", " ")
    assert "next: whence trace" in said.err


def test_proximal_retrainings_speak_for_the_damping_they_were_made_with(place, monkeypatch):
    """In the limit of small changes the exact method at their damping is their derivative: no value may do better."""
    monkeypatch.setattr(dampings, "ROUGH", PbrfSettings(direction="both", share=0.01, steps=3))
    found = choose_damping(
        str(place / "model"),
        train=str(place / "train.jsonl"),
        query=str(place / "query.jsonl"),
        options=TraceOptions(method="exact", dtype="float64"),
        tried=SweepOptions(
            values=("relative:0.01", "1", "100"), reference="pbrf", reference_damping="relative:1", retrained=6
        ),
    )
    (evidence,) = (e for e in found.evidence if e.kind == "pbrf")
    assert evidence.values[1] == max(evidence.values) > 0.99
    assert found.recommended.basis == "pbrf"


def test_a_folder_of_retrained_models_is_the_same_bank(place, tmp_path):
    """The members in any order, a seed each; what the sweep asks for is found by id."""
    rng = np.random.default_rng(0)
    kept, losses = Plan(16, 6).kept_MN, rng.standard_normal((6, 2))
    wanted = choose_damping(
        str(place / "model"),
        train=str(place / "train.jsonl"),
        query=str(place / "query.jsonl"),
        options=TraceOptions(dtype="float64"),
        tried=SweepOptions(bank=bank_file(place, tmp_path, kept, losses), values=("0.1", "1"), reference="none"),
    )
    train_ids, query_ids = ([f"{w}:{n + 1}" for n in range(c)] for w, c in (("train", 16), ("query", 2)))
    order = rng.permutation(16)
    table = {k[order].tobytes(): row for k, row in zip(kept, losses, strict=True)}
    trainer = FunctionTrainer(lambda k, seed: table[k.tobytes()][::-1] + (seed - 0.5), {})
    design = Given(kept[:, order], (0, 1))
    shuffled = [train_ids[n] for n in order]
    bank = open_bank(tmp_path / "bank", design, trainer, train_ids=shuffled, query_ids=query_ids[::-1])
    train_members(bank, trainer)
    found = choose_damping(
        str(place / "model"),
        train=str(place / "train.jsonl"),
        query=str(place / "query.jsonl"),
        options=TraceOptions(dtype="float64"),
        tried=SweepOptions(bank=str(tmp_path / "bank"), values=("0.1", "1"), reference="none"),
    )
    assert found.evidence[0].kind == "lds" and found.evidence[0].values == pytest.approx(wanted.evidence[0].values)
    other = open_bank(tmp_path / "b2", Given(kept[:, :9], (0,)), trainer, train_ids=train_ids[:9], query_ids=query_ids)
    other.write(kept[0, :9], 0, losses[0])
    with pytest.raises(DataError, match="knows no 'train:10'"):
        tried = SweepOptions(bank=str(tmp_path / "b2"), values=("0.1", "1"), reference="none")
        choose_damping(
            str(place / "model"), train=str(place / "train.jsonl"), query=str(place / "query.jsonl"), tried=tried
        )


def bank_file(place: Path, folder: Path, kept: np.ndarray, losses: np.ndarray) -> str:
    np.savez(folder / "bank.npz", kept=kept, losses=losses)
    return str(folder / "bank.npz")


def test_a_bank_of_retrained_models_decides(place):
    """Losses made up from the scores at one damping: that damping must be recommended."""
    data, query = str(place / "train.jsonl"), str(place / "query.jsonl")
    options = {"dtype": "float64", "fit_rows": "all", "lexical": False}
    scores = attribute(str(place / "model"), train=data, query=query, damping="relative:1", **options)
    kept = np.random.default_rng(0).random((40, 16)) < 0.5
    order = np.random.default_rng(1).permutation(16)
    ids = np.array(scores.train_ids)[order]
    np.savez(
        place / "bank.npz",
        kept=kept[:, order],
        losses=-(kept @ scores.values.T),
        train_ids=ids,
        query_ids=np.array(scores.query_ids),
    )
    tried = SweepOptions(bank=str(place / "bank.npz"), values=("0.001", "0.03", "1", "30"), reference="none")
    found = choose_damping(str(place / "model"), train=data, query=query, options=TraceOptions(**options), tried=tried)
    assert found.recommended.damping == "relative:1" and found.recommended.basis == "lds"
    assert found.evidence[0].values[2] == pytest.approx(1.0)
    (place / "bad.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="bank"):
        bad = SweepOptions(bank=str(place / "bad.npz"))
        choose_damping(str(place / "model"), train=data, query=query, options=TraceOptions(**options), tried=bad)


def test_what_cannot_work_is_explained(place):
    model, data, query = (str(place / name) for name in ("model", "train.jsonl", "query.jsonl"))
    with pytest.raises(OptionError, match="identity"):
        choose_damping(model, train=data, query=query, options=TraceOptions(method="identity"))
    with pytest.raises(OptionError, match="one kind"):
        choose_damping(model, train=data, query=query, tried=SweepOptions(values=("0.1", "absolute:1")))
    with pytest.raises(OptionError, match="sample"):
        sweep_options(sample=1)
    (place / "other.json").write_text("{}")
    for bad in ("missing.json", "other.json"):
        with pytest.raises(OptionError, match="whence damping"):
            read_study(place / bad)


def test_hostile_names_stay_text():
    pair = {"low": "a", "high": "b", "spearman": 0.5, "pearson": None, "layers_spearman": [0.5], "layers_pearson": [1]}
    study = {
        "dampings": ["relative:0.1", "relative:1"],
        "values": [0.1, 1.0],
        "layers": ["<script>alert(1)</script>"],
        "neighbours": [pair],
        "to_plain": [0.1, -0.4],
        "evidence": [],
        "recommended": {"damping": "relative:0.1", "basis": "x", "reason": "<img src=x onerror=1>"},
        "about": {"method": "</title><script>"},
    }
    page = render_damping(study)
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
