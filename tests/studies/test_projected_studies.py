"""The studies of the projected family on tiny made-up data: they run, and write a page, a plot and a JSON."""

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
    """Studies are scripts: they import their neighbours as a script does."""
    monkeypatch.syspath_prepend(str(STUDIES))

    def load(name):
        sys.modules.pop(name, None)
        return __import__(name)

    return load


def written(folder: Path, name: str) -> dict:
    record = json.loads((folder / f"{name}.json").read_text())
    about = record["about"]
    assert len(about["config_hash"]) == 16 and about["versions"]["torch"] and about["machine"]["platform"]
    page, plot = (folder / f"{name}.md").read_text(), (folder / f"{name}.svg").read_text()
    assert about["config_hash"] in page and page.startswith("# ") and "| --- |" in page
    assert plot.startswith("<svg") and "nan" not in plot
    return record


def test_trak_rises_runs(study, tmp_path):
    module = study("trak_models")
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 12)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 50, (count, 784)).astype(np.uint8)
        images[np.arange(count), labels * 70] = 255
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"0" * 16 + images.tobytes()))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"0" * 8 + labels.tobytes()))
    config = module.Config(rows=40, questions=5, bank=6, models=(1, 2), hidden=8, size=4, steps=20, batch=8)
    result = module.run(config, tmp_path)
    record = module.page(config, result, module._page.circumstances(config, 1.0), tmp_path / "docs")
    assert written(tmp_path / "docs", "trak_models")["figures"].keys() == record["figures"].keys()
    assert set(record["figures"]) == {"trak 1", "trak 2", "ekfac", "identity"}
    assert all(-1 <= mean <= 1 for mean, _, _ in record["figures"].values())


def test_networks_trained_together_are_the_torch_module(study):
    module = study("trak_models")
    import torch

    config = module.Config(hidden=4, steps=3, batch=4)
    x, y = torch.randn(10, 6), torch.randint(10, (10,))
    weights = module.train_many(config, x, y, module.halves_of(2, 10, 0), 1)
    together = module.forward(weights, x.expand(2, -1, -1))
    for number in range(2):
        torch.testing.assert_close(module.module(weights, number)(x), together[number])
    odds = together[0].softmax(-1)[torch.arange(10), y]
    torch.testing.assert_close(module.margins(weights, x, y)[0], (odds / (1 - odds)).log())


def test_lds_of_the_truth_is_one(study):
    module = study("trak_models")
    import torch

    effects, halves = np.random.default_rng(0).standard_normal((3, 20)), module.halves_of(8, 20, 1)
    truth = np.stack([effects[:, half].sum(1) for half in halves.numpy()])
    np.testing.assert_allclose(module.lds(effects, halves, truth), 1.0)
    np.testing.assert_allclose(module.lds(-effects, torch.as_tensor(halves), truth), -1.0)


def test_projection_sweep_runs(study, tmp_path):
    module = study("projection_sweep")
    text = bytes(np.random.default_rng(0).integers(97, 123, 6000).astype(np.uint8))
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(text))
    config = module.Config(rows=10, questions=3, tokens=8, width=16, depth=1, steps=2, batch=4, sizes=(2, 16))
    result = module.run(config, tmp_path)
    # at the full size every PCA side is kept whole but the longer one of the MLP: close to, and above, the smaller
    assert result["pca"][16] > result["pca"][2]
    module.page(config, result, module._page.circumstances(config, 1.0), tmp_path / "docs")
    assert written(tmp_path / "docs", "projection_sweep")["pca_rising"] is True
