"""How long work reports on itself without knowing who listens.

Whoever computes gets a ``Watcher`` and tells it facts (``note``) and progress (``step``). The command line shows them;
a library call from Python passes nothing and hears nothing.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from whence.launch import launched


class Watcher(Protocol):
    """Someone who wants to hear what is happening."""

    def note(self, kind: str, text: str, **facts: Any) -> None:
        """A fact worth saying once: ``kind`` is a stable word, ``text`` for people, ``facts`` for machines."""
        ...

    def step(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` rows of this stage are finished."""
        ...


def is_first() -> bool:
    """Whether this process answers for all that its launcher started: writes files and speaks."""
    found = launched(os.environ)
    return found is None or found.rank == 0


class Silent:
    """The watcher of those who did not ask."""

    def note(self, kind: str, text: str, **facts: Any) -> None:
        """Say nothing."""

    def step(self, stage: str, done: int, total: int) -> None:
        """Say nothing."""
