"""Several processes on one index: who is there, who makes what, and how the death of one is noticed.

No network and no collectives: everything happens through small files in the folder, so it works under ``torchrun``,
``accelerate launch``, ``srun`` and for job arrays alike, also across machines that share a disk.

* **Claims** (``.claims/NAME``, made with exclusive create) keep two processes from making one file. They save work and
  carry no correctness: a file is a function of the plan and its name, published whole, so one made twice is the same.
* **Signs of life** (``.members/NAME``, rewritten every second or so) count up; whoever waits for somebody whose count
  stands still for too long takes him for dead. Clocks of different machines are never compared.
* **Names** in the folder belong to one process: who comes again while others work gets another (``shard-3.1``).
* **Locks**: every member holds the folder's lock for sharing, a process on its own holds it alone.

A *rank* (``RANK`` and ``WORLD_SIZE``, or a SLURM step) belongs to a job that ends together: survivors finish what they
can and raise ``RankError``. A *shard* (``--shard 3/16``, from a job array) comes and goes alone: others take its work.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from whence.errors import OptionError, RankError
from whence.launch import launched
from whence.store import atomic
from whence.store.run import OWNER, Lock, clear_parts, in_use, own_folder, sign_owner

CLAIMS, MEMBERS = ".claims", ".members"
POLL, BEAT = 0.1, 1.0  # seconds between two looks, and between two signs of life
PATIENCE, VARIABLE = 20.0, "WHENCE_RANK_TIMEOUT"
LONGEST_BEAT = 3.0  # times as long as planned may a sign take; what is longer is taken for being suspended
ARRIVAL = 2.5  # times as long until somebody never seen is missed: imports take their time, a minute is the limit
WORKING, DONE, FAILED = "working", "done", "failed"
MARKS = (
    "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
)  # fmt: skip
_SHARD, _AGAIN = re.compile(r"(\d+)/(\d+)"), re.compile(r"(\w+-\d+)\.(\d+)")


@dataclass(frozen=True)
class Member:
    """This process among others.

    Attributes:
        kind: ``rank`` of a job that ends together, or ``shard`` of an array.
        number: which, from 0.
        of: how many were started.
        local: its place on this machine, for the choice of a GPU.
        job: what ranks of one launch have in common.
    """

    kind: str
    number: int
    of: int
    local: int = 0
    job: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number}"


def member_of(shard: str | None, environment: Mapping[str, str]) -> Member | None:
    """Which of several processes this is; None when it is the only one.

    Args:
        shard: ``i/n`` as given by the user.
        environment: ``os.environ``.

    Raises:
        OptionError: not a shard.
    """
    if shard is not None:
        found = _SHARD.fullmatch(shard.strip())
        if found is None or not 0 <= int(found[1]) < int(found[2]):
            raise OptionError(f"shard {shard!r}", wanted="i/n with i from 0 to n - 1", try_="--shard 0/4")
        return Member("shard", int(found[1]), int(found[2]))
    found = launched(environment)
    if found is not None and found.world > 1:
        job = " ".join(environment.get(mark, "") for mark in MARKS)
        return Member("rank", found.rank, found.world, found.local, job)
    return None


class Crew(Protocol):
    """Those who work on a folder."""

    @property
    def name(self) -> str:
        """Of this process; empty when it is the only one."""
        ...

    def take(self, task: str) -> bool:
        """Claim a task; False when somebody else is at it."""
        ...

    def leave(self, task: str) -> None:
        """Give the claim back."""
        ...

    def wait(self) -> None:
        """Nothing to do until others are done: wait a moment."""
        ...

    def finish(self) -> None:
        """This process has nothing left to do."""
        ...


@dataclass(frozen=True)
class Alone:
    """The only process."""

    name: str = ""

    def take(self, task: str) -> bool:
        return True

    def leave(self, task: str) -> None:
        """Nobody else wants it."""

    def wait(self) -> None:
        raise AssertionError("there is nobody to wait for")

    def finish(self) -> None:
        """Nobody waits."""


@dataclass
class Team:
    """This process among others.

    Attributes:
        folder: of the index.
        member: who this is.
        patience: seconds without a sign of life until somebody is taken for dead.
        called: its name in the folder, where it is not that of the member.
    """

    folder: Path
    member: Member
    patience: float = PATIENCE
    called: str = ""
    _state: str = WORKING
    _beats: int = 0
    _started: float = field(default_factory=time.monotonic)
    _lived: float = 0.0  # seconds that the thread of signs has seen pass: time suspended is none
    _seen: dict[str, tuple[str, float, float]] = field(default_factory=dict)  # name -> sign, and when by both clocks
    _over: threading.Event = field(default_factory=threading.Event)
    _signing: threading.Lock = field(default_factory=threading.Lock)
    _beating: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self.called or self.member.name

    def take(self, task: str) -> bool:
        claim = self._claim(task)
        if atomic.create(claim, self.name):
            return True
        holder = _text(claim)
        if holder is None or self._is_mate(holder) or not self._gone(holder):
            return False
        atomic.remove(claim)  # whoever held it is gone; if two find out at once, both make the same file
        return atomic.create(claim, self.name)

    def leave(self, task: str) -> None:
        claim = self._claim(task)
        if _text(claim) == self.name:  # it is another's where this process was taken for dead
            atomic.remove(claim)

    def wait(self) -> None:
        time.sleep(POLL)
        if self.member.kind == "rank":
            self._check()

    def finish(self) -> None:
        """Say that nothing is left to do; ranks wait until all the others say so.

        Raises:
            RankError: somebody died on the way.
        """
        self.sign(DONE)
        if self.member.kind == "rank":
            while any(self._told(name).get("state") != DONE for name in self._mates()):
                self.wait()

    def sign(self, state: str = "") -> None:
        """A sign of life."""
        with self._signing:  # two threads give signs, and what the main one says last must stand
            self._state = state or self._state
            self._beats += 1
            told = {"state": self._state, "beat": self._beats, "job": self.member.job, **_process()}
            atomic.overwrite(self.folder / MEMBERS / self.name, json.dumps(told))

    def live(self) -> None:
        """Signs of life from now on, from a thread of its own."""
        self.sign()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="whence signs of life")
        self._beating.start()

    def _beat(self) -> None:
        pace, before = min(BEAT, self.patience / 5), time.monotonic()
        while not self._over.wait(pace):
            with suppress(Exception):  # a full disk is found by whoever writes results
                self.sign()
            now = time.monotonic()
            self._lived, before = self._lived + min(now - before, LONGEST_BEAT * pace), now

    def stop(self) -> None:
        """No more signs: once this returns, nothing of this process appears in the folder."""
        self._over.set()
        if self._beating is not None:
            self._beating.join()

    def _check(self) -> None:
        """Raises RankError when one of the job's ranks is dead, failed or silent."""
        for number, name in enumerate(self._mates()):
            if number != self.member.number and (why := self._trouble(name)):
                raise RankError(
                    f"rank {number} of {self.member.of} {why}",
                    wanted="all ranks of this job alive; what the others made is kept",
                    try_="run the same command again, with as many ranks as you like",
                )

    def _trouble(self, name: str) -> str:
        told = self._told(name)
        known = bool(told) or name in self._seen  # a sign that cannot be read now and then is no reason
        where = f"(process {told.get('pid')} on {told.get('host')})" if told else "(whose signs cannot be read)"
        if told.get("state") == DONE:
            return ""
        if told.get("state") == FAILED:
            return f"{where} stopped with an error"
        if _is_dead(told):
            return f"{where} is dead"
        if known and self._silent(name) > self.patience:
            return f"{where} has given no sign of life for {self.patience:.0f} seconds"
        if not known and self._passed(self._started, 0.0) > ARRIVAL * self.patience:
            return f"was not there within {ARRIVAL * self.patience:.0f} seconds"
        return ""

    def _is_mate(self, name: str) -> bool:
        """A rank of this job: its death ends the job, and its work is not taken over."""
        return self.member.kind == "rank" and name in self._mates() and bool(self._told(name))

    def _gone(self, name: str) -> bool:
        told = self._read(name)
        return name != self.name and (
            told.get("state") in (DONE, FAILED) or _is_dead(told) or self._silent(name) > self.patience
        )

    def _silent(self, name: str) -> float:
        """Seconds for which the count has stood still, as far as this process has seen."""
        text = _text(self.folder / MEMBERS / name) or ""
        if name not in self._seen or self._seen[name][0] != text:
            self._seen[name] = (text, time.monotonic(), self._lived)
        _, since, lived = self._seen[name]
        return self._passed(since, lived)

    def _passed(self, since: float, lived: float) -> float:
        """Seconds since then. When all were suspended together, each finds the others silent; that time is nobody's."""
        passed = time.monotonic() - since
        return passed if self._beating is None else min(passed, self._lived - lived)

    def _told(self, name: str) -> dict[str, Any]:
        """What a member last said; nothing if that was in another job."""
        told = self._read(name)
        return told if told.get("job", "") == self.member.job else {}

    def _read(self, name: str) -> dict[str, Any]:
        text = _text(self.folder / MEMBERS / name)
        try:
            told = json.loads(text) if text else {}
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}

    def _mates(self) -> list[str]:
        """The name of every rank of this job: the newest, where somebody had it before."""
        again = [found for path in (self.folder / MEMBERS).glob("*.*") if (found := _AGAIN.fullmatch(path.name))]
        again.sort(key=lambda found: int(found[2]), reverse=True)
        names = [Member(self.member.kind, number, self.member.of).name for number in range(self.member.of)]
        newest = [[found[0] for found in again if found[1] == name] for name in names]
        return [next(filter(self._told, others), name) for name, others in zip(names, newest, strict=True)]

    def _claim(self, task: str) -> Path:
        return self.folder / CLAIMS / task


@contextmanager
def joined(
    folder: str | Path, member: Member, *, kind: str, after: Callable[[Path], None]
) -> Iterator[tuple[Path, Team]]:
    """Hold a folder together with others.

    Args:
        folder: of the index.
        member: who this process is.
        kind: as ``run.claimed``.
        after: called by the last to leave, who holds the folder alone.

    Raises:
        StoreError: as ``run.claimed``: a process on its own holds it.
    """
    place = own_folder(folder, kind=kind)
    lock, patience = Lock(place), float(os.environ.get(VARIABLE) or PATIENCE)
    first = _enter(lock, place, patience)
    team = Team(place, member, patience, _free_name(place, member.name))
    try:
        if first:
            sign_owner(place)
        team.live()
        yield place, team
    except BaseException:
        with suppress(Exception):
            team.sign(FAILED)
        raise
    finally:
        team.stop()
        lock.release()
    if _is_last(lock):
        try:
            clear(place)
            clear_parts(place)  # of those who died on the way
            after(place)
            atomic.remove(place / OWNER)
        finally:
            lock.release()


def _enter(lock: Lock, place: Path, patience: float) -> bool:
    """The lock for sharing; whoever is the first clears what a dead crew left."""
    until = time.monotonic() + patience
    while True:
        if lock.alone():
            clear(place)
            clear_parts(place)
            if lock.share():
                return True
        elif lock.share():
            return False
        if time.monotonic() > until:
            raise in_use(place)
        time.sleep(POLL)


def _free_name(place: Path, name: str) -> str:
    """A name that nobody has had since the folder was last cleared.

    A job that is submitted again, or a task that is requeued, may find here what it left itself, also claims; it must
    not pass for the one that died, nor share a journal with one that is still on its way out.
    """
    tried = (name if not n else f"{name}.{n}" for n in itertools.count())
    return next(each for each in tried if atomic.create(place / MEMBERS / each, ""))


def _is_last(lock: Lock) -> bool:
    """Hold the lock alone, if everybody else leaves in a moment; whoever was killed needs one to let go of it."""
    until = time.monotonic() + 2 * BEAT
    while not lock.alone():
        if time.monotonic() > until:
            return False
        time.sleep(POLL)
    return True


def clear(place: Path) -> None:
    """Remove claims and signs of life; only for who holds the folder alone."""
    for name in (CLAIMS, MEMBERS):
        if (place / name).is_dir():
            for path in (place / name).iterdir():
                atomic.remove(path)
            atomic.remove(place / name)


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "space": _space(), "pid": os.getpid(), "born": _born(os.getpid())}


def _space() -> str:
    """Within which process numbers mean something: containers may share a name and a disk, and not these."""
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _is_dead(told: Mapping[str, Any]) -> bool:
    """Known for certain: a process of this machine that does not exist any more."""
    here = {"host": socket.gethostname(), "space": _space()}
    return here.items() <= told.items() and _born(told.get("pid")) != told.get("born")


def _born(pid: object) -> str:
    """When a process of this machine began, so that a number used again is told apart; empty for none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
