"""``select`` from a model, from a run, from scores: the same choice, the bytes of the input, a page that tells why."""

from __future__ import annotations

import json

import numpy as np
import pytest

import whence
from folders import animal_rows, model_folder, write_rows
from whence.errors import DataError, OptionError, StoreError
from whence.select.amounts import Amount
from whence.select.choose import Rule
from whence.selecting import select, select_for, sub_tasks

KEEP = Rule(keep=Amount(count=5), balance="max")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("world")
    model_folder(place / "model")
    rows = animal_rows(18)
    rows[3] = "{broken"
    rows[4] = {"text": "<script>alert(1)</script> the cat sat"}
    write_rows(place / "train.jsonl", rows)
    write_rows(
        place / "one.jsonl",
        [{"prompt": "the cat sat on", "completion": " the mat ."}, {"prompt": "the dog", "completion": " ran"}],
    )
    write_rows(place / "two.jsonl", [{"prompt": "the bird", "completion": " flew"}])
    whence.attribute(
        str(place / "model"), train=[str(place / "train.jsonl")],
        query=[str(place / "one.jsonl"), str(place / "two.jsonl")], out=place / "run", tokens=0, max_bad_rows=2,
        self_influence=True,
    )  # fmt: skip
    return place


def test_a_run_gives_what_its_scores_say(world, tmp_path):
    scores = whence.load(world / "run")
    assert sub_tasks(scores) == ("one", "one", "two")
    found = select(world / "run", rule=KEEP)
    found.write(tmp_path / "chosen")
    best = np.maximum(scores.values[:2].mean(0), scores.values[2])
    order = [n for n in np.argsort(-best, kind="stable") if np.isfinite(best[n])][:5]
    assert set(found.kept_ids) == {scores.train_ids[n] for n in order}
    lines = (world / "train.jsonl").read_bytes().splitlines(keepends=True)
    kept = {int(id_.rpartition(":")[2]) - 1 for id_ in found.kept_ids}
    assert (tmp_path / "chosen" / "kept.jsonl").read_bytes() == b"".join(lines[n] for n in sorted(kept))
    rest = b"".join(line for n, line in enumerate(lines) if n not in kept)
    assert (tmp_path / "chosen" / "dropped.jsonl").read_bytes() == rest
    told = [json.loads(line) for line in (tmp_path / "chosen" / "scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in told if line["kept"]] == list(found.kept_ids)
    assert told[3] == {"id": "train:4", "source": "train", "value": None, "kept": False, "reason": "not scored"}


def test_the_page_tells_why_and_runs_nothing(world, tmp_path):
    found = select(world / "run", rule=Rule(drop=Amount(count=2)))
    found.write(tmp_path / "chosen")
    page = (tmp_path / "chosen" / "report.html").read_text()
    assert "<script" not in page and "alert(1)" in page
    assert "default-src 'none'" in page
    assert "1 rows have no score" in page and found.account.title in page
    record = json.loads((tmp_path / "chosen" / "selection.json").read_text())
    assert set(record["files"]) == {"kept.jsonl", "dropped.jsonl", "scores.jsonl", "report.html"}
    assert record["account"]["about"]["reasons"] == {"kept": 15, "below the cut": 2, "kept: not scored": 1}


def test_from_the_model_as_from_its_run(world):
    direct = select_for(
        str(world / "model"), train=[str(world / "train.jsonl")],
        query=[str(world / "one.jsonl"), str(world / "two.jsonl")], rule=KEEP, options={"max_bad_rows": 2},
    )  # fmt: skip
    assert direct.kept_ids == select(world / "run", rule=KEEP).kept_ids


def test_relative_is_the_scores_over_the_rows_own_influence(world):
    scores = whence.load(world / "run")
    own = np.asarray(scores.self_influence)
    with np.errstate(invalid="ignore"):
        divided = scores.values / np.sqrt(own)[None]
    found = select(world / "run", rule=Rule(keep=Amount(count=4)), normalise="relative")
    best = (divided[:2].mean(0) + divided[2]) / 2
    order = [n for n in np.argsort(-best, kind="stable") if np.isfinite(best[n])][:4]
    assert set(found.kept_ids) == {scores.train_ids[n] for n in order}


def test_what_is_refused(world, tmp_path):
    scores = whence.load(world / "run")
    with pytest.raises(OptionError, match="scores without data"):
        select(scores, rule=KEEP)
    with pytest.raises(OptionError, match="strongest"):
        select(scores.with_(columns=np.zeros((3, 4), dtype=int)), rule=KEEP, data=str(world / "train.jsonl"))
    with pytest.raises(OptionError, match="without self-influence"):
        select(scores.with_(self_influence=None), rule=KEEP, data=str(world / "train.jsonl"), normalise="relative")
    with pytest.raises(OptionError, match="normalised already"):
        about = {**scores.about, "normalise": "relative"}
        select(scores.with_(about=about), rule=KEEP, data=str(world / "train.jsonl"), normalise="relative")
    write_rows(tmp_path / "other.jsonl", animal_rows(4))
    with pytest.raises(DataError, match="the scores are of 18"):
        select(world / "run", rule=KEEP, data=str(tmp_path / "other.jsonl"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        select(world / "run", rule=KEEP).write(tmp_path / "full")


def test_near_duplicates_give_way(world, tmp_path):
    text = "the cat sat on the mat and then slept happily under the tree"
    rows = [{"text": text}, {"text": text + " ."}, {"text": "the dog ran"}, {"text": "the bird flew over the log"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    found = select_for(
        str(world / "model"), train=str(tmp_path / "rows.jsonl"), query=str(world / "one.jsonl"),
        rule=Rule(keep=Amount(count=4), diverse=1),
    )  # fmt: skip
    assert len(found.kept_ids) == 3
    assert len({"rows:1", "rows:2"} & set(found.kept_ids)) == 1
