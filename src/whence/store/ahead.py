"""Work done ahead: several items at once, results in order, and never more than a few in memory.

Whole items on threads of one core each: on small matrices a library's own threads wait for each other longer than they
compute (``docs/LOG.md``). What comes out does not depend on how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from whence.linalg.threads import threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def worked_ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``work(item)`` of every item, in order.

    All threads that torch may use take part: this one draws the items and uses the results, the others work. What goes
    wrong in one of them is raised here, when it is that item's turn.
    """
    others = torch.get_num_threads() - 1
    if others < 1:
        yield from map(work, items)
        return
    with threads(1), ThreadPoolExecutor(others) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > others:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
