"""Seconds, CPU seconds and peak memory of a piece of work, in this process or on its GPU."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from whence.store.provenance import peak_memory_bytes

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Reading:
    """What a piece of work took; filled in when it ends.

    Attributes:
        seconds: wall clock.
        cpu_seconds: of all threads of this process.
        before: bytes in use when it began.
        peak: most bytes in use while it ran; of the process, or of the GPU's allocator.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    before: int = 0
    peak: int = 0


@dataclass(frozen=True)
class Meter:
    """Measures pieces of work.

    Attributes:
        device: of the model; memory is that of a GPU when it is on one.
    """

    device: str = "cpu"

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Time and peak memory of what happens inside."""
        before = self.in_use()
        self.forget_peak()
        with self.timing() as found:
            yield found
        found.before, found.peak = before, max(self.peak(), before)

    @contextmanager
    def timing(self) -> Iterator[Reading]:
        """Time alone; may be used inside a ``reading``."""
        found = Reading()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield found
        finally:
            self.settle()
            found.seconds = time.perf_counter() - wall
            found.cpu_seconds = time.process_time() - cpu

    @property
    def on_gpu(self) -> bool:
        """Is the model's memory that of a GPU?"""
        return self.device.startswith("cuda")

    def settle(self) -> None:
        """Wait for work that a GPU still has to do."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def in_use(self) -> int:
        """Bytes in use now; 0 where the system does not say."""
        if self.on_gpu:
            return torch.cuda.memory_allocated(self.device)
        return _status("VmRSS") or peak_memory_bytes() or 0

    def peak(self) -> int:
        """Most bytes in use since ``forget_peak``; since the process began where the system cannot forget."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else peak_memory_bytes() or 0

    def forget_peak(self) -> None:
        """Begin to look for a new peak."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):  # only Linux has it
                _FORGET.write_text("5")

    def available(self) -> int | None:
        """Bytes that could be used now; None where the system does not say."""
        if self.on_gpu:
            return torch.cuda.mem_get_info(self.device)[0]
        with suppress(OSError):
            found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
            return None if found is None else int(found[1]) * 1024
        with suppress(ValueError, OSError, AttributeError):
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return None


def free_disk(folder: str | Path) -> tuple[str, int]:
    """The nearest existing folder above a place, and its free bytes."""
    place = Path(folder).expanduser().absolute()
    while not place.is_dir():
        place = place.parent
    return str(place), shutil.disk_usage(place).free


def _status(name: str) -> int | None:
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        return None if found is None else int(found[1]) * 1024
    return None
