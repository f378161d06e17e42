"""``select``, ``mixture``, ``bandit`` and ``clean`` on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from cli.conftest import Place, Said
from folders import write_rows

Call = Callable[..., Said]


def test_select_says_what_it_kept_and_writes_it(whence: Call, place: Place) -> None:
    query = write_rows(place.data.parent / "dev.jsonl", [{"prompt": "the cat sat on", "completion": " the mat ."}])
    given = ["--model", place.model, "--data", place.data, "--query", query]
    said = whence("select", *given, "--keep", "25%", "-o", "out")
    assert said.code == 0, said.err
    assert "Kept 3 of 12 rows (25 %)" in said.out and "next: open out/report.html" in said.err
    assert len((place.data.parent / "out" / "kept.jsonl").read_text().splitlines()) == 3
    records = whence("select", *given, "--drop", "2", "--json").records
    assert [r["type"] for r in records if r["type"] in ("select", "done")] == ["select", "done"]
    said = whence("bandit", *given, "--keep", "2", "--budget", "6", "--arms", "2")
    assert said.code == 0 and "having judged 6" in said.out
    said = whence("mixture", "--model", place.model, "--data", f"a={place.data}", "--data", f"b={query}", *given[-2:])
    assert said.code == 0 and "rows from 2 sources, weighed by influence" in said.out


def test_what_is_missing_is_named(whence: Call, place: Place) -> None:
    assert "wanted: one of them" in whence("select", "--run", "run").err
    said = whence("select", "--keep", "5")
    assert said.code == 2 and "neither --run nor --model" in said.err
    said = whence("select", "--run", "run", "--model", "m", "--keep", "5")
    assert said.code == 2 and "--run and --model" in said.err
    said = whence("select", "--run", "run", "--keep", "5", "--less-size", "4")
    assert said.code == 2 and "--less-size without --less" in said.err
    said = whence("mixture")
    assert said.code == 2 and "neither --run nor --model" in said.err
    (place.data.parent / "mine").mkdir()
    (place.data.parent / "mine" / "thesis.tex").write_text("x")
    assert whence("clean", "--data", place.data, "-o", "mine").code == 4


def test_mixture_in_rounds(whence: Call, place: Place) -> None:
    query = write_rows(place.data.parent / "dev.jsonl", [{"prompt": "the cat sat on", "completion": " the mat ."}])
    more = write_rows(place.data.parent / "more.jsonl", [{"text": "the dog ran"}, {"text": "a bird sat"}])
    given = ["--model", place.model, "--data", f"a={place.data}", "--data", f"b={more}", "--query", query]
    script = place.data.parent / "train.py"
    script.write_text("import shutil, sys\nshutil.copytree(sys.argv[1], sys.argv[3], dirs_exist_ok=True)\n")
    command = f"{sys.executable} {script} {place.model} {{rows}} {{out}}"
    said = whence("mixture", *given, "--train-command", command, "-o", "mix")
    assert said.code == 0, said.err
    assert "2 rounds over 2 sources" in said.out and "judge the last model in mix/" in said.err
    assert (place.data.parent / "mix" / "model-2").is_dir()
    again = whence("mixture", *given, "--train-command", command, "-o", "mix")
    assert again.code == 0 and "influence at" not in again.err
    assert "--rounds without --train-command" in whence("mixture", *given, "--rounds", "3").err
    assert "--train-command without -o" in whence("mixture", *given, "--train-command", command).err
    said = whence("mixture", *given, "--train-command", "train {rows}", "-o", "other")
    assert said.code == 2 and "has no {out}" in said.err


def test_clean(whence: Call, place: Place) -> None:
    rows = [{"text": ("good fine", "bad poor")[n % 2] + f" {n}", "label": n % 2 if n != 4 else 1} for n in range(24)]
    data = write_rows(place.data.parent / "labelled.jsonl", rows)
    said = whence("clean", "--data", data, "--inspect", "1", "--folds", "3", "-o", "cleaned")
    assert said.code == 0, said.err
    assert "1 of 24 labels to look at" in said.out
    found = json.loads((place.data.parent / "cleaned" / "suspicious.jsonl").read_text())
    assert found["id"] == "labelled:5"
