"""``mixture`` and ``bandit`` from a model: sums of scores move weights, few rows are judged, files say so."""

from __future__ import annotations

import json

import numpy as np
import pytest

import whence
from folders import animal_rows, model_folder, write_rows
from whence.errors import DataError, OptionError, StoreError
from whence.pulling import Arms, bandit
from whence.scores.relative import relative_scores
from whence.select.amounts import Amount
from whence.select.bandit import Pulls
from whence.select.choose import Rule
from whence.weighing import Mixing, mixture, mixture_for


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("pool")
    model_folder(place / "model")
    rows = animal_rows(30)
    write_rows(place / "cats.jsonl", rows[::3])
    write_rows(place / "others.jsonl", [row for n, row in enumerate(rows) if n % 3])
    write_rows(
        place / "dev.jsonl",
        [{"prompt": "the cat sat on", "completion": " the mat ."}, {"prompt": "the cat", "completion": " ran"}],
    )
    return place


def spec(world):
    return [f"cats={world / 'cats.jsonl'}", f"others={world / 'others.jsonl'}"]


def test_weights_follow_the_summed_scores(world, tmp_path):
    found = mixture_for(
        str(world / "model"), train=spec(world), query=str(world / "dev.jsonl"), how=Mixing(strength=0.5)
    )
    scores = whence.attribute(str(world / "model"), train=spec(world), query=str(world / "dev.jsonl"), tokens=0)
    mean = scores.values.mean(0) / 30
    pulled = {"cats": mean[:10].sum(), "others": mean[10:].sum()}
    assert found.pulled == pytest.approx(pulled, rel=1e-4)  # the mean question, solved in float32
    largest = max(map(abs, pulled.values()))
    assert found.weights == pytest.approx({k: 1 + 0.5 * v / largest for k, v in pulled.items()}, rel=1e-4)
    found.write(tmp_path / "mix")
    lines = (tmp_path / "mix" / "mixed.jsonl").read_text().splitlines()
    own = (world / "cats.jsonl").read_text().splitlines() + (world / "others.jsonl").read_text().splitlines()
    assert lines == [line for line, n in zip(own, found.counts.tolist(), strict=True) for _ in range(n)]
    assert "nats per doubling" in (tmp_path / "mix" / "report.html").read_text()
    again = mixture(scores, data=spec(world), how=Mixing(strength=0.5, after=tmp_path / "mix"))
    now = {k: found.weights[k] * v for k, v in pulled.items()}  # a source of weight 1.5 has 1.5 times its effect
    largest = max(map(abs, now.values()))
    assert again.pulled == pytest.approx(now, rel=1e-4)
    assert again.weights == pytest.approx(
        {k: found.weights[k] * (1 + 0.5 * v / largest) for k, v in now.items()}, rel=1e-4
    )


def test_swaps_keep_the_size(world):
    scores = whence.attribute(str(world / "model"), train=spec(world), query=str(world / "dev.jsonl"), tokens=0)
    found = mixture(scores, data=spec(world), how=Mixing(strength=0.5, along="swaps"))
    mean = scores.values.mean(0) / 30
    expected = {"cats": mean[:10].mean() - mean.mean(), "others": mean[10:].mean() - mean.mean()}
    assert found.pulled == pytest.approx(expected, rel=1e-4)
    assert 10 * found.weights["cats"] + 20 * found.weights["others"] == pytest.approx(30)
    assert "nats per row swapped" in found.account.tables[0].columns
    with pytest.raises(OptionError, match="along 'both'"):
        Mixing(along="both")  # type: ignore[arg-type]


def test_mixtures_that_cannot_be(world, tmp_path):
    scores = whence.attribute(str(world / "model"), train=spec(world), query=str(world / "dev.jsonl"), top_k=3)
    with pytest.raises(OptionError, match="strongest rows only"):
        mixture(scores, data=spec(world))
    with pytest.raises(OptionError, match="one source"):
        mixture_for(str(world / "model"), train=str(world / "cats.jsonl"), query=str(world / "dev.jsonl"))
    with pytest.raises(StoreError, match="holds no weights"):
        mixture_for(
            str(world / "model"), train=spec(world), query=str(world / "dev.jsonl"), how=Mixing(after=tmp_path / "no")
        )
    (tmp_path / "weights.json").write_text(json.dumps({"weights": {"dogs": 1}}))
    with pytest.raises(DataError, match="other sources"):
        mixture_for(str(world / "model"), train=spec(world), query=str(world / "dev.jsonl"), how=Mixing(after=tmp_path))


def test_a_bandit_judges_few_rows_and_these_rightly(world, tmp_path):
    arms = Arms(Rule(keep=Amount(count=6)), Pulls(budget=12, draw=3), count=4, fit_rows=100)
    found = bandit(str(world / "model"), train=spec(world), query=str(world / "dev.jsonl"), arms=arms)
    scores = whence.attribute(
        str(world / "model"), train=spec(world), query=str(world / "dev.jsonl"), tokens=0, self_influence=True,
        fit_rows=100,
    )  # fmt: skip
    right = relative_scores(scores.values, scores.self_influence).mean(0)
    own = np.isclose(found.choice.values, right, rtol=1e-3)
    assert own.sum() >= 12
    assert len(found.kept_ids) == 6 and "12 of 30 rows were judged" in found.account.words[0]
    found.write(tmp_path / "chosen")
    assert len((tmp_path / "chosen" / "kept.jsonl").read_text().splitlines()) == 6


def test_transport_needs_no_gradient(world):
    arms = Arms(Rule(keep=Amount(count=10)), Pulls(budget=30, draw=4), count=3, reward="transport")
    found = bandit(str(world / "model"), train=spec(world), query=str(world / "dev.jsonl"), arms=arms)
    cats = sum(id_.startswith("cats") for id_ in found.kept_ids)
    assert cats > 10 * 10 / 30  # questions are about cats; a third of the rows is
    assert found.account.about["fit_rows"] == 0
    with pytest.raises(OptionError, match="reward 'luck'"):
        Arms(Rule(keep=Amount(count=1)), Pulls(budget=1), reward="luck")  # type: ignore[arg-type]
