"""The study of metagradients on made-up text: it runs, keeps its banks, and writes its page."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from folders import WORDS, word_tokenizer

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    for name in ("unrolled", "lds_board"):
        sys.modules.pop(name, None)
    return __import__("unrolled")


def test_it_runs_and_writes_its_page(study, tmp_path, monkeypatch):
    words = np.random.default_rng(0).choice(WORDS, 4000)
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "train.txt.gz").write_bytes(gzip.compress(" ".join(words).encode()))
    word_tokenizer().save_pretrained(tmp_path / "stories260K")
    monkeypatch.setattr(study, "OTHERS", ("ekfac", "dot", "bm25"))
    config = study.Config(
        base_passages=24, rows=20, questions=3, tokens=8, steps=5, batch=4, shares=(0.05, 0.1), subsets=4, seeds=(1,)
    )
    found = study.run(config, tmp_path, tmp_path / "banks")
    record = study.page(config, found, study._page.circumstances(config, 1.0), tmp_path / "docs")
    assert len(record["banks"]) == 4 and record["again"] == 0.0 and record["tree"]["states"] <= 5
    assert all(
        set(each["lds"]) == {"unrolled", "unrolled, rough", "ekfac", "dot", "bm25"} for each in record["banks"].values()
    )
    assert all(np.isfinite(list(each["lds"].values())).all() for each in record["banks"].values())
    kept = json.loads((tmp_path / "docs" / "unrolled.json").read_text())
    assert len(kept["about"]["config_hash"]) == 16
    text = (tmp_path / "docs" / "unrolled.md").read_text()
    assert text.startswith("# ") and "nan" not in (tmp_path / "docs" / "unrolled.svg").read_text()
    again = study.run(config, tmp_path, tmp_path / "banks")
    assert again["banks"] == found["banks"]
