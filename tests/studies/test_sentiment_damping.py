"""The damping and flipped-label study on tiny made-up sentences."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    sys.modules.pop("sentiment_damping", None)
    return __import__("sentiment_damping")


def test_it_runs_and_its_words_follow(module, tmp_path):
    words = ("bad dull poor", "good fine great")
    lines = "\n".join(json.dumps({"sentence": f"{words[n % 2]} film {n % 7}", "label": n % 2}) for n in range(160))
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "test.jsonl").write_text(lines)
    config = module.Config(rows=40, questions=6, seeds=1, epochs=2)
    found = module.run(config, tmp_path)
    record = module.page(config, found, module._page.circumstances(config, 1.0), tmp_path / "docs")
    text = (tmp_path / "docs" / "sentiment_damping.md").read_text()
    assert len(record["dampings"]) == len(record["positive_share"]["same class"]) == len(record["auc"])
    middle = record["dampings"].index("relative:0.1")
    shares = {group: values[middle] for group, values in record["positive_share"].items()}
    turned = shares["same class, flipped"] < 0.5 < shares["other class, flipped"]
    assert ("turns the sign of both" in text) == turned
    assert f"{shares['same class']:.0%} against" in text


def test_groups_are_by_the_class_of_the_sentence(module):
    """Scores by hand: +1 where the given label is the question's, whatever the sentence."""
    from whence.evaluate.damping import Sweep
    from whence.linalg.damping import relative
    from whence.tasks.base import Example

    labels, wrong = [0, 0, 1, 1], np.array([False, True, False, True])
    rows = [Example(f"r{n}", {}, np.asarray(y), 1, 1) for n, y in enumerate(labels)]
    asked = [Example("q", {}, np.asarray(1), 1, 1)]
    scores = np.array([[[[-1.0, -1.0, 1.0, 1.0]]]])
    swept = Sweep((relative(0.1),), ("w",), ("q",), tuple(e.id for e in rows), scores, scores[0, 0])
    (shares,), _ = module.signs(swept, rows, asked, wrong)
    # r1 bears label 0 but is of class 1: same class as the question, flipped, and its influence is negative
    wanted = {"same class": 1.0, "same class, flipped": 0.0, "other class": 0.0, "other class, flipped": 1.0}
    assert shares == wanted
