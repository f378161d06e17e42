"""Fault points: where reliability tests kill, stop or fail a process. They do nothing unless ``WHENCE_FAULTS`` asks.

``WHENCE_FAULTS`` holds one fault or several, separated by commas::

    kill@37                die (SIGKILL) at the 37th disk point that this process reaches
    tear@37                as kill, but a line being appended there is left half written
    stop@37, freeze@37     be stopped (SIGSTOP), or sleep holding the interpreter's lock
    enospc@12              the 12th disk operation fails; also eio, eacces, emfile, edquot
    enospc@12:forever      ... and every later one
    oom@batch=3x2          batch 3 of the plan does not fit in memory, twice; oomcpu@... as the CPU's allocator says it
    kill@37:rank=1         only in the process with RANK=1

A disk point is reached before and after every write, sync and rename (``store.atomic``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

VARIABLE = "WHENCE_FAULTS"
ERRORS = {name: getattr(errno, name.upper()) for name in ("enospc", "eio", "eacces", "emfile", "edquot")}
MEMORY = {
    "oom": "CUDA out of memory (a fault that was asked for)",
    "oomcpu": "[enforce fail] DefaultCPUAllocator: can't allocate memory (a fault that was asked for)",
}
FREEZE_SECONDS = 600
_WRITTEN = re.compile(r"(\w+)@(?:batch=)?(\d+)(?:x(\d+))?((?::\w+(?:=\w+)?)*)")


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: what happens.
        at: number of the disk point, or of the batch.
        times: how often (memory only).
        forever: from ``at`` on (disk errors only).
    """

    kind: str
    at: int
    times: int = 1
    forever: bool = False


@dataclass
class Armed:
    """The faults of this process, and how far it is."""

    faults: tuple[Fault, ...] = ()
    reached: int = 0
    struck: dict[Fault, int] = field(default_factory=dict)


ARMED = Armed()


def arm(text: str) -> None:
    """Begin counting anew, with these faults.

    Raises:
        ValueError: not a fault.
    """
    ARMED.faults = tuple(fault for part in text.split(",") if part.strip() for fault in _read(part.strip()))
    ARMED.reached, ARMED.struck = 0, {}


def point(half: Callable[[], object] | None = None) -> None:
    """A disk point.

    Args:
        half: does half of what comes next, for ``tear``.

    Raises:
        OSError: if asked for.
    """
    if not ARMED.faults:
        return
    ARMED.reached += 1
    for fault in ARMED.faults:
        if fault.kind in ERRORS and (ARMED.reached == fault.at or (fault.forever and ARMED.reached > fault.at)):
            raise OSError(ERRORS[fault.kind], os.strerror(ERRORS[fault.kind]))
        if ARMED.reached == fault.at:
            _strike(fault, half)


def batch(number: int) -> None:
    """A batch of the plan is being computed.

    Raises:
        RuntimeError: as an allocation that fails, if asked for.
    """
    for fault in ARMED.faults:
        if fault.kind in MEMORY and fault.at == number and ARMED.struck.get(fault, 0) < fault.times:
            ARMED.struck[fault] = ARMED.struck.get(fault, 0) + 1
            raise RuntimeError(MEMORY[fault.kind])


def _strike(fault: Fault, half: Callable[[], object] | None) -> None:
    if fault.kind == "tear" and half is not None:
        half()
    if fault.kind in ("kill", "tear"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.kind == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif fault.kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.kind == "freeze":
        ctypes.PyDLL(None).sleep(FREEZE_SECONDS)  # PyDLL, unlike CDLL, keeps the interpreter's lock


def _read(text: str) -> list[Fault]:
    found = _WRITTEN.fullmatch(text)
    if found is None or found[1] not in (*ERRORS, *MEMORY, "kill", "tear", "term", "stop", "freeze", "count"):
        raise ValueError(f"{VARIABLE}: {text!r} is not a fault")
    words = found[4].split(":")
    if any(word.startswith("rank=") and word != f"rank={os.environ.get('RANK')}" for word in words):
        return []
    return [Fault(found[1], int(found[2]), int(found[3] or 1), "forever" in words)]


arm(os.environ.get(VARIABLE, ""))
