"""One loss per row, in nats, that neither neighbours nor padding change; labels sampled only where a loss is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from whence.tasks.base import Batch, Example
from whence.tasks.causal_lm import CausalLM

VOCABULARY = 19
EXACT = 1e-12


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request) -> torch.nn.Module:
    torch.manual_seed(0)
    if request.param == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3
        )
        return GPT2LMHeadModel(config).double().eval()
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def rows(*lengths: int, prompt: int = 1) -> list[Example]:
    rng = np.random.default_rng(3)
    found = []
    for n, length in enumerate(lengths):
        ids = rng.integers(0, VOCABULARY, length)
        labels = np.where(np.arange(length) < prompt, -100, ids)
        found.append(Example(f"row{n}", {"input_ids": ids}, labels, length, length - prompt))
    return found


def priced(model, examples) -> torch.Tensor:
    task, batch = CausalLM(), CausalLM().collate(examples)
    with torch.no_grad():
        return task.losses(task.outputs(model, batch), batch)


def test_loss_is_the_sum_over_trained_tokens_in_nats(model):
    """Against the obvious loop, and against the model's own mean loss."""
    for example in rows(7, 5, 2, prompt=2)[:2]:
        ids = torch.from_numpy(example.inputs["input_ids"])[None]
        with torch.no_grad():
            logits = model(ids).logits[0]
            own = model(ids, labels=torch.from_numpy(example.labels)[None]).loss
        by_hand = -sum(logits[t - 1].log_softmax(0)[ids[0, t]] for t in range(2, example.length))
        mine = priced(model, [example])
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine[0], by_hand, rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(mine[0], own.double() * example.loss_tokens, rtol=1e-6, atol=1e-6)


def test_neighbours_order_and_padding_change_nothing(model):
    examples = rows(9, 3, 6, 2, 9, 4)
    alone = torch.cat([priced(model, [e]) for e in examples])
    together = priced(model, examples)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(priced(model, examples[::-1]), together.flip(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(priced(model, [examples[1], *rows(20)]), priced(model, rows(9, 3)[1:] + rows(20)))


def test_identical_rows_get_identical_losses_in_different_batches(model):
    one, other = rows(8, 8), rows(12, 5)
    twin = Example("twin", one[0].inputs, one[0].labels, 8, 7)
    torch.testing.assert_close(
        priced(model, [one[0], one[1]])[0], priced(model, [other[0], twin])[1], rtol=1e-9, atol=1e-9
    )


def test_token_losses_add_up(model):
    task, examples = CausalLM(), rows(9, 3, prompt=2)
    batch = task.collate(examples)
    with torch.no_grad():
        outputs = task.outputs(model, batch)
    tokens = task.token_losses(outputs, batch)
    assert tokens.shape == (2, 9)
    torch.testing.assert_close(tokens.sum(1), task.losses(outputs, batch))
    torch.testing.assert_close(task.measurements(outputs, batch), task.losses(outputs, batch))
    assert (tokens != 0).tolist() == [[t + 1 >= 2 and t + 1 < n for t in range(9)] for n in (9, 3)]


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64,) * 2,
    ],
)
def test_half_precision_is_priced_in_float32(dtype, wanted):
    task = CausalLM()
    batch = task.collate(rows(4))
    logits = torch.randn(1, 4, VOCABULARY).to(dtype)
    losses = task.losses(logits, batch)
    assert losses.dtype == wanted
    torch.testing.assert_close(losses, task.losses(logits.to(wanted), batch))


def test_collate_pads_on_the_right_and_says_whether():
    task = CausalLM()
    batch = task.collate(rows(3, 5))
    assert batch.padded
    assert batch.mask is not None
    assert batch.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert (batch.labels[0, 3:] == -100).all()
    full = task.collate(rows(4, 4))
    assert not full.padded
    assert "attention_mask" not in full.inputs
    assert full.ids == ("row0", "row1")


def test_a_model_that_returns_bare_logits():
    head = torch.nn.Embedding(VOCABULARY, VOCABULARY)

    class Bare(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return head(input_ids)

    batch = CausalLM().collate(rows(4))
    assert CausalLM().outputs(Bare(), batch).shape == (1, 4, VOCABULARY)


# --- sampled labels -------------------------------------------------------------------------------------------------


def drawn(logits: torch.Tensor, batch: Batch, seed: int = 0) -> torch.Tensor:
    return CausalLM().sample(logits, batch, seed).labels


def test_labels_are_sampled_only_where_there_is_a_loss():
    task, examples = CausalLM(), rows(9, 4, 6, prompt=3)
    batch = task.collate(examples)
    before = batch.labels.clone()
    labels = drawn(torch.randn(3, 9, VOCABULARY), batch)
    assert torch.equal(batch.labels, before)
    assert torch.equal(labels == -100, before == -100)
    assert ((labels >= 0) & (labels < VOCABULARY) | (labels == -100)).all()
    assert not torch.equal(labels, before)


def test_the_first_label_has_no_position_before_it():
    example = Example("a", {"input_ids": np.array([1, 2, 3])}, np.array([1, 2, 3]), 3, 2)
    labels = drawn(torch.randn(1, 3, VOCABULARY), CausalLM().collate([example]))
    assert labels[0, 0] == 1  # carries no loss, so it is not drawn


def test_samples_follow_the_row_not_the_batch(model):
    examples = rows(9, 3, 6, 9, 4)
    task = CausalLM()

    def sampled(chosen: list[Example], seed: int = 0) -> dict[str, list[int]]:
        batch = task.collate(chosen)
        with torch.no_grad():
            labels = task.sample(task.outputs(model, batch), batch, seed).labels
        return {e.id: labels[b, : e.length].tolist() for b, e in enumerate(chosen)}

    together = sampled(examples)
    assert sampled(examples[::-1]) == together
    for example in examples:
        assert sampled([example])[example.id] == together[example.id]
    assert sampled(examples, seed=1) != together
    twin = Example("another id", examples[0].inputs, examples[0].labels, 9, 8)
    assert sampled([twin])["another id"] != together["row0"]


def test_each_label_is_drawn_from_the_position_before_it():
    logits = torch.full((1, 4, VOCABULARY), -1e9)
    for t, token in enumerate([5, 6, 7, 8]):
        logits[0, t, token] = 0.0
    assert drawn(logits, CausalLM().collate(rows(4)))[0].tolist() == [-100, 5, 6, 7]


def test_sampled_gradient_has_mean_zero():
    """The score function's identity, which true labels do not have: the mean of (softmax - onehot) vanishes."""
    task, count = CausalLM(), 4000
    logits = torch.randn(VOCABULARY, dtype=torch.float64)
    examples = [Example(f"r{n}", {"input_ids": np.array([1, 2])}, np.array([-100, 2]), 2, 1) for n in range(count)]
    batch = task.collate(examples)
    labels = drawn(logits.expand(count, 2, VOCABULARY), batch)[:, 1]
    found = torch.bincount(labels, minlength=VOCABULARY) / count
    expected = logits.softmax(0)
    assert ((found - expected).abs() < 4 * (expected / count).sqrt()).all()
