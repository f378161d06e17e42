"""A small index, built again and again in forked processes that are killed, starved or stopped on the way.

The process that forks has torch imported and the model in memory, so a build costs what it computes, not what it
imports. Everything here returns numbers; the tests and the score-card judge them. Needs OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import LlamaConfig, LlamaForCausalLM

from folders import SPECIAL, WORDS, word_tokenizer
from whence import faults
from whence.errors import WhenceError
from whence.indexing import build_index
from whence.store.index_folder import HISTORY
from whence.store.run import LOCK, OWNER

SHARDS = 8
UNTOLD = {HISTORY, LOCK, OWNER}  # files that may differ between two builds of one index


@dataclass(frozen=True)
class Count:
    """What a sweep found.

    Attributes:
        id: line of the score-card.
        what: in words.
        tried: cases.
        failed: cases that were not as promised.
        facts: other numbers.
    """

    id: str
    what: str
    tried: int
    failed: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a forked process ended.

    Attributes:
        code: exit code; negative: the signal that killed it.
        reached: disk points it passed, if it could say so.
        error: class and text of what it raised, if anything.
        seconds: how long it lived.
    """

    code: int
    reached: int = 0
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Workload:
    """A model, rows and settings that make an index of eight shards.

    Attributes:
        model: live model and tokenizer.
        rows: training rows.
        options: of ``build_index``.
    """

    model: Any
    rows: list[dict[str, str]]
    options: Mapping[str, Any]

    def build(self, folder: Path, **given: Any) -> dict[str, Any]:
        """The index, in this process."""
        return build_index(self.model, train=self.rows, out=folder, **{**self.options, **given})


@lru_cache(maxsize=4)
def workload(size: str = "small") -> Workload:
    """``full``: 64 rows, two blocks, 64 wide, EK-FAC. ``small``: 16 rows, one block, 8 wide, K-FAC; for the tests."""
    full = size == "full"
    count, width, layers, batch = (64, 64, 2, 96) if full else (16, 8, 1, 26)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS) + len(SPECIAL), hidden_size=width, intermediate_size=width * 3 // 2,
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        initializer_range=0.3, pad_token_id=3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    words = lambda n: (WORDS[(n * 7 + k * (n % 5 + 1)) % len(WORDS)] for k in range(6 + n % 8))  # noqa: E731
    rows = [{"id": f"r{n}", "text": " ".join(words(n))} for n in range(count)]
    budget = 1.0 if full else 0.2
    options = {
        "method": "ekfac" if full else "kfac", "fit_rows": "all", "batch_tokens": batch,
        "compression": {"budget": budget, "shard_bytes": int(count / SHARDS * budget * 1000 * 0.6)},
    }  # fmt: skip
    made = Workload((LlamaForCausalLM(config).float(), word_tokenizer()), rows, options)
    with tempfile.TemporaryDirectory() as place:
        made.build(Path(place) / "warm")  # everything imported and compiled before the first fork
    return made


def snapshot(folder: Path) -> dict[str, str]:
    """Name -> checksum of every file of an index, but those that say who worked and when."""
    return {
        p.relative_to(folder).as_posix(): xxhash.xxh3_128_hexdigest(p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in UNTOLD
    }


def shards_at(folder: Path) -> dict[str, int]:
    """Shard -> when it was written."""
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("shard-*.safetensors")}


def forked(work: Callable[[], Any], *, faults_: str = "", environment: Mapping[str, str] | None = None) -> int:
    """Begin a piece of work in a forked process; its id. What it says goes to ``result_of``."""
    sys.stdout.flush()
    sys.stderr.flush()
    told = _told()
    told.mkdir(exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        with contextlib.suppress(OSError):
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
        os.environ.update(environment or {})
        signal.set_wakeup_fd(-1)
        faults.arm(faults_ or "count@0")
        code = _run(work, told)
    finally:
        os._exit(code)


def _run(work: Callable[[], Any], told: Path) -> int:
    code, error = 0, ""
    try:
        faulthandler.register(signal.SIGUSR1, file=(told / f"{os.getpid()}.stacks").open("w"))
        work()
    except WhenceError as known:
        code, error = known.exit_code, f"{type(known).__name__}: {known}"
    except BaseException:
        code, error = 1, traceback.format_exc()
    reached, faults.ARMED.faults = faults.ARMED.reached, ()
    (told / str(os.getpid())).write_text(json.dumps({"reached": reached, "error": error}))
    return code


def result_of(pid: int, *, within: float = 120.0) -> Ended:
    """Wait for a forked process; one that hangs is killed and raises."""
    until, began = time.monotonic() + within, time.monotonic()
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"process {pid} did not end within {within} seconds")
        time.sleep(0.002)
    told = _told() / str(pid)
    said = json.loads(told.read_text()) if told.exists() else {}
    told.unlink(missing_ok=True)
    told.with_suffix(".stacks").unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), **said, seconds=time.monotonic() - began)


def _told() -> Path:
    """Where forked processes say how they ended."""
    return Path(os.environ.get("TMPDIR", "/tmp")) / f"whence-fork-{os.getpid()}"


def stacks_of(pid: int) -> str:
    """Where every thread of a forked process is; for one that hangs."""
    told = _told() / f"{pid}.stacks"
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.5)
    return told.read_text() if told.exists() else "it has not begun"


def run_forked(work: Callable[[], Any], *, faults_: str = "", within: float = 120.0) -> Ended:
    """Begin and wait."""
    return result_of(forked(work, faults_=faults_), within=within)


@contextlib.contextmanager
def fresh(place: Path, name: str) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = place / name
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
