"""Signals that ask the process to stop, remembered: libraries in C may turn the exception into one of their own."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from types import FrameType
from typing import Any

# SLURM announces a time limit with a signal of the user's choice, by custom SIGUSR1
HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
REPEAT = 2.0  # seconds in which the same may be said again: by SLURM, and by an srun that SLURM has told as well
GRACE = 8.0  # seconds for the main thread to come back from a long computation in C
STOPPED, INTERRUPTED = 75, 130  # exit codes


# a child that was forked must not answer for its parent
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class Stopped(BaseException):
    """SIGTERM (or SIGUSR1) arrived."""


class Signals:
    """While entered, SIGINT raises KeyboardInterrupt and SIGTERM ``Stopped``; ``received`` is the first of them.

    A thread sees signals even while the main thread is busy in C: the process ends at the second signal, or when the
    first has not been answered within ``GRACE`` seconds. What comes again within ``REPEAT`` seconds is no second one,
    unless it is Ctrl-C. Nothing is lost by that: files are published whole or not at all, and what is unfinished is
    cleared by the next process.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._ends: tuple[int, int] | None = None
        self._wakeup = -1

    def __enter__(self) -> Signals:
        for number in HANDLED:
            try:
                self._before[number] = signal.signal(number, self._arrived)
            except ValueError:  # not the main thread: signals are somebody else's business
                return self
        self._ends = os.pipe()
        for end in self._ends:
            os.set_blocking(end, end == self._ends[0])
        self._wakeup = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._ends[0],), daemon=True, name="whence signals").start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._ends is not None:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._ends[1])  # the thread sees the end of the pipe

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            if _again(number, self.received, self._since):
                return
            # the thread does the same, and must not be outrun by a traceback
            os._exit(INTERRUPTED if self.received == signal.SIGINT else STOPPED)
        self.received, self._since = number, time.monotonic()
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped

    def _watch(self, end: int) -> None:
        """In a thread: the first signal starts the clock, the second ends the process."""
        first = _next(end, None)
        if first is not None:
            began = time.monotonic()
            second = _next(end, GRACE)
            while second is not None and _again(second, first, began):
                second = _next(end, began + GRACE - time.monotonic())
            if second is not None or not self._closed(end):
                os._exit(INTERRUPTED if first == signal.SIGINT else STOPPED)
        os.close(end)

    def _closed(self, end: int) -> bool:
        """Has the command come to its end meanwhile?"""
        readable = select.select([end], [], [], 0)[0]
        return bool(readable) and os.read(end, 1) == b""


def _again(number: int, first: int, since: float) -> bool:
    """Is it the first signal once more, as launchers do?"""
    return number == first != signal.SIGINT and time.monotonic() - since < REPEAT


def _next(end: int, seconds: float | None) -> int | None:
    """The next of our signals; None at the end of the pipe or of the time."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([end], [], [], left)[0]:
            return None
        byte = os.read(end, 1)
        if byte == b"":
            return None
        if byte[0] in HANDLED:
            return byte[0]
