"""``whence evaluate``: answers, files, records, and what is said when something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Place, Said
from folders import model_folder, write_rows
from whence.cli.evaluate import VERBS
from whence.cli.evaluated import contender_names, subject_given
from whence.errors import OptionError

Call = Callable[..., Said]


@pytest.fixture
def asked(place: Place, tmp_path: Path) -> list[str]:
    """Model, rows and questions as flags."""
    rows = [
        {"id": "q1", "prompt": "the cat", "completion": " sat on the mat ."},
        {"id": "q2", "prompt": "the dog", "completion": " ran on the log ."},
        {"id": "q3", "prompt": "the bird", "completion": " flew ."},
    ]
    query = write_rows(tmp_path / "questions.jsonl", rows)
    return ["--model", str(place.model), "--data", str(place.data), "--query", str(query)]


def relevant(tmp_path: Path, place: Place) -> str:
    first = "train:1"
    return str(write_rows(tmp_path / "relevant.jsonl", [{"id": "q1", "relevant": [first]}]))


def test_the_group_lists_its_verbs(whence: Call) -> None:
    said = whence("evaluate", "--help")
    assert said.code == 0
    assert all(verb in said.out for verb in VERBS)
    assert whence("evaluate", "nothing").code == 2


def test_retrieval(place: Place, asked: list[str], whence: Call, tmp_path: Path) -> None:
    flags = ["--relevant", relevant(tmp_path, place), "--contenders", "dot,bm25,random"]
    said = whence("evaluate", "retrieval", *asked, *flags, "--out", "found")
    assert said.code == 0, said.err
    assert "MRR" in said.out and "bm25" in said.out and "2 questions have no relevant row" in said.out
    read = json.loads(Path("found/outcome.json").read_text())
    assert read["verb"] == "retrieval" and {row[0] for row in read["rows"]} == {"dot", "bm25", "random"}
    assert Path("found/report.html").is_file() and len(list(Path("found/plots").iterdir())) == 4
    assert "open found/report.html" in said.err


def test_as_records(place: Place, asked: list[str], whence: Call, tmp_path: Path) -> None:
    flags = ["--relevant", relevant(tmp_path, place), "--contenders", "random", "--json", "--out", "found"]
    records = whence("evaluate", "retrieval", *asked, *flags).records
    kinds = [record["type"] for record in records]
    assert kinds[-2:] == ["evaluation", "done"]
    assert records[-2]["values"]["query_ids"] == ["q1", "q2", "q3"]
    assert any(name.endswith("report.html") for name in records[-1]["files"])


def test_tailpatch_goes_on_where_it_stopped(asked: list[str], whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["evaluate", "tailpatch", *asked, "--contenders", "dot,bm25", "--rows", "2", "--rate", "0.01", "-o", "tail"]
    assert whence(*line).code == 0
    first = json.loads(Path("tail/outcome.json").read_text())
    kept = sorted(Path("tail/tailpatch").glob("item-*.json"))
    assert len(kept) >= 2
    kept[0].unlink()
    assert whence(*line).code == 0
    again = json.loads(Path("tail/outcome.json").read_text())
    assert again["rows"] == first["rows"] and sorted(Path("tail/tailpatch").glob("item-*.json")) == kept
    other = whence(*line, "--rate", "0.02")
    assert other.code == 4 and "rate differ" in other.err


def test_pbrf(asked: list[str], whence: Call) -> None:
    line = [*asked, "--layers", "*layers.0*q_proj", "--rows", "3", "--contenders", "dot,random", "--dtype", "float64"]
    said = whence("evaluate", "pbrf", *line, "--damping", "absolute:1", "--share", "0.05", "-o", "responses")
    assert said.code == 0, said.err
    assert "(ceiling)" in said.out
    read = json.loads(Path("responses/outcome.json").read_text())
    assert read["rows"][0][0].endswith("(ceiling)") and read["rows"][0][1] > 0.9
    assert max(read["values"]["residuals"]) <= 1e-4
    assert not any("tolerance" in sentence for sentence in read["words"])


TITLES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
REVIEWS = [
    {"text": f"{'good fine nice' if n % 2 else 'bad poor sad'} film {word}", "label": "plus" if n % 2 else "minus"}
    for n, word in enumerate(TITLES * 4)
]


def test_mislabel_by_the_built_in_classifier(place: Place, whence: Call, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "reviews.jsonl", REVIEWS)
    said = whence("evaluate", "mislabel", "--data", data, "--flip", "0.2", "--out", "found", "--damping", "0.3")
    assert said.code == 0, said.err
    read = json.loads(Path("found/outcome.json").read_text())
    assert read["words"][0] == "8 of 38 labels are wrong (planted)."
    area = {row[0]: row[1] for row in read["rows"]}
    assert area["neighbours:bm25"] > 0.9 and set(area) >= {"self:ekfac", "validation:ekfac", "loss", "gradient_norm"}


def test_mislabel_of_a_known_column_and_a_finished_model(place: Place, whence: Call, tmp_path: Path) -> None:
    rows = [
        {"text": f"the {'cat' if n % 2 else 'dog'} sat .", "label": n % 2, "checked": (n + (n % 5 == 0)) % 2}
        for n in range(20)
    ]
    data, model = write_rows(tmp_path / "labelled.jsonl", rows), model_folder(tmp_path / "classifier", classes=2)
    common = ["evaluate", "mislabel", "--model", model, "--data", data]
    said = whence(*common, "--truth", "checked", "--contenders", "loss,self:ekfac", "--json")
    assert said.code == 0, said.err
    found = next(record for record in said.records if record["type"] == "evaluation")
    assert found["words"][0] == "4 of 20 labels are wrong (known)."
    assert found["values"]["wrong"] == [f"labelled:{n}" for n in ("1", "11", "16", "6")]
    planted = whence(*common, "--flip", "0.2", "--contenders", "loss")
    assert planted.code == 0 and "not trained on the planted labels" in " ".join(planted.out.split())
    missing = whence(*common, "--truth", "nothing")
    assert missing.code == 3 and "'nothing'" in missing.err
    other = whence("evaluate", "mislabel", "--model", place.model, "--data", data)
    assert other.code == 3 and "sequence classifier" in other.err


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (["retrieval", "--model", "m"], 2, "--data"),
        (["retrieval", "--contenders", "ekfacc"], 2, "ekfacc"),
        (["tailpatch", "--rate", "0"], 2, "rate"),
        (["tailpatch", "--optimiser", "adam"], 2, "optimiser"),
        (["pbrf", "--direction", "sideways"], 2, "direction"),
        (["pbrf", "--damping", "soft"], 2, "soft"),
        (["mislabel", "--truth", "checked"], 2, "--data"),
        (["mislabel", "--flip", "1.5"], 2, "flipping"),
        (["mislabel", "--contenders", "bm25"], 2, "bm25"),
        (["retrieval", "--seed", "x"], 2, "--seed"),
    ],
)
def test_what_is_wrong_is_said_before_work(
    place: Place, whence: Call, line: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_given: Any, **_more: Any) -> Any:
        pytest.fail("work began")

    monkeypatch.setattr("whence.demo.evidence.prepare", forbidden)
    found = whence("evaluate", *line)
    assert found.code == code, found.err
    assert said in found.err and "Traceback" not in found.err


def test_exit_codes_of_what_cannot_be_opened(place: Place, asked: list[str], whence: Call, tmp_path: Path) -> None:
    known = relevant(tmp_path, place)
    gone = whence("evaluate", "retrieval", "--model", "./nowhere", *asked[2:], "--relevant", known)
    assert gone.code == 6 and "nowhere" in gone.err
    write_rows(tmp_path / "bad.jsonl", ['{"id": "q1"}'])
    bad = whence("evaluate", "retrieval", *asked, "--relevant", tmp_path / "bad.jsonl")
    assert bad.code == 3 and "bad.jsonl:1" in bad.err
    stray = whence("evaluate", "retrieval", *asked, "--relevant", write_rows(tmp_path / "s.jsonl", [
        {"id": "q1", "relevant": ["train:99"]}
    ]), "--contenders", "random")  # fmt: skip
    assert stray.code == 3 and "'train:99'" in stray.err
    (tmp_path / "file").write_text("not a folder")
    taken = whence("evaluate", "retrieval", "-o", "file")  # before the Almanac's model is trained
    assert taken.code == 4, taken.err
    for said in (gone, bad, stray, taken):
        assert "Traceback" not in said.err and not Path("crash.txt").exists()


def test_hostile_names_reach_neither_terminal_nor_page(
    place: Place, asked: list[str], whence: Call, tmp_path: Path
) -> None:
    rows = [{"id": "\x1b[31m<script>alert(1)</script>", "text": f"the cat sat {n}"} for n in range(1)]
    rows += [{"id": f"r{n}", "text": f"the cat sat {n}"} for n in range(5)]
    data = write_rows(tmp_path / "hostile.jsonl", rows)
    line = ["evaluate", "tailpatch", "--model", place.model, "--data", data, *asked[4:], "--rows", "6"]
    said = whence(*line, "--contenders", "bm25", "--out", "found")
    assert said.code == 0, said.err
    assert "\x1b[31m<" not in said.out + said.err
    page = Path("found/report.html").read_text()
    assert "<script>alert" not in page and "alert(1)" in page


def test_names_with_settings() -> None:
    text = "ekfac, ekfac_cg:steps=20,tolerance=1e-3 ,relative:ekfac@relative:0.1,bm25,"
    assert contender_names(text) == (
        "ekfac", "ekfac_cg:steps=20,tolerance=1e-3", "relative:ekfac@relative:0.1", "bm25",
    )  # fmt: skip
    assert contender_names(None) == ()
    assert subject_given(model="m", data=["d"]) and not subject_given(model=None, data=None)
    with pytest.raises(OptionError):
        subject_given(model="m", data=None)


def test_settings_from_a_file_and_flags_that_win(place: Place, whence: Call, tmp_path: Path) -> None:
    rows = [{"words": row["text"], "label": row["label"]} for row in REVIEWS]
    data = write_rows(tmp_path / "reviews.jsonl", rows)
    config = tmp_path / "settings.yaml"
    config.write_text("columns: {text: words}\nseed: 7\ndamping: absolute:0.5\n")
    line = ["evaluate", "mislabel", "--data", data, "--contenders", "loss,self:ekfac", "-c", config, "--json"]
    found = next(record for record in whence(*line).records if record["type"] == "evaluation")
    assert (found["about"]["seed"], found["about"]["damping"]) == (7, "absolute:0.5")
    found = next(record for record in whence(*line, "--seed", "0").records if record["type"] == "evaluation")
    assert (found["about"]["seed"], found["about"]["damping"]) == (0, "absolute:0.5")
    config.write_text("colour: red\n")
    said = whence(*line)
    assert said.code == 2 and "colour" in said.err
