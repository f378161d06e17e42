"""The batch plan: every row once, within the budget, the same every time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whence.errors import OptionError
from whence.tasks.batches import plan_batches


@settings(deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 300), max_size=80), budget=st.integers(1, 1000), max_rows=st.integers(1, 20)
)  # fmt: skip
def test_every_row_once_and_within_the_budget(lengths, budget, max_rows):
    plan = plan_batches(lengths, token_budget=budget, max_rows=max_rows)
    assert sorted(i for batch in plan.batches for i in batch) == list(range(len(lengths)))
    for batch in plan.batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    assert plan.tokens == sum(lengths)
    assert plan.padded_tokens >= plan.tokens
    assert plan == plan_batches(lengths, token_budget=budget, max_rows=max_rows)
    mixed = plan.shuffled(3)
    assert sorted(mixed.batches) == sorted(plan.batches)
    assert mixed == plan.shuffled(3)


def test_longest_first_with_little_padding():
    lengths = [5, 50, 6, 49, 5, 50]
    plan = plan_batches(lengths, token_budget=150)
    assert plan.batches == ((1, 5, 3), (2, 0, 4))
    assert plan.padded_tokens - plan.tokens == 1 + 2


def test_digest_knows_everything():
    base = plan_batches([3, 4, 5, 6], token_budget=10)
    others = [
        plan_batches([3, 4, 5, 7], token_budget=10),
        plan_batches([3, 4, 5, 6], token_budget=20),
        plan_batches([4, 3, 5, 6], token_budget=10),
        plan_batches([3, 4, 5, 6], token_budget=10, max_rows=1),
        base.shuffled(2),
    ]
    assert len({plan.digest for plan in [base, *others]}) == 6
    assert base.digest == "60d47beedf54c95d41d3eb9de511b147"  # pinned: stored plans must stay valid


def test_shuffles_differ_by_seed():
    plan = plan_batches([4] * 40, token_budget=4)
    assert plan.shuffled(0).batches != plan.shuffled(1).batches


@pytest.mark.parametrize("wrong", [{"token_budget": 0}, {"token_budget": 5, "max_rows": 0}])
def test_impossible_budgets(wrong):
    with pytest.raises(OptionError):
        plan_batches([1], **wrong)
