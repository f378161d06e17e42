"""The class-retrieval and diffusion studies, tiny: they run, and write pages whose figures are those of the record."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from folders import model_folder

STUDIES = Path(__file__).resolve().parents[2] / "studies"


def load(monkeypatch, name):
    monkeypatch.syspath_prepend(str(STUDIES))
    for other in ("_page", "_retrieval", "_templates", "_shapes", "class_retrieval", "diffusion"):
        sys.modules.pop(other, None)
    return __import__(name)


def test_judging(monkeypatch):
    retrieval = load(monkeypatch, "_retrieval")
    scores = {"identity": np.array([[3.0, 2.0, 1.0, 0.0]]), "datainf": np.array([[0.0, 3.0, 1.0, 2.0]])}
    judged = retrieval.judge(scores, [0], [0, 0, 1, 1])
    assert judged["identity"] == {"auc": [1.0], "recall": [1.0]}
    assert judged["datainf"] == {"auc": [0.5], "recall": [0.5]}
    rows = retrieval.lines([judged], {"identity": "dot", "datainf": "DataInf"})
    assert rows[0][2] == "" and rows[1][2].startswith("-0.5")


def test_class_retrieval(monkeypatch, tmp_path):
    study = load(monkeypatch, "class_retrieval")
    model_folder(tmp_path / "model")
    config = study.Config(train=3, test=1, epochs=1, rank=2)
    result = {s: [study.measure(config, tmp_path / "model", setting=s, seed=0)] for s in study.SETTINGS}
    for found in result.values():
        assert all(
            len(found[0][name]["auc"]) == 10 and np.isfinite(found[0][name]["auc"]).all() for name in study.NAMES
        )
    record = study.page(config, result, study._page.circumstances(config, 1.0), tmp_path / "docs")
    page = (tmp_path / "docs" / "class_retrieval.md").read_text()
    assert page.count("**met**") + page.count("**missed**") == 2
    assert record["about"]["config_hash"] in page and "nan" not in page
    assert f"{np.mean(result['named'][0]['datainf']['auc']):.3f}" in page


def test_templates_differ_and_show_their_words(monkeypatch):
    templates = load(monkeypatch, "_templates")
    rng = np.random.default_rng(0)
    rows = [templates.row(name, rng, named=False) for name in templates.TEMPLATES]
    assert len({row["completion"] for row in rows}) == 10
    assert all(" saw a " in row["prompt"] for row in rows)


def test_diffusion(monkeypatch, tmp_path):
    study = load(monkeypatch, "diffusion")
    config = study.Config(size=8, before=4, train=3, test=1, steps=10, times=2, width=8, pretraining_epochs=1, epochs=1)
    pictures = study._shapes.shapes(config, 0)
    assert [image.shape for image in pictures.train] == [(8, 8)] * 15
    result = {"shapes": [study.measure(config, pictures, 0)], "clothes": []}
    study.page(config, result, study._page.circumstances(config, 1.0), tmp_path / "docs")
    page = (tmp_path / "docs" / "diffusion.md").read_text()
    assert page.count("**met**") + page.count("**missed**") == 2
    assert (tmp_path / "docs" / "diffusion_shapes.png").stat().st_size > 100
    record = json.loads((tmp_path / "docs" / "diffusion.json").read_text())
    assert "shown" not in record["shapes"][0] and record["clothes"] == []
    assert f"{np.mean(record['shapes'][0]['ekfac']['auc']):.3f}" in page


@pytest.mark.parametrize("kind", ["disc", "ring", "square", "frame", "cross", "bars", "wedge", "dots"])
def test_every_shape_is_drawn_whole(monkeypatch, kind):
    shapes = load(monkeypatch, "_shapes")
    image = shapes.drawn(kind, np.random.default_rng(1), 16)
    assert 5 < (image > 100).sum() < 150
    edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (edges > 100).mean() < 0.3
