"""The score-card is run from the root of a clone."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from clones import ROOT


@pytest.fixture(scope="module", autouse=True)
def from_a_clone() -> Iterator[None]:
    """Its modules can be imported."""
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))
