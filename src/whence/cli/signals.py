"""Signals that ask the process to stop, remembered: libraries in C may turn the exception into one of their own."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

HANDLED = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """SIGTERM arrived."""


class Signals:
    """While entered, SIGINT raises KeyboardInterrupt and SIGTERM ``Stopped``; ``received`` is the first of them."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in HANDLED:
            try:
                self._before[number] = signal.signal(number, self._arrived)
            except ValueError:  # not the main thread: signals are somebody else's business
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or number
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped
