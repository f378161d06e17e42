"""The study of two stages on made-up pictures: it runs, its LDS is the house's, and it writes its page."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from whence.evaluate.lds import lds_per_query

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    sys.modules.pop("two_stage", None)
    return __import__("two_stage")


@pytest.fixture
def data(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("mnist", "fashionmnist"):
        (tmp_path / name).mkdir()
        for part, count in (("train", 40), ("t10k", 6)):
            pictures, labels = (
                rng.integers(0, 256, count * 784, dtype=np.uint8),
                rng.integers(0, 10, count, dtype=np.uint8),
            )
            (tmp_path / name / f"{part}-images-idx3-ubyte.gz").write_bytes(
                gzip.compress(bytes(16) + pictures.tobytes())
            )
            (tmp_path / name / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    return tmp_path


def test_it_runs_and_writes_its_page(study, data):
    config = study.Config(rows=18, tuning_rows=12, questions=4, hidden=3, subsets=5, iterations=30, seeds=(0,))
    found = study.run(config, data)
    assert set(found) == {
        "gradient dot",
        *(f"{n}, {m}" for n in ("one curvature", "both curvatures") for m in ("ekfac", "exact")),
    }
    assert all(-1 <= runs[0]["lds"] <= 1 for runs in found.values())
    study.page(config, found, study._page.circumstances(config, 1.0), data / "docs")
    kept = json.loads((data / "docs" / "two_stage.json").read_text())
    assert kept["bar"]["met"] in ("met", "missed") and len(kept["bar"]["gains"]) == 1
    assert (data / "docs" / "two_stage.md").read_text().startswith("# ")


def test_its_measure_is_the_linear_datamodelling_score():
    """Rank correlation of summed effects of the rows *dropped* with the change = of the rows kept with the loss."""
    rng = np.random.default_rng(1)
    scores, losses = rng.normal(size=(3, 9)), rng.normal(size=(12, 3))
    kept = np.stack([rng.permutation(9) < 6 for _ in range(12)])  # all of one size, as in the study
    predicted = (~kept).astype(float) @ scores.T / 9
    own = [spearmanr(p, c).statistic for p, c in zip(predicted.T, (losses - 1.0).T, strict=True)]
    np.testing.assert_allclose(own, lds_per_query(scores, kept, losses), atol=1e-12)
