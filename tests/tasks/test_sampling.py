"""Labels drawn from a model: the right distribution, and nothing but seed, row id and position decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from whence.tasks import sampling
from whence.tasks.sampling import row_uniforms, sample_categorical


def everywhere(logits: torch.Tensor) -> torch.Tensor:
    return torch.ones(logits.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_distribution_is_the_softmax(dtype):
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0, -3.0, 1.0], dtype=dtype)
    count = 20_000
    drawn = sample_categorical(
        logits.expand(1, count, 6), torch.ones(1, count, dtype=torch.bool), row_uniforms(1, ["row"], count)
    )
    expected = logits.double().softmax(0).numpy() * count
    assert stats.chisquare(np.bincount(drawn.numpy(), minlength=6), expected).pvalue > 0.001


def test_draws_of_many_rows_are_independent_of_each_other():
    count = 4000
    uniform = row_uniforms(0, [f"r{n}" for n in range(count)], 3).numpy()
    assert stats.kstest(uniform[:, 0], "uniform").pvalue > 0.001
    assert abs(np.corrcoef(uniform[:, 0], uniform[:, 1])[0, 1]) < 0.06
    assert abs(np.corrcoef(uniform[:-1, 0], uniform[1:, 0])[0, 1]) < 0.06


def test_equals_the_obvious_inverse_transform():
    torch.manual_seed(0)
    logits, uniform = torch.randn(3, 7, 11, dtype=torch.float64), row_uniforms(5, ["a", "b", "c"], 7)
    drawn = sample_categorical(logits, everywhere(logits), uniform).reshape(3, 7)
    for b in range(3):
        for t in range(7):
            total, wanted = 0.0, -1
            for v, p in enumerate(logits[b, t].softmax(0).tolist()):
                total += p
                if total > uniform[b, t]:
                    wanted = v
                    break
            assert drawn[b, t] == wanted


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_chunks_and_gathering_change_nothing(monkeypatch, share):
    torch.manual_seed(0)
    logits, uniform = torch.randn(4, 9, 13), row_uniforms(0, list("abcd"), 9)
    where = torch.rand(4, 9) < share
    whole = sample_categorical(logits, torch.ones(4, 9, dtype=torch.bool), uniform).reshape(4, 9)
    for values in (1, 30, 1 << 22):
        monkeypatch.setattr(sampling, "_CHUNK_VALUES", values)
        assert torch.equal(sample_categorical(logits, where, uniform), whole[where])


def test_impossible_classes_are_never_drawn_even_at_the_ends():
    logits = torch.full((1, 4, 6), float("-inf"))
    logits[..., 2] = 0.0
    logits[..., 3] = -5.0
    uniform = torch.tensor([[0.0, 0.5, 1 - 1e-16, np.nextafter(1.0, 0.0)]], dtype=torch.float64)
    assert sample_categorical(logits, everywhere(logits), uniform).tolist() == [2, 2, 3, 3]


def test_uniforms_belong_to_seed_and_id_alone():
    long = row_uniforms(3, ["a", "b"], 10)
    assert torch.equal(row_uniforms(3, ["b", "a"], 4), long[[1, 0], :4])
    assert not torch.equal(row_uniforms(4, ["a"], 10), long[:1])
    assert len({float(u) for u in row_uniforms(3, ["a", "b", "1\x00a", "\ud800", ""], 1)}) == 5
    # Pinned: the same on every machine and version, or stored factors could not be fitted again.
    assert row_uniforms(0, ["row:1"], 2).tolist() == [[0.2076192002648083, 0.8478325090786915]]


def test_no_position_at_all():
    logits = torch.randn(2, 3, 4)
    assert len(sample_categorical(logits, torch.zeros(2, 3, dtype=torch.bool), row_uniforms(0, ["a", "b"], 3))) == 0


def test_logits_that_are_not_finite_draw_some_class():
    """Their loss is not finite either, so the row is left out; the draw itself must not fall over."""
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    logits[0, 1] = float("nan")
    drawn = sample_categorical(logits, torch.ones(2, 3, dtype=torch.bool), torch.rand(2, 3, dtype=torch.float64))
    assert ((drawn >= 0) & (drawn < 5)).all()
