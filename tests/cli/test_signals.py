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
from whence.cli import signals

PYTHON_BUSY = "import time\nwhile True: time.sleep(0.01)"
C_BUSY = "import ctypes\nctypes.CDLL(None).sleep(60)"  # gives the lock away, as long computations in torch do
SCRIPT = """
import sys, time
from whence.cli import signals
signals.GRACE = {grace}
with signals.Signals() as found:
    try:
        print("ready", flush=True)
        {busy}
    except (KeyboardInterrupt, signals.Stopped):
        {after}
sys.exit(75 if found.received not in (None, 2) else 130)
"""


@contextmanager
def started(busy: str, after: str = "pass", *, grace: float = 1) -> Iterator[subprocess.Popen[str]]:
    code = SCRIPT.format(busy=busy.replace("\n", "\n        "), after=after, grace=grace)
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
    with started(PYTHON_BUSY, after="time.sleep(60)", grace=60) as child:
        child.send_signal(signal.SIGTERM)
        time.sleep(signals.REPEAT + 0.3)
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 75


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_impatience_at_the_keyboard_is_answered_at_once(first: int, second: int) -> None:
    with started(PYTHON_BUSY, after="time.sleep(60)", grace=60) as child:
        child.send_signal(first)
        time.sleep(0.3)
        child.send_signal(second)
        assert child.wait(5) == (130 if first == signal.SIGINT else 75)


def test_a_signal_that_is_said_twice_leaves_time_to_end() -> None:
    """SLURM tells a step to end, and so does the srun that it tells as well (22.05: in the same second)."""
    with started(PYTHON_BUSY, after="time.sleep(0.5); print('let go', flush=True)", grace=60) as child:
        for _ in range(3):
            child.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert child.wait(5) == 75
        assert child.stdout is not None and child.stdout.read() == "let go\n"


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
        grace=1,
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
