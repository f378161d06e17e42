"""The LDS board on made-up text: it runs, resumes its bank, and writes its page."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from folders import WORDS, word_tokenizer

STUDIES = Path(__file__).resolve().parents[2] / "studies"
METHODS = (
    "ekfac_cg:steps=3@implied",
    "ekfac_cg:steps=3",
    "ekfac",
    "kfac",
    "dot",
    "cosine",
    "projected:size=4",
    "bm25",
    "random",
)


@pytest.fixture
def study(monkeypatch):
    """A study is a script: it imports its neighbours as a script does."""
    monkeypatch.syspath_prepend(str(STUDIES))
    sys.modules.pop("lds_board", None)
    return __import__("lds_board")


@pytest.fixture
def data(tmp_path) -> Path:
    words = np.random.default_rng(0).choice(WORDS, 4000)
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2" / "train.txt.gz").write_bytes(gzip.compress(" ".join(words).encode()))
    word_tokenizer().save_pretrained(tmp_path / "stories260K")
    return tmp_path


def test_it_runs_and_writes_its_page(study, data, monkeypatch):
    monkeypatch.setattr(study, "PROJECTED", ("projected:size=4",))
    sizes = {"rows": 12, "questions": 3, "tokens": 8, "subsets": 4, "base_passages": 24, "epochs": 1.0, "batch": 4}
    config = study.Config(**sizes, seeds=2)
    found = study.run(config, data, data / "bank", METHODS)
    assert {s.name for s in found["board"].standings} == set(METHODS)
    record = study.page(config, found, study._page.circumstances(config, 1.0), data / "docs")
    assert set(record["bars"]) == {
        "ekfac_cg:steps=3@implied at least ekfac",
        "ekfac at least kfac",
        "ekfac clearly above dot",
        "ekfac clearly above cosine",
        "ekfac clearly above projected:size=4",
    }
    kept = json.loads((data / "docs" / "lds_board.json").read_text())
    assert len(kept["about"]["config_hash"]) == 16 and kept["sizes"]["subsets"] == 4
    text = (data / "docs" / "lds_board.md").read_text()
    assert text.startswith("# ") and "`bm25`" in text and "no method can be expected above" in text
    assert "nan" not in (data / "docs" / "lds_board.svg").read_text()
    assert "8 of the models were trained in this run." in text and "Damping of the solve" in text
    again = study.run(config, data, data / "bank", METHODS)
    np.testing.assert_array_equal(again["losses"], found["losses"])
    assert again["trained"] == 0


def test_rows_questions_and_base_share_no_passage(study, data):
    config = study.Config(rows=12, questions=3, tokens=8, base_passages=24)
    found = study.passages(config, data, word_tokenizer())
    assert (len(found.rows), len(found.questions), len(found.others)) == (12, 3, 24)
    everything = [e.inputs["input_ids"].tobytes() for e in (*found.rows, *found.questions, *found.others)]
    assert len(set(everything)) == 39 and all(len(text.split()) == 8 for text in found.texts[0])
