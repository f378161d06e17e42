"""The LoRA study on a few made-up sentences: it runs, and writes a page, a plot and a JSON."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from whence.scores.score import collect, pairwise

STUDIES = Path(__file__).resolve().parents[2] / "studies"
GOOD, BAD = ["fine", "bright", "warm"], ["dull", "slow", "cold"]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    for name in ("datainf_lora", "_lora", "_lora_page"):
        sys.modules.pop(name, None)
    return __import__("datainf_lora")


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"sentence": f"a {rng.choice((BAD, GOOD)[n % 2])} film number {n}", "label": n % 2} for n in range(60)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "test.jsonl").write_text(text)
    return tmp_path


@pytest.fixture
def config(study):
    return study.Config(
        rows=24, validation=8, questions=3, ranks=(1, 2), seeds=1, width=16, pretraining_epochs=1, epochs=1,
        lissa_depth=5,
    )  # fmt: skip


def test_runs_and_says_whether_the_bars_hold(study, config, data, tmp_path):
    corpus = study._lora.corpus(config, data)
    base = study._lora.pretrained(config, corpus)
    result = {"pretrained": 0.5, "seeds": [study.seed_of(config, corpus, base, 0)]}
    for found in result["seeds"][0].values():
        assert found["correlation"][0.1]["exact_block"]["questions"] == pytest.approx(1.0)
        assert all(0 <= v <= 1 for v in [*found["auc"].values(), *found["self_auc"].values()])
    about = study._page.circumstances(config, 1.0)
    study._lora_page.page(config, result, about, tmp_path / "docs")
    record = json.loads((tmp_path / "docs" / "datainf_lora.json").read_text())
    page = (tmp_path / "docs" / "datainf_lora.md").read_text()
    assert record["about"]["config_hash"] in page and page.count("**met**") + page.count("**missed**") == 4
    assert "nan" not in page and "nan" not in (tmp_path / "docs" / "datainf_lora.svg").read_text()


def test_kept_gradients_score_as_the_live_ones(study, config, data):
    corpus = study._lora.corpus(config, data)
    world, _ = study.build(config, corpus, study._lora.pretrained(config, corpus), rank=2, seed=1)
    live, kept = (pairwise(rows, world.questions) for rows in (world.live, world.kept))
    np.testing.assert_allclose(kept, live, rtol=1e-4, atol=1e-6)
    grads = collect(world.live, "true").grads
    assert all(torch.equal(g.full(), world.kept.grads.grads[name].full()) for name, g in grads.items())
    assert world.wrong.sum() == round(config.flipped * config.rows)


def test_auc(study):
    wrong = np.array([True, False, True, False])
    assert study.auc(np.array([3.0, 1.0, 4.0, 2.0]), wrong) == 1.0
    assert study.auc(np.zeros(4), wrong) == 0.5
