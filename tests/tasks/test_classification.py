"""Label loss: labels by name or number, one loss per row, nothing changed by padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from tasks.conftest import byte_level, row, words
from whence.errors import TaskError
from whence.tasks.base import RowProblem
from whence.tasks.classification import SequenceClassification
from whence.tasks.encode import encode_rows
from whence.tasks.rows import Row

LABELS = {"bad": 0, "good": 1, "7": 2}


def bert() -> torch.nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    return BertForSequenceClassification(config).double().eval()


def llama(pad: int | None) -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=3, pad_token_id=pad, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForSequenceClassification(config).double().eval()


@pytest.fixture
def task() -> SequenceClassification:
    return SequenceClassification(byte_level(), LABELS)


@pytest.mark.parametrize(
    ("label", "expected"), [("good", 1), (1, 1), ("1", 1), (1.0, 1), ("bad", 0), (0, 0), ("7", 2), (2, 2), (" 0 ", 0)]
)
def test_labels_by_name_or_number(task, label, expected):
    example = task.encode(row(text="the cat", label=label))
    assert example.labels.item() == expected
    assert example.loss_tokens == 1


@pytest.mark.parametrize("label", ["great", 3, -1, 1.5, True, "", [1], "Good"])
def test_unknown_labels_are_quarantined(task, label):
    with pytest.raises(RowProblem) as caught:
        task.encode(row(text="the cat", label=label))
    assert caught.value.code == "unknown_label"
    assert "good=1" in caught.value.message


def test_other_faults(task):
    for fields, code in (
        ({"text": "x", "label": None}, "missing_label"),
        ({"text": "x"}, "missing_label"),
        ({"label": 1}, "missing_column"),
        ({"text": None, "label": 1}, "null_text"),
        ({"text": "\ud800", "label": 1}, "tokenizer_error"),
    ):
        with pytest.raises(RowProblem) as caught:
            task.encode(row(**fields))
        assert caught.value.code == code
    with pytest.raises(RowProblem, match="no tokens"):
        SequenceClassification(words(), LABELS).encode(row(text="", label=1))
    bad = encode_rows(task, [Row("a", {"text": "x", "label": 9}), Row("b", {"text": "x", "label": 1})])[1]
    assert [q.id for q in bad] == ["a"]


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_truncation_around_the_limit(extra):
    task = SequenceClassification(words(), LABELS, max_length=6)
    example = task.encode(row(text="cat " * (6 + extra), label=1))
    assert (example.length, example.truncated) == (min(6, 6 + extra), max(0, extra))
    skip = SequenceClassification(words(), LABELS, max_length=6, overlong="skip")
    if extra > 0:
        with pytest.raises(RowProblem, match="7 tokens"):
            skip.encode(row(text="cat " * 7, label=1))


def test_pairs_of_texts(task):
    one = task.encode(row(text="the cat", label=1))
    pair = task.encode(row(text="the cat", text_pair="the dog", label=1))
    assert pair.length > one.length


@pytest.mark.parametrize("make", [bert, lambda: llama(2)], ids=["bert", "llama"])
def test_one_loss_per_row_whatever_the_neighbours(task, make):
    model = make()
    texts = ["the cat sat on the mat", "hello", "the dog", "and the dog sat on the log"]
    examples = [task.encode(Row(str(n), {"text": t, "label": n % 3})) for n, t in enumerate(texts)]

    def priced(chosen):
        batch = task.collate(chosen)
        with torch.no_grad():
            outputs = task.outputs(model, batch)
        assert outputs.shape == (len(chosen), 3)
        return task.losses(outputs, batch)

    together = priced(examples)
    torch.testing.assert_close(together, torch.cat([priced([e]) for e in examples]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(priced(examples[::-1]), together.flip(0), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        logits = model(torch.from_numpy(examples[1].inputs["input_ids"])[None]).logits[0]
    torch.testing.assert_close(together[1], -logits.log_softmax(0)[1])


def test_a_decoder_without_padding_token_is_explained(task):
    examples = [task.encode(Row(t, {"text": t, "label": 0})) for t in ("the cat sat", "hello")]
    with pytest.raises(TaskError, match="padding token"):
        task.outputs(llama(None), task.collate(examples))
    assert task.outputs(llama(None), task.collate(examples[:1])).shape == (1, 3)


def test_sampled_labels_follow_the_row(task):
    names = [f"r{n}" for n in range(3000)]
    example = task.encode(row(text="the cat", label=0))
    batch = task.collate([example]).with_labels(torch.zeros(len(names), dtype=torch.long))
    batch = type(batch)(tuple(names), batch.inputs, batch.labels, None, False)
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    labels = task.sample(logits.expand(len(names), 3), batch, 0).labels
    expected = logits.softmax(0)
    assert (torch.bincount(labels, minlength=3) / len(names) - expected).abs().max() < 0.04
    turned = type(batch)(tuple(names[::-1]), batch.inputs, batch.labels, None, False)
    assert torch.equal(task.sample(logits.expand(len(names), 3), turned, 0).labels, labels.flip(0))


def test_fingerprint(task):
    assert task.fingerprint() != SequenceClassification(task.tokenizer, {"a": 0}).fingerprint()
    assert task.fingerprint() == SequenceClassification(task.tokenizer, dict(reversed(LABELS.items()))).fingerprint()
    assert np.isfinite(task.encode(row(text="x", label=1)).labels)
