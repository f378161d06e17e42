"""The study of solvers against the proximal Bregman response, on made-up data: it runs and writes its page."""

from __future__ import annotations

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
    sys.modules.pop("pbrf_concrete", None)
    return __import__("pbrf_concrete")


def test_it_runs_and_writes_its_page(study, tmp_path, monkeypatch):
    methods = ("identity", "ekfac", "ekfac_cg:steps=20", "lissa:depth=10", "exact")
    monkeypatch.setattr(study, "METHODS", methods)
    table = np.random.default_rng(0).standard_normal((50, 4))
    config = study.Config(
        rows=40,
        sampled=4,
        questions=3,
        hidden=3,
        epochs=5,
        batch=10,
        seeds=(0,),
        dampings=("absolute:0.1", "relative:1"),
        minibatch=10,
    )
    cells = study.run(config, table)
    record = study.page(config, cells, study._page.circumstances(config, 1.0), tmp_path)
    assert json.loads((tmp_path / "pbrf_concrete.json").read_text())["about"]["config_hash"]
    assert [c["damping"] for c in cells] == list(config.dampings)
    assert all(set(c["figures"]) == set(methods) and c["pbrf"]["residual"] < 1e-2 for c in cells)
    assert all(c["figures"]["exact"] > 0.9 for c in cells), "the truth's own derivative"
    assert all(value >= 0.97 for value in record["bars"]["quality_over_exact"])
    page = (tmp_path / "pbrf_concrete.md").read_text()
    assert (
        page.startswith("# ")
        and "lowest question" in page
        and record["about"]["config_hash"] in page
        and "| --- |" in page
    )
    plot = (tmp_path / "pbrf_concrete.svg").read_text()
    assert plot.startswith("<svg") and "nan" not in plot


def test_the_verdict_names_what_fell_short(study):
    figures = {"identity": 0.2, "ekfac": 0.3, "ekfac_cg:steps=20": 0.9, "exact": 0.95}
    held = study.bars([{"figures": figures}, {"figures": {**figures, "exact": 0.9, "ekfac": 0.5}}])
    assert held["quality_holds"] == [False, True] and held["ekfac_holds"] == [False, True]
    assert "1 of 2" in study._verdict(held["ekfac_holds"], held["ekfac_minus_identity"])
