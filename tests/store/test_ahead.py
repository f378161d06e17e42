"""Work ahead: order, errors, memory and threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from whence.store.ahead import worked_ahead


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_threads_are_as_before(threads: int) -> None:
    seen: set[int] = set()

    def work(n: int) -> tuple[int, int]:
        seen.add(threading.get_ident())
        return n, torch.get_num_threads()

    found = list(worked_ahead(work, range(20)))
    assert [n for n, _ in found] == list(range(20))
    assert {count for _, count in found} == {1}  # each item has one core for itself
    assert len(seen) <= max(1, threads - 1)
    assert torch.get_num_threads() == threads


def test_no_more_items_are_held_than_there_are_threads(threads: int) -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for n in range(30):
            drawn.append(n)
            yield n

    for done, _ in enumerate(worked_ahead(abs, items())):
        assert len(drawn) - done <= threads


def test_what_goes_wrong_is_raised_at_its_turn(threads: int) -> None:
    results = worked_ahead(lambda n: 1 // (3 - n), range(9))
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert torch.get_num_threads() == threads
