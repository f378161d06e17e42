"""A code by name and byte budget, and again from what an index says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from whence.errors import OptionError, StoreError, did_you_mean
from whence.linalg.codes.base import Code, Layout
from whence.linalg.codes.dense import Dense, dense
from whence.linalg.codes.low_rank import LowRank, low_rank
from whence.linalg.codes.sparse import Sparse, sparse

SCHEMES: Mapping[str, Callable[[Layout, int], Code]] = {
    "sparse": sparse,
    "low_rank": low_rank,
    "int8": partial(dense, kind="int8"),
    "fp16": partial(dense, kind="fp16"),
}
AUTO = "auto"


def choose(layout: Layout, budget: int, scheme: str = AUTO) -> Code:
    """The code that fits into ``budget`` bytes a row.

    ``auto`` takes every number where they all fit (in 16, else in 8 bits) and each row's strongest ones where they do
    not: of the schemes here these rank rows best at every budget measured (docs/studies/index_compression.md).

    Raises:
        OptionError: no such scheme, or it does not fit.
    """
    if scheme == AUTO:
        scheme = next((kind for kind in ("fp16", "int8") if Dense(layout, kind).bytes_per_row <= budget), "sparse")
    if scheme not in SCHEMES:
        raise OptionError(
            f"scheme {scheme!r}", wanted="a way to compress rows", try_=did_you_mean(scheme, [*SCHEMES, AUTO])
        )
    return SCHEMES[scheme](layout, budget)


def code_of(layout: Layout, about: Mapping[str, Any]) -> Code:
    """The code that ``about`` describes.

    Raises:
        StoreError: a scheme that this version does not know.
    """
    match about:
        case {"scheme": "sparse", "slots": int(slots), "width": 1 | 2 as width} if slots > 0 and slots % 2 == 0:
            return Sparse(layout, slots, width)
        case {"scheme": "low_rank", "rank": int(rank)} if rank > 0:
            return LowRank(layout, rank)
        case {"scheme": "fp16" | "int8" as kind}:
            return Dense(layout, kind)
    raise StoreError(f"rows coded as {dict(about)!r}", wanted="a scheme of this version", try_="pip install -U whence")
