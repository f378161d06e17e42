"""The folder as it is at every disk point of one build: what a process killed there would leave behind.

One build is enough. At each point the folder is copied (a SIGKILL changes nothing on disk, so the copy *is* what it
leaves), and a forked twin is made to fail there; then the folder is put back and the build goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from reliability.harness import UNTOLD, Workload, run_forked
from whence import faults
from whence.errors import WhenceError
from whence.store import atomic
from whence.store.run import LOCK


@dataclass(frozen=True)
class Point:
    """One disk point.

    Attributes:
        number: from 1.
        name: what is about to happen, or has just happened.
        file: to which file.
        state: digest of the folder then.
    """

    number: int
    name: str
    file: str
    state: str


@dataclass
class Recorder:
    """Stands in for ``atomic.reach`` in the building process."""

    folder: Path
    states: Path
    twin: Callable[[Recorder, int], None] | None = None
    points: list[Point] = field(default_factory=list)

    def reach(self, name: str, path: Path) -> None:
        """A disk point."""
        faults.point()
        if self.folder not in (path, *path.parents) and path != self.folder:
            return
        state = keep(self.folder, self.states)
        self.points.append(Point(len(self.points) + 1, name, path.name, state))
        if self.twin is not None:
            self.twin(self, len(self.points))


def recorded(work: Workload, place: Path, twin: Callable[[Recorder, int], None] | None = None) -> list[Point]:
    """Build once in a forked process; states are kept under ``place/states``."""
    folder, states, told = place / "built", place / "states", place / "points.json"
    shutil.rmtree(folder, ignore_errors=True)
    states.mkdir(parents=True, exist_ok=True)

    def build() -> None:
        recorder = Recorder(folder, states, twin)
        atomic.reach = recorder.reach
        ending(lambda: work.build(folder))
        told.write_text(json.dumps([vars(p) for p in recorder.points]))

    ended = run_forked(build, within=900)
    if ended.code:
        raise RuntimeError(ended.error)
    return [Point(**fields) for fields in json.loads(told.read_text())]


def digest(folder: Path) -> str:
    """Of names and contents; temporary files by content only."""
    whole = xxhash.xxh3_128()
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and path.name not in UNTOLD:
            name = ".part" if path.name.endswith(atomic.PART) else path.relative_to(folder).as_posix()
            whole.update(f"{name}|".encode() + path.read_bytes() + b"|")
    return whole.hexdigest()


def keep(folder: Path, states: Path) -> str:
    """Copy the folder, once for each content."""
    name = digest(folder)
    if not (states / name).exists():
        if folder.is_dir():
            shutil.copytree(folder, states / name, ignore=shutil.ignore_patterns(LOCK))
        else:
            (states / name).mkdir()
    return name


def put_back(folder: Path, saved: Path) -> None:
    """The folder as it was, file by file in place: the build has some of them open."""
    wanted = {p.relative_to(saved) for p in saved.rglob("*") if p.is_file()}
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        if path.relative_to(folder) not in wanted and path.name != LOCK:
            path.unlink()
    for name in wanted:
        data = (saved / name).read_bytes()
        if not (folder / name).is_file() or (folder / name).read_bytes() != data:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("r+b" if (folder / name).is_file() else "wb") as out:
                out.truncate()
                out.write(data)


class Failing:
    """At every point a forked twin for which the disk fails there (or from there on), as its error is told to users.

    Attributes:
        code: errno of the failure.
        kind: ``once`` or ``forever``.
        place: where the results and the states after the failures go.
    """

    def __init__(self, code: int, kind: str, place: Path) -> None:
        self.code, self.kind, self.place = code, kind, place
        self.place.mkdir(parents=True, exist_ok=True)

    def __call__(self, recorder: Recorder, number: int) -> None:
        """Fork the twin, wait for its end, keep what it left, put the folder back."""
        saved = recorder.states / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        if recorder.folder.is_dir():
            shutil.copytree(recorder.folder, saved, ignore=shutil.ignore_patterns(LOCK))
        told = self.place / f"{number}.json"
        pid = os.fork()
        if pid == 0:
            self._fail(told)  # raises; the twin unwinds like any process whose disk is full
            raise OSError(self.code, os.strerror(self.code))
        os.waitpid(pid, 0)
        left = [p.name for p in recorder.folder.rglob("*") if p.name.endswith(atomic.PART)]
        before = [p.name for p in saved.rglob("*") if p.name.endswith(atomic.PART)] if saved.exists() else []
        result = json.loads(told.read_text()) if told.exists() else {"error": "no word"}
        result |= {"left": left, "before": before, "state": keep(recorder.folder, recorder.states)}
        told.write_text(json.dumps(result))
        if saved.exists():
            put_back(recorder.folder, saved)

    def _fail(self, told: Path) -> None:
        """From here on this process is the twin: what it raises is written down where the build ends."""
        failed = {"times": 0}

        def reach(_name: str, _path: Path) -> None:
            failed["times"] += 1
            if self.kind == "forever":
                raise OSError(self.code, os.strerror(self.code))

        atomic.reach = reach
        TWIN["told"] = told


TWIN: dict[str, Path] = {}


def ending(build: Callable[[], Any]) -> None:
    """Run a build; a twin writes its error down and is gone."""
    error = ""
    kind, code = "", 0
    try:
        build()
    except WhenceError as known:
        error, kind, code = str(known), type(known).__name__, known.exit_code
        if "told" not in TWIN:
            raise
    except BaseException as unknown:
        error, kind, code = repr(unknown), type(unknown).__name__, 1
        if "told" not in TWIN:
            raise
    if "told" in TWIN:
        TWIN["told"].write_text(json.dumps({"error": error, "kind": kind, "code": code}))
        os._exit(0)
