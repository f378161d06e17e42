"""The study of wrong labels on tiny made-up data: it runs, and its words follow from its numbers."""

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
    for name in ("mislabel", "trak_models"):
        sys.modules.pop(name, None)
    return __import__("mislabel")


@pytest.fixture
def data(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("mnist", "fashionmnist"):
        (tmp_path / name).mkdir()
        for part, count in (("train", 80), ("t10k", 20)):
            labels = rng.integers(0, 10, count).astype(np.uint8)
            images = np.zeros((count, 784), dtype=np.uint8)
            for n, label in enumerate(labels.tolist()):
                images[n, label * 70 : label * 70 + 60] = 255
            for kind, values in (
                ("images-idx3", b"0" * 16 + images.tobytes()),
                ("labels-idx1", b"0" * 8 + labels.tobytes()),
            ):
                (tmp_path / name / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(values))
    (tmp_path / "rt_polarity").mkdir()
    words = ("bad dull poor", "good fine great")
    lines = "\n".join(json.dumps({"sentence": f"{words[n % 2]} film {n}", "label": n % 2}) for n in range(60))
    (tmp_path / "rt_polarity" / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "rt_polarity" / "test.jsonl").write_text(lines)
    return tmp_path


def test_it_runs_and_says_what_it_measured(module, data, tmp_path):
    config = module.Config(rows=60, validation=20, seeds=1, hidden=8, epochs=40, by_heart=2, words=20)
    result = module.run(config, data)
    record = module.page(config, result, module._page.circumstances(config, 1.0), tmp_path / "docs")
    text = (tmp_path / "docs" / "mislabel.md").read_text()
    assert set(record["settings"]) == set(module.SETTINGS)
    for name, figures in record["settings"].items():
        assert f"## {name}" in text
        assert figures["rows"] == 60
        assert all(0 <= v <= 1 for v in figures["auroc"].values())
        best = max((s for s in figures["auroc"] if ":" in s), key=lambda s: figures["auroc"][s])
        assert f"The best influence, {best}," in text
    # pictures whose class is written on them: a wrong label stands out by any account
    assert record["settings"]["MNIST"]["auroc"]["loss"] > 0.8
