"""Wrong labels from what the user points at: the right rows held out, the right labels trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from folders import write_rows
from whence.errors import DataError, OptionError
from whence.evaluating import Labels, Terms, mislabel
from whence.options import trace_options

ROWS: list[dict[str, Any]] = [
    {"id": f"r{n}", "text": f"{'good nice' if n % 2 else 'bad sad'} film {n % 7}", "label": 10 + n % 2}
    for n in range(60)
]
for row in ROWS:
    row["true"] = row["label"]
for wrong in (3, 20, 41):
    ROWS[wrong]["label"] = 21 - ROWS[wrong]["label"]


def test_a_column_of_true_labels() -> None:
    found = mislabel(data=ROWS, labels=Labels(truth="true", held_out=0.1), terms=Terms(("loss", "self:kfac")))
    assert set(found.values["wrong"]) <= {"r3", "r20", "r41"} and len(found.values["wrong"]) >= 1
    assert len(found.values["train_ids"]) == 54
    assert "(known)" in found.words[0] and found.about["held_out"] == 1.0
    assert not any("not trained on" in sentence for sentence in found.words)


def test_validation_rows_of_their_own(tmp_path: Path) -> None:
    held = [{**row, "id": f"v{n}", "label": row["true"]} for n, row in enumerate(ROWS[:10])]
    file = write_rows(tmp_path / "held.jsonl", held)
    terms = Terms(("validation:ekfac", "neighbours:tfidf"), trace_options(seed=3))
    found = mislabel(data=ROWS, validation=str(file), labels=Labels(truth="true"), terms=terms)
    assert len(found.values["train_ids"]) == 60 and sorted(found.values["wrong"]) == ["r20", "r3", "r41"]
    area = {row[0]: row[1] for row in found.rows}
    assert area["neighbours:tfidf"] > 0.95 and area["validation:ekfac"] > 0.9


def test_flips_depend_on_the_seed_alone() -> None:
    clean = [{**row, "label": row["true"]} for row in ROWS]

    def planted(seed: int) -> list[str]:
        terms = Terms(("random",), trace_options(seed=seed))
        return mislabel(data=clean, labels=Labels(flip=0.25), terms=terms).values["wrong"]

    assert planted(1) == planted(1) != planted(2)
    assert len(planted(1)) == 12


@pytest.mark.parametrize(
    ("rows", "labels", "error"),
    [
        (ROWS, {"truth": "nothing"}, DataError),
        ([{**row, "true": 99} for row in ROWS], {"truth": "true"}, DataError),
        ([{"text": "a b", "label": 1}] * 5, {}, DataError),
        ([{"text": f"a {n}", "label": 1} for n in range(5)], {}, DataError),
        (ROWS, {"flip": 0.0}, OptionError),
        (ROWS, {"held_out": 1.0}, OptionError),
    ],
)
def test_labels_that_cannot_be(rows: list[dict[str, Any]], labels: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        mislabel(data=rows, labels=Labels(**labels))
