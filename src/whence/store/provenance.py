"""Who ran what, where, with which versions: the part of ``run.json`` that does not depend on the result.

Secrets never enter: no environment variables are stored, and the command line is redacted.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None

PACKAGES = (
    "whence",
    "torch",
    "transformers",
    "datasets",
    "peft",
    "safetensors",
    "tokenizers",
    "numpy",
    "pyarrow",
    "bm25s",
)
HIDDEN = "[redacted]"
_TOKENS = re.compile(r"\b(hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{8,}|gh[pousr]_[A-Za-z0-9]{8,}|AKIA[0-9A-Z]{12,})")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_QUERY_SECRETS = re.compile(r"((?:token|key|secret|password|sig|signature)=)[^&\s]+", re.IGNORECASE)
_SECRET_FLAG = re.compile(r"^--?[\w-]*(token|password|secret|api[-_]?key)$", re.IGNORECASE)


def environment(*, threads: int | None = None, devices: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, machine and place of this process."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "devices": list(devices),
        "git": git_commit(),
    }


def versions() -> dict[str, str]:
    """Installed versions of whence and of what its numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """Commit of the working folder, so that a result can be tied to the user's own code; None outside git."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def peak_memory_bytes() -> int | None:
    """Largest resident size of this process so far; None where the system does not say.

    On Linux not from ``getrusage``: a process launched by a larger one is told the larger one's peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def redacted(text: str) -> str:
    """The text without access tokens and without credentials in URLs."""
    text = _TOKENS.sub(HIDDEN, text)
    text = _CREDENTIALS.sub(HIDDEN, text)
    return _QUERY_SECRETS.sub(rf"\1{HIDDEN}", text)


def redacted_argv(argv: Sequence[str]) -> list[str]:
    """The command line, replayable except for what is nobody's business."""
    shown: list[str] = []
    hide_next = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        if hide_next:
            shown.append(HIDDEN)
            hide_next = False
        elif _SECRET_FLAG.match(name):
            shown.append(f"{name}={HIDDEN}" if equals else name)
            hide_next = not equals
        else:
            shown.append(redacted(argument))
    return shown
