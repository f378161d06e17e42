"""The study of leaving rows out, on made-up tables: it runs, holds where it must, and writes its page."""

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
    """A study is a script: it imports its neighbours as a script does."""
    monkeypatch.syspath_prepend(str(STUDIES))
    sys.modules.pop("loo_convex", None)
    return __import__("loo_convex")


def test_it_runs_and_writes_its_page(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "METHODS", ("exact", "lissa:depth=20", "dot", "random"))
    rng = np.random.default_rng(0)
    (tmp_path / "uci").mkdir()
    x = rng.standard_normal((80, 3))
    table = np.concatenate([x, x @ np.ones((3, 1)) + 0.3 * rng.standard_normal((80, 1))], axis=1)
    np.savetxt(tmp_path / "uci" / "concrete.csv", table, delimiter=",", header="a,b,c,d")
    (tmp_path / "mnist").mkdir()
    for part, count in (("train", 60), ("t10k", 8)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 120, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), labels * 2] = 255
        (tmp_path / "mnist" / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"0" * 16 + images.tobytes()))
        (tmp_path / "mnist" / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"0" * 8 + labels.tobytes()))
    config = study.Config(ridge_rows=60, digit_rows=60, left_out=6, questions=4, penalty=0.05, minibatch=20)
    found = study.run(config, tmp_path)
    assert found["ridge"]["largest_difference"] < 1e-8
    record = study.page(config, found, study._page.circumstances(config, 1.0), tmp_path / "docs")
    assert (
        record["bars"]["ridge"]["holds"] and record["cases"]["logistic"]["agreement"]["exact"]["pearson"]["mean"] > 0.9
    )
    assert json.loads((tmp_path / "docs" / "loo_convex.json").read_text())["about"]["config_hash"]
    assert "**holds**" in (tmp_path / "docs" / "loo_convex.md").read_text()
