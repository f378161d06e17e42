"""``clean``: planted wrong labels come first, reasons point at both sides, suggestions go back to the truth."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from folders import animal_rows, model_folder, write_rows
from whence.cleaning import Cleaning, clean
from whence.errors import DataError, OptionError, TaskError
from whence.evaluate.bag import BagSettings
from whence.select.amounts import Amount

GOOD, BAD = "fine great lovely warm bright".split(), "dull poor awful cold grey".split()  # noqa: SIM905 - as prose
FLIPPED = {3, 17, 40, 58, 61}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """80 reviews whose words say the label; five labels are wrong."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(80):
        words = rng.choice(GOOD if n % 2 else BAD, 4)
        label = (n % 2) ^ (n in FLIPPED)
        rows.append({"review": f"{' '.join(words)} film {n}", "label": int(label), "n": n})
    return write_rows(tmp_path_factory.mktemp("reviews") / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def found(reviews):
    how = Cleaning(inspect=Amount(count=8), folds=4, supports=2, bag=BagSettings(epochs=8))
    return clean(data=str(reviews), how=how, options={"columns": {"text": "review"}})


def number(id_: str) -> int:
    return int(id_.rpartition(":")[2]) - 1


def test_wrong_labels_come_first_and_get_their_right_one_back(found):
    assert {number(s.id) for s in found.suspects[:5]} == FLIPPED
    assert [s.suggested for s in found.suspects[:5]] == [str(number(s.id) % 2) for s in found.suspects[:5]]
    assert all(s.suggested is None for s in found.suspects[5:])


def test_what_is_written(found, reviews, tmp_path):
    found.write(tmp_path / "out")
    before = reviews.read_text().splitlines()
    kept = (tmp_path / "out" / "kept.jsonl").read_text().splitlines()
    assert kept == [line for n, line in enumerate(before) if n not in {number(s.id) for s in found.suspects}]
    after = (tmp_path / "out" / "relabelled.jsonl").read_text().splitlines()
    assert {n for n in range(80) if after[n] != before[n]} == FLIPPED
    changed = json.loads(after[3])
    assert changed == {**json.loads(before[3]), "label": 1} and isinstance(changed["label"], int)
    told = [json.loads(line) for line in (tmp_path / "out" / "suspicious.jsonl").read_text().splitlines()]
    assert [line["id"] for line in told] == [s.id for s in found.suspects]
    assert "likelier to the model" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_are_relabelled_as_they_are(found, reviews, tmp_path, ending):
    frame = pd.read_json(reviews, lines=True).astype({"label": "int8"})
    place = tmp_path / f"rows.{ending}"
    frame.to_csv(place, index=False) if ending == "csv" else frame.to_parquet(place)
    how = Cleaning(inspect=Amount(count=8), folds=4, supports=0, bag=BagSettings(epochs=8))
    clean(data=str(place), how=how, options={"columns": {"text": "review"}}).write(tmp_path / "out")
    after = tmp_path / "out" / f"relabelled.{ending}"
    right = frame.assign(label=(frame["n"] % 2).astype("int8"))  # the five planted labels, and no other
    if ending == "parquet":
        pd.testing.assert_frame_equal(pd.read_parquet(after), right)
        return
    assert after.read_text() == right.to_csv(index=False)
    recorded = json.loads((tmp_path / "out" / "selection.json").read_text())["files"]
    assert "relabelled.csv" in recorded


def test_suggestions_are_written_as_the_rows_write_labels(tmp_path):
    model_folder(tmp_path / "model", classes=2)
    rows = [{**row, "label": n % 2} for n, row in enumerate(animal_rows(10))]  # the model calls them calm and lively
    data = write_rows(tmp_path / "rows.jsonl", rows)
    found = clean(str(tmp_path / "model"), data=str(data), how=Cleaning(inspect=Amount(count=10), supports=0))
    assert {s.label for s in found.suspects} == {"calm", "lively"}
    assert any(s.suggested for s in found.suspects)
    found.write(tmp_path / "out")
    after = [json.loads(line) for line in (tmp_path / "out" / "relabelled.jsonl").read_text().splitlines()]
    changed = {number(s.id) for s in found.suspects if s.suggested}
    assert after == [{**row, "label": 1 - row["label"] if n in changed else row["label"]} for n, row in enumerate(rows)]


def test_rows_known_to_be_right_count_as_harmed(reviews, tmp_path):
    right = write_rows(
        tmp_path / "right.jsonl",
        [{"review": f"{w} {v}", "label": n} for n, part in enumerate((BAD, GOOD)) for w in part for v in part],
    )  # fmt: skip
    how = Cleaning(inspect=Amount(count=5), supports=1, bag=BagSettings(epochs=2))
    found = clean(
        data=str(reviews), validation=str(right), how=how, options={"columns": {"text": "review"}},
    )  # fmt: skip
    assert set(found.suspects[0].parts) == {"self", "validation"}
    assert {number(s.id) for s in found.suspects} == FLIPPED
    assert all(s.suggested == str(number(s.id) % 2) for s in found.suspects)


def test_a_finished_classifier(tmp_path):
    model_folder(tmp_path / "model", classes=2)
    rows = [{**row, "label": ("calm", "lively")[n % 2]} for n, row in enumerate(animal_rows(10))]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    found = clean(str(tmp_path / "model"), data=str(data), how=Cleaning(inspect=Amount(count=3), supports=1))
    assert len(found.suspects) == 3
    assert {s.label for s in found.suspects} <= {"calm", "lively"}
    model_folder(tmp_path / "language")
    with pytest.raises(TaskError, match="sequence classifier"):
        clean(str(tmp_path / "language"), data=str(write_rows(tmp_path / "t.jsonl", animal_rows(4))))


def test_what_cannot_be(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"a {n}", "label": "x"} for n in range(5)])
    with pytest.raises(DataError, match="1 label"):
        clean(data=str(rows))
    with pytest.raises(OptionError, match="1 fold"):
        Cleaning(folds=1)
