"""Wrong labels: suspicion against the long way round, planted flips, and a classifier that learned them by heart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from whence.candidates.lexical import bm25_scores
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.errors import DataError, OptionError
from whence.evaluate.bag import BagSettings, WordCounts, WordTokenizer, accuracy, train_bag
from whence.evaluate.contenders import Contest
from whence.evaluate.mislabel import SUSPECTS, Labelled, mislabel, plant_flips, suspicion
from whence.evaluate.statistics import auroc
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.scores.score import pairwise, prepare_queries, self_influence
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.classification import SequenceClassification

WORDS = 24
TASK = SequenceClassification(SimpleNamespace(pad_token_id=0), label2id={"a": 0, "b": 1, "c": 2})


def drawn(count: int, *, seed: int, prefix: str) -> list[Example]:
    """Rows of 8 words; two thirds of them come from the words of their class."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        label = int(rng.integers(3))
        own = rng.integers(2 + 6 * label, 8 + 6 * label, size=8)
        ids = np.where(rng.random(8) < 0.5, own, rng.integers(2, WORDS, size=8)).astype(np.int64)
        rows.append(Example(f"{prefix}{n}", {"input_ids": ids}, np.asarray(label), 8, 1))
    return rows


def source_of(model, rows) -> LiveGradients:
    return LiveGradients(
        model, TASK, rows, plan_batches([e.length for e in rows], token_budget=160), find_layers(model)
    )


@pytest.fixture(scope="module")
def world() -> Labelled:
    flipped, wrong = plant_flips(drawn(150, seed=0, prefix="r"), 0.2, classes=3, seed=1)
    model = train_bag(TASK, flipped, sizes=(WORDS, 3), settings=BagSettings(hidden=4, epochs=8)).double()
    return Labelled(source_of(model, flipped), wrong, source_of(model, drawn(40, seed=9, prefix="v")))


def texts(rows: Labelled) -> Contest:
    def said(source: LiveGradients) -> tuple[str, ...]:
        return tuple(" ".join(f"w{n}" for n in e.inputs["input_ids"]) for e in source.examples)

    assert rows.validation is not None
    return Contest(row_texts=said(rows.train), query_texts=said(rows.validation))


def test_flips_are_planted_uniformly():
    rows = drawn(600, seed=3, prefix="r")
    flipped, wrong = plant_flips(rows, 0.25, classes=3, seed=4)
    changed = {e.id for e, f in zip(rows, flipped, strict=True) if int(e.labels) != int(f.labels)}
    assert changed == wrong and len(wrong) == 150
    steps = Counter((int(f.labels) - int(e.labels)) % 3 for e, f in zip(rows, flipped, strict=True) if e.id in wrong)
    assert set(steps) == {1, 2} and min(steps.values()) > 50
    assert plant_flips(rows, 0.25, classes=3, seed=4)[1] == wrong != plant_flips(rows, 0.25, classes=3, seed=5)[1]
    for share, classes in ((0.0, 3), (1.0, 3), (0.5, 1)):
        with pytest.raises(OptionError):
            plant_flips(rows, share, classes=classes)


def test_suspicion_the_long_way_round(world):
    train, validation = world.train, world.validation
    names = ("self:ekfac", "validation:ekfac", "validation:dot@relative:1", "loss", "gradient_norm", "random", "length")
    found = suspicion(names, world, Contest(damping="relative:0.3"))
    assert list(found) == list(names)
    method = get_method("ekfac")
    inverse = method.operator(fit(train, method), Problem(train)).power(-1, relative(0.3))
    np.testing.assert_allclose(found["self:ekfac"], self_influence(train, inverse), rtol=1e-8)
    scores = pairwise(train, prepare_queries(validation, inverse))
    np.testing.assert_allclose(found["validation:ekfac"], -scores.mean(0), rtol=1e-7, atol=1e-9)
    weights = list(train.model.parameters())
    norms, losses = [], []
    for example in train.examples:
        batch = TASK.collate([example])
        loss = TASK.losses(TASK.outputs(train.model, batch), batch).sum()
        losses.append(loss.item())
        norms.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]).norm().item())
    np.testing.assert_allclose(found["loss"], losses, rtol=1e-9)
    np.testing.assert_allclose(found["gradient_norm"], norms, rtol=1e-9)


def test_shuffled_labels_are_a_control(world):
    validation = world.validation
    order = np.random.default_rng(4).permutation(len(validation.examples))
    labels = [validation.examples[n].labels for n in order]
    dealt = [replace(e, labels=label) for e, label in zip(validation.examples, labels, strict=True)]
    other = Labelled(world.train, world.wrong, source_of(world.train.model, dealt))
    found = suspicion(("shuffled:kfac", "validation:kfac"), world, Contest(seed=4))
    wanted = suspicion(("validation:kfac",), other, Contest(seed=4))["validation:kfac"]
    np.testing.assert_allclose(found["shuffled:kfac"], wanted, rtol=1e-9)
    wrong = np.array([id_ in world.wrong for id_ in world.train.ids])
    assert auroc(found["validation:kfac"], wrong) > auroc(found["shuffled:kfac"], wrong) + 0.1


def test_neighbours_count_other_labels(world):
    found = suspicion(("neighbours:bm25", "neighbours:embedding"), world, texts(world))
    assert list(found) == ["neighbours:bm25"]  # a model of counts has no embeddings
    contest = texts(world)
    similar = bm25_scores(contest.query_texts, contest.row_texts)
    labels = [int(e.labels) for e in world.train.examples]
    asked = [int(e.labels) for e in world.validation.examples]
    for n in (0, 17, 101):
        other = sum(similar[v, n] for v in range(40) if asked[v] != labels[n])
        assert found["neighbours:bm25"][n] == pytest.approx(other / similar[:, n].sum(), rel=1e-5)


def test_influence_finds_what_was_planted(world):
    scores = suspicion(SUSPECTS, world, texts(world))
    found = mislabel(scores, world)
    wrong = np.array([id_ in world.wrong for id_ in world.train.ids])
    cells = {row[0]: row for row in found.rows}
    for name, values in scores.items():
        assert cells[name][1] == pytest.approx(auroc(values, wrong))
    assert cells["self:ekfac"][1] > 0.75 and cells["validation:ekfac"][1] > 0.75
    assert 0.35 < cells["random"][1] < 0.65
    best = scores[found.rows[0][0]]
    top = np.argsort(-best)[:15]
    assert found.rows[0][4] == pytest.approx(100 * wrong[top].sum() / wrong.sum(), abs=0.01)
    assert found.words[0] == "30 of 150 labels are wrong (planted)."
    assert [row[1] for row in found.rows] == sorted((row[1] for row in found.rows), reverse=True)


def test_without_validation_rows_it_is_said(world):
    alone = Labelled(world.train, world.wrong, trained_on=False)
    scores = suspicion(SUSPECTS, alone, Contest())
    assert set(scores) == {"self:ekfac", "self:kfac", "loss", "gradient_norm", "length", "random"}
    words = " ".join(mislabel(scores, alone).words)
    assert "No validation rows" in words and "not trained on the planted labels" in words


@pytest.mark.parametrize("name", ["ekfac", "self:bm25", "self:relative:ekfac", "neighbours:loss", "self:nothing"])
def test_names_that_do_not_exist(world, name):
    with pytest.raises(OptionError):
        suspicion((name,), world, Contest())


def test_nothing_wrong_or_everything(world):
    scores = {"loss": np.arange(150.0)}
    for wrong in (frozenset(), frozenset(world.train.ids)):
        with pytest.raises(DataError):
            mislabel(scores, Labelled(world.train, wrong))
    with pytest.raises(OptionError, match="block-diagonal"):
        suspicion(("self:exact",), world, Contest())


def test_the_bag_counts_words():
    torch.manual_seed(0)
    model = WordCounts(6, 2, hidden=3).double()
    ids = torch.tensor([[2, 2, 5, 0], [1, 3, 4, 2]])
    counts = torch.tensor([[0, 0, 2.0, 0, 0, 1], [0, 1, 1, 1, 1, 0]], dtype=torch.double)
    wanted = model.outer(torch.tanh(model.inner(counts / counts.norm(dim=1, keepdim=True))))
    torch.testing.assert_close(model(ids), wanted)
    tokenizer = WordTokenizer.of(["a b b", "b c"], most=2)
    assert tokenizer("B x a")["input_ids"] == [2, 1, 3] and tokenizer.size == 4


def test_the_bag_learns_and_repeats():
    rows, held = drawn(300, seed=5, prefix="r"), drawn(100, seed=6, prefix="v")
    before = torch.get_rng_state()
    first, second = (train_bag(TASK, rows, sizes=(WORDS, 3), settings=BagSettings(epochs=10)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert accuracy(TASK, first, held) > 0.8
    assert np.isnan(accuracy(TASK, first, []))
