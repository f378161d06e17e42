"""The batch plan: which rows go together, decided once, before anything runs.

The plan depends on lengths and budget only, never on speed, number of processes or where a run was resumed; so
"resume" and "four processes instead of one" see the very same batches, and its digest can be checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whence.errors import OptionError


@dataclass(frozen=True)
class BatchPlan:
    """Batches of row positions.

    Attributes:
        batches: each a tuple of positions into the encoded rows; together every position once.
        lengths: tokens of each row.
        digest: hex digest of the batches and lengths.
    """

    batches: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def tokens(self) -> int:
        """Real tokens of all rows."""
        return sum(self.lengths)

    @property
    def padded_tokens(self) -> int:
        """Tokens that the model sees, padding included."""
        return sum(len(batch) * max(self.lengths[i] for i in batch) for batch in self.batches)

    def shuffled(self, seed: int) -> BatchPlan:
        """The same batches in a random order, for passes that stop early: without it they would see long rows only."""
        order = np.random.default_rng(seed).permutation(len(self.batches))
        batches = tuple(self.batches[i] for i in order.tolist())
        return BatchPlan(batches, self.lengths, _digest(batches, self.lengths))


def plan_batches(lengths: Sequence[int], *, token_budget: int, max_rows: int = 512) -> BatchPlan:
    """Bucket rows by length, longest first, so that a batch's padded size stays within the budget.

    The longest come first so that what does not fit in memory is found at once. A row longer than the budget gets a
    batch of its own.

    Args:
        lengths: tokens per row.
        token_budget: most tokens (rows x longest row) in a batch.
        max_rows: most rows in a batch.

    Raises:
        OptionError: a budget or row count below 1.
    """
    if token_budget < 1 or max_rows < 1:
        raise OptionError(
            f"token_budget = {token_budget}, max_rows = {max_rows}", wanted="both at least 1", try_="token_budget=4096"
        )
    sizes = tuple(int(n) for n in lengths)
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        # The first row of a batch is its longest, so it alone sets the padded width.
        if current and (len(current) == max_rows or (len(current) + 1) * max(sizes[current[0]], 1) > token_budget):
            batches.append(tuple(current))
            current = []
        current.append(i)
    if current:
        batches.append(tuple(current))
    return BatchPlan(tuple(batches), sizes, _digest(batches, sizes))


def _digest(batches: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> str:
    digest = hashlib.blake2b(np.asarray(lengths, dtype="<i8").tobytes(), digest_size=16)
    for batch in batches:
        digest.update(np.asarray([len(batch), *batch], dtype="<i8").tobytes())
    return digest.hexdigest()
