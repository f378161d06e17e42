"""A place where syncs cost nothing, and a process of its own for every test that forks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
WORKER = "PYTEST_XDIST_WORKER"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """These tests fork, which can hang in a worker where an earlier test has left threads (of OpenMP, of a pool)."""
    if WORKER not in os.environ:
        return None
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    root = pyfuncitem.config.rootpath
    done = subprocess.run(command, cwd=root, env=clean, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-30_000:]
    return True


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory where the system has such a place."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="whence-") as folder:
        yield Path(folder)
