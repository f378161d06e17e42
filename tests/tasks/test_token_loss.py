"""The token loss against torch's own cross entropy: values, first and second derivatives, dtypes, chunks, vmap."""

import pytest
import torch
from torch.nn import functional

from whence.tasks import token_loss as module
from whence.tasks.token_loss import token_loss


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_VALUES", 64)  # several chunks, the last one short


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(23, 11, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 11, (23,), generator=generator)
    targets[::4] = -100
    return logits.requires_grad_(True), targets, torch.randn(23, generator=generator, dtype=torch.float64)


def plain(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none")


def test_losses_and_gradients_are_those_of_cross_entropy(case) -> None:
    logits, targets, weights = case
    ours, theirs = token_loss(logits, targets), plain(logits, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    (mine,) = torch.autograd.grad(ours @ weights, logits)
    (reference,) = torch.autograd.grad(theirs @ weights, logits)
    torch.testing.assert_close(mine, reference, rtol=1e-13, atol=1e-13)


def test_second_derivatives_in_logits_and_in_the_slope(case) -> None:
    logits, targets, weights = case
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def curvature(loss) -> tuple[torch.Tensor, ...]:
        w = weights.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(logits, targets) @ w, logits, create_graph=True)
        return torch.autograd.grad((slope * direction).sum(), (logits, w))

    for mine, reference in zip(curvature(token_loss), curvature(plain), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


def test_half_precision_is_computed_in_single(case) -> None:
    logits, targets, _ = case
    half = logits.detach().bfloat16().requires_grad_(True)
    ours = token_loss(half, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain(half.float(), targets))
    (mine,) = torch.autograd.grad(ours.sum(), half)
    (reference,) = torch.autograd.grad(plain(half.float(), targets).sum(), half)
    assert mine.dtype == torch.bfloat16
    torch.testing.assert_close(mine, reference, rtol=1e-2, atol=1e-3)  # bfloat16 has 8 bits


def test_per_example_gradients_under_vmap(case) -> None:
    logits, targets, weights = case
    stacked = torch.stack([logits.detach(), 2 * logits.detach()])
    mine = torch.func.vmap(torch.func.grad(lambda x: token_loss(x, targets) @ weights))(stacked)
    for k in range(2):
        leaf = stacked[k].clone().requires_grad_(True)
        (reference,) = torch.autograd.grad(plain(leaf, targets) @ weights, leaf)
        torch.testing.assert_close(mine[k], reference, rtol=1e-12, atol=1e-12)


def test_a_backward_pass_holds_one_more_tensor_of_the_vocabulary() -> None:
    logits = torch.randn(512, 1024, requires_grad=True)  # small_chunks: a row at a time
    losses = token_loss(logits, torch.zeros(512, dtype=torch.long))
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(losses.sum(), logits)
    made = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage >= logits.nbytes]
    assert len(made) == 1  # cross_entropy: 2, besides the log probabilities kept since the forward pass
