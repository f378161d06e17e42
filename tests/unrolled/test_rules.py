"""One optimiser step: torch's own optimisers going forward, autograd going back."""

from __future__ import annotations

import pytest
import torch

from whence.unrolled.rules import AdamW, Moment, Sgd, State, clipped, pull_clipped

P, Q, RATE = 7, 3, 0.05
RULES = [
    Sgd(),
    Sgd(momentum=0.9, weight_decay=0.1),
    AdamW(betas=(0.8, 0.9), root=1e-3, weight_decay=0.1),
    AdamW(betas=(0.9, 0.95), root=0.0),
]


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def theirs(rule, parameter):
    if isinstance(rule, Sgd):
        return torch.optim.SGD([parameter], lr=RATE, momentum=rule.momentum, weight_decay=rule.weight_decay)
    return torch.optim.AdamW([parameter], lr=RATE, betas=rule.betas, eps=rule.eps, weight_decay=rule.weight_decay)


@pytest.mark.parametrize("rule", [RULES[0], RULES[1], RULES[3], AdamW(root=0.0, weight_decay=0.2)], ids=str)
def test_a_step_is_torchs_own(rule):
    parameter = torch.nn.Parameter(numbers(0, P))
    state, optimiser = rule.begin(parameter.detach().clone()), theirs(rule, parameter)
    for number in range(5):
        grad = numbers(number + 1, P)
        state = rule.step(state, grad, Moment(number, RATE, torch.ones(P, dtype=torch.float64)))
        parameter.grad = grad.clone()
        optimiser.step()
    torch.testing.assert_close(state.theta, parameter.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_product_is_autograds(rule):
    decays = (torch.arange(P) % 2).double()
    at = Moment(3, RATE, decays)
    wide = 0 if isinstance(rule, Sgd) else P
    given = [numbers(1, P), numbers(2, P), numbers(3, wide).abs(), numbers(4, P)]
    after = State(numbers(5, Q, P), numbers(6, Q, P), numbers(7, Q, wide))
    found, by_grad = rule.pull(State(*given[:3]), given[3], after, at=at)
    leaves = [g.clone().requires_grad_() for g in given]
    made = rule.step(State(*leaves[:3]), leaves[3], at)
    for q in range(Q):
        along = (made.theta @ after.theta[q]) + (made.first @ after.first[q]) + (made.second @ after.second[q])
        wanted = torch.autograd.grad(along, leaves, retain_graph=True, allow_unused=True)
        for mine, truth in zip((found.theta[q], found.first[q], found.second[q], by_grad[q]), wanted, strict=True):
            if truth is not None and truth.numel():
                torch.testing.assert_close(mine, truth, rtol=1e-11, atol=1e-13)


def test_a_parameter_without_any_gradient_stays_finite():
    rule = AdamW(root=0.0)
    state, zero = rule.begin(numbers(0, P)), torch.zeros(P, dtype=torch.float64)
    after = State(*(numbers(n, Q, P) for n in (1, 2, 3)))
    found, by_grad = rule.pull(state, zero, after, at=Moment(0, RATE, torch.ones(P, dtype=torch.float64)))
    assert all(torch.isfinite(x).all() for x in (found.theta, found.first, found.second, by_grad))


@pytest.mark.parametrize("most", [0.0, 0.5, 100.0])
def test_clipping_and_its_product(most):
    grad, after = numbers(0, P), numbers(1, Q, P)
    made = grad.clone().requires_grad_()
    parameter = torch.nn.Parameter(torch.zeros(P, dtype=torch.float64))
    parameter.grad = grad.clone()
    if most:
        torch.nn.utils.clip_grad_norm_([parameter], most)
    torch.testing.assert_close(clipped(grad, most), parameter.grad)
    wanted = [torch.autograd.grad(clipped(made, most) @ after[q], made)[0] for q in range(Q)]
    torch.testing.assert_close(pull_clipped(grad, most, after), torch.stack(wanted), rtol=1e-11, atol=1e-13)
