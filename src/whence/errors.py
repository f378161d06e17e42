"""Every error whence raises on purpose, and how such an error speaks.

::

    WhenceError            exit code (ECOSYSTEM: one table, one place; see ``exit_code``)
    ├── OptionError        2   a setting that cannot work, or an unknown name
    ├── DataError          3   rows that cannot be read, or too many bad ones
    ├── TaskError          3   rows that do not fit the task (no trained tokens, wrong columns)
    ├── StoreError         4   a run folder or index that is in use, damaged or of another run
    ├── ResourceError      5   disk full, or does not fit in memory
    ├── RankError         75   another process of this job died or hangs; the same command goes on
    ├── ModelError         6   a model or tokenizer that cannot be loaded, or is not finite
    ├── LayerError         2   layer patterns or module kinds that cannot be attributed
    └── CurvatureError     2   factors that cannot be inverted, solvers that cannot run

A message says what we **got**, what we **wanted** and what to **try**, quoting the user's own value.
``assert`` is for our mistakes; these are for theirs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_PLACE = re.compile(r"^\[[^\]]*\] *")  # in the sources of a library


class WhenceError(Exception):
    """Base of the family. ``got`` / ``wanted`` / ``try_`` stay available as data; ``told``: another process says it."""

    exit_code: int = 2
    told: bool = False

    def __init__(self, got: str, *, wanted: str = "", try_: str = "") -> None:
        self.got, self.wanted, self.try_ = got, wanted, try_
        lines = [got]
        if wanted:
            lines.append(f"  wanted: {wanted}")
        if try_:
            lines.append(f"  try:    {try_}")
        super().__init__("\n".join(lines))


class OptionError(WhenceError):
    """A setting that cannot work, or a name that is not in the list."""


class DataError(WhenceError):
    """Rows that cannot be read, or more bad rows than were allowed."""

    exit_code = 3


class TaskError(WhenceError):
    """Rows that are readable but do not fit the task."""

    exit_code = 3


class StoreError(WhenceError):
    """A run folder or an index that is in use, damaged, foreign or of another model."""

    exit_code = 4


class ResourceError(WhenceError):
    """Disk full, or a single row that does not fit in memory."""

    exit_code = 5


class RankError(WhenceError):
    """Another process of this job died or does not answer; the same command goes on from there."""

    exit_code = 75


class ModelError(WhenceError):
    """A model, adapter or tokenizer that cannot be loaded or holds non-finite weights."""

    exit_code = 6


class LayerError(WhenceError):
    """Layer patterns that match nothing, or module kinds that cannot be attributed."""


class CurvatureError(WhenceError):
    """Factors that cannot be inverted, or solvers that cannot run with these settings."""


def retold(kind: str, got: str, wanted: str, try_: str) -> WhenceError:
    """An error that another process of this job has raised, and says."""
    family = {each.__name__: each for each in WhenceError.__subclasses__()}
    error = family.get(kind, WhenceError)(got, wanted=wanted, try_=try_)
    error.told = True
    return error


def out_of_memory(error: BaseException) -> bool:
    """Is this an allocation that failed? PyTorch raises a plain RuntimeError on the CPU, and its own class on GPUs."""
    said = str(error).lower()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "out of memory" in said or "can't allocate memory" in said


def rank_lost(error: BaseException) -> bool:
    """Is this a collective operation that failed because a process was no longer there? gloo has no class for it."""
    named = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return named or ("gloo" in str(error) and isinstance(error, RuntimeError))


def gone(error: BaseException) -> RankError:
    """What whoever was waiting for that process says."""
    said = str(error).partition("\n")[0]
    return RankError(
        f"another process of this job is gone ({_PLACE.sub('', said)[:80]})",
        wanted="all of them alive: each holds a part of the model",
        try_="see what that process said; then the same command again",
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Phrase the list of known names for a ``try`` line, near matches first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listing = ", ".join(names[:40]) + (" ..." if len(names) > 40 else "")
    return f"did you mean {' or '.join(repr(n) for n in near)}? known: {listing}" if near else f"one of: {listing}"
