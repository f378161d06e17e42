"""The study of precision and blocks on tiny made-up text: it runs, and writes a page, a plot and a JSON."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from whence.linalg.matrix_batch import Full

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    sys.modules.pop("precision_partition", None)
    return __import__("precision_partition")


def test_runs_and_says_whether_the_bars_hold(study, tmp_path):
    text = bytes(np.random.default_rng(0).integers(97, 123, 6000).astype(np.uint8))
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(text))
    config = study.Config(rows=12, questions=3, tokens=8, width=16, depth=1, steps=2, ranks=(1, 4, 32))
    result = study.run(config, tmp_path)
    assert all(-1 <= v <= 1 for agreement in result["agreement"].values() for v in agreement.values())
    assert result["agreement"][study.HALF]["pearson"] < 1.0  # it really ran in another precision
    study.page(config, result, study._page.circumstances(config, 1.0), tmp_path / "docs")
    record = json.loads((tmp_path / "docs" / "precision_partition.json").read_text())
    page = (tmp_path / "docs" / "precision_partition.md").read_text()
    assert record["about"]["config_hash"] in page and "| --- |" in page
    assert page.count("**met**") + page.count("**missed**") == 3
    # a question of 8 characters has 7 tokens with a loss: rank 32 cuts nothing
    assert result["ranks"]["32"]["pearson"] == pytest.approx(1.0) == result["ranks"]["32"]["energy"]
    assert result["ranks"]["1"]["energy"] < result["ranks"]["4"]["energy"] <= 1.0
    assert "nan" not in (tmp_path / "docs" / "precision_partition.svg").read_text()


def test_scores_agree_with_themselves_and_a_miss_is_a_miss(study):
    scores = np.random.default_rng(1).standard_normal((4, 30))
    same, opposite = study.compared(scores, 2 * scores), study.compared(scores, -scores)
    assert same == pytest.approx({"pearson": 1.0, "lowest": 1.0, "spearman": 1.0, "top10": 1.0})
    assert opposite["pearson"] == pytest.approx(-1.0) and opposite["top10"] == 0.0
    config = study.Config()
    half = {"pearson": 0.96, "spearman": 0.94}
    ranks = {str(n): {"pearson": 1 - 0.5 / n} for n in config.ranks}
    found = study.verdicts(config, {study.HALF: half, "O = 2": same, "O = 4": opposite}, ranks)
    assert found == {"precision": False, "rank": False, "rising": True, "blocks": True, "falling": False}


def test_a_matrix_cut_to_a_rank_is_the_nearest_of_that_rank(study):
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cut, energy = study.lowered(Full(x), 2)
    singular = torch.linalg.svdvals(x)
    torch.testing.assert_close((x - cut.full()).square().sum((1, 2)), singular[:, 2:].square().sum(1))
    torch.testing.assert_close(energy, singular[:, :2].square().sum(1) / singular.square().sum(1))
