"""The study of precision and blocks on tiny made-up text: it runs, and writes a page, a plot and a JSON."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    sys.modules.pop("precision_partition", None)
    return __import__("precision_partition")


def test_runs_and_says_whether_the_bars_hold(study, tmp_path):
    text = bytes(np.random.default_rng(0).integers(97, 123, 6000).astype(np.uint8))
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(text))
    config = study.Config(rows=12, questions=3, tokens=8, width=16, depth=1, steps=2)
    result = study.run(config, tmp_path)
    assert all(-1 <= v <= 1 for agreement in result["agreement"].values() for v in agreement.values())
    assert result["agreement"][study.HALF]["pearson"] < 1.0  # it really ran in another precision
    study.page(config, result, study._page.circumstances(config, 1.0), tmp_path / "docs")
    record = json.loads((tmp_path / "docs" / "precision_partition.json").read_text())
    page = (tmp_path / "docs" / "precision_partition.md").read_text()
    assert record["about"]["config_hash"] in page and "| --- |" in page
    assert page.count("**met**") + page.count("**missed**") == 2
    assert "nan" not in (tmp_path / "docs" / "precision_partition.svg").read_text()


def test_scores_agree_with_themselves_and_a_miss_is_a_miss(study):
    scores = np.random.default_rng(1).standard_normal((4, 30))
    same, opposite = study.compared(scores, 2 * scores), study.compared(scores, -scores)
    assert same == pytest.approx({"pearson": 1.0, "lowest": 1.0, "spearman": 1.0, "top10": 1.0})
    assert opposite["pearson"] == pytest.approx(-1.0) and opposite["top10"] == 0.0
    config = study.Config()
    found = study.verdicts(config, {study.HALF: {"pearson": 0.94}, "O = 2": same, "O = 4": opposite})
    assert found == {"precision": False, "blocks": True, "falling": False}
