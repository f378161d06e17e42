"""Asked to stop: within ten seconds, with the code that says why, also in the middle of a long computation."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.conftest import Place, process

PYTHON_BUSY = "import time\nwhile True: time.sleep(0.01)"
C_BUSY = "import ctypes\nctypes.CDLL(None).sleep(60)"  # gives the lock away, as long computations in torch do
SCRIPT = """
import sys
from whence.cli import signals
signals.GRACE = 1.0
with signals.Signals() as found:
    try:
        print("ready", flush=True)
        {busy}
    except (KeyboardInterrupt, signals.Stopped):
        {after}
sys.exit(75 if found.received not in (None, 2) else 130)
"""


@contextmanager
def started(busy: str, after: str = "pass") -> Iterator[subprocess.Popen[str]]:
    code = SCRIPT.format(busy=busy.replace("\n", "\n        "), after=after)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        yield child


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("busy", [PYTHON_BUSY, C_BUSY], ids=["python", "C"])
def test_one_signal(busy: str, number: int, code: int) -> None:
    with started(busy) as child:
        began = time.monotonic()
        child.send_signal(number)
        assert child.wait(15) == code
    assert time.monotonic() - began < 10


def test_the_second_signal_ends_at_once() -> None:
    with started(PYTHON_BUSY, after="import time; time.sleep(60)") as child:
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 75


def test_a_childs_signal_is_not_its_parents() -> None:
    code = SCRIPT.format(
        busy=(
            "import os, signal, time\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    signal.signal(signal.SIGTERM, lambda *_: None)\n"
            "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1); os._exit(0)\n"
            "os.waitpid(pid, 0); time.sleep(2)\n"
            "sys.exit(0)"
        ).replace("\n", "\n        "),
        after="pass",
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


def test_an_index_that_is_told_to_stop_goes_on(place: Place) -> None:
    build = ["index", "--model", place.model, "--data", place.data, "-o", "index", "--fit-rows", "all"]
    child = process(*build, env={"WHENCE_FAULTS": "term@60"})
    _, said = child.communicate(timeout=120)
    assert child.returncode == 75 and "the same command can be run again" in said, said
    assert not [path for path in Path("index").iterdir() if path.name.endswith(".part")]
    again = process(*build)
    again.communicate(timeout=120)
    assert again.returncode == 0
