"""The studies of choosing rows and cleaning labels, on tiny settings: they run, and say what was measured."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

STUDIES = Path(__file__).resolve().parents[2] / "studies"


def load(name: str):
    sys.path.insert(0, str(STUDIES))
    try:
        spec = importlib.util.spec_from_file_location(f"study_{name}", STUDIES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(STUDIES))


def test_selection(tmp_path, monkeypatch):
    study = load("selection")
    pools = study._pools
    base = pools.BookRecipe(width=16, inner=24, layers=1, passes=1)
    sizes = pools.Sizes(per_source=6, dev=3, test=6, tokens=48, base=base)
    config = study.Config(keep=6, seeds=2, steps=2, batch=4, warm_up_epochs=0.5, arms=3, copies=2, sizes=sizes)
    monkeypatch.setattr(study, "POOLS", {"almanac": lambda s, data: pools.almanac_pool(s)})
    result = study.run(config, tmp_path, tmp_path / "kept")
    found = result["the Almanac"]
    count = found["rows"]
    assert count == sum(found["sources"].values()) == 36
    for name, losses in found["losses"].items():
        assert np.shape(losses) == (2, 6), name
        assert np.isfinite(losses).all()
    assert found["judged"] == round(0.25 * count)
    assert found["share of the target"]["target rows (oracle)"] == 1.0
    assert found["share of the target"]["all rows"] == pytest.approx(found["good"] / count)
    assert study.run(config, tmp_path, tmp_path / "kept") == json.loads(json.dumps(result))
    about = study._page.circumstances(config, 1.0)
    record = study.page(config, result, about, tmp_path / "docs")
    text = (tmp_path / "docs" / "selection.md").read_text()
    for group, verdicts in record["pools"]["the Almanac"]["gains"].items():
        assert f"### {group}" in text
        for gain in verdicts.values():
            assert gain["low"] <= gain["mean"] <= gain["high"]
            assert f"{gain['mean']:.3f} [{gain['low']:.3f}" in text
    gains = record["pools"]["the Almanac"]["gains"]["Selection"]
    expected = np.mean(found["losses"]["random"]) - np.mean(found["losses"]["ekfac"])
    assert gains["ekfac over random"]["mean"] == pytest.approx(expected)


def test_cleaning(tmp_path):
    study = load("cleaning")
    (tmp_path / "rt_polarity").mkdir()
    rng, words = np.random.default_rng(0), ("bad dull poor cold".split(), "good fine great warm".split())  # noqa: SIM905
    rows = [{"sentence": f"{' '.join(rng.choice(words[n % 2], 3))} film {n}", "label": n % 2} for n in range(60)]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "rt_polarity" / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "rt_polarity" / "test.jsonl").write_text(lines)
    config = study.Config(rows=60, test=30, seeds=2, folds=2, epochs=6, words=60, neighbours=3)
    result = study.run(config, tmp_path)
    record = study.page(config, result, study._page.circumstances(config, 1.0), tmp_path / "docs")
    text = (tmp_path / "docs" / "cleaning.md").read_text()
    for name, told in record["sets"].items():
        assert f"## {name}" in text
        assert told["pointed right"]["oracle"] == 1.0
        assert set(told["pointed right"]) == set(study.WAYS)
        assert all(0 <= value <= 1 for value in told["accuracy"].values())
    trials = result["rt_polarity"]
    gain = record["sets"]["rt_polarity"]["gains"]["relabelled: influence over random"]
    means = [np.mean([np.mean(t["loss"][f"{way}, relabelled"]) for t in trials]) for way in ("random", "influence")]
    assert gain["mean"] == pytest.approx(means[0] - means[1])
