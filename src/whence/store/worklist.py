"""Work as a list of files to be made, by one process or several, in any order that their needs allow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from whence.errors import StoreError
from whence.store.crew import Crew


def _always() -> bool:
    return True


def _never() -> bool:
    return False


def _nothing() -> list[str]:
    return []


class Folder(Protocol):
    """Where files are made: ``IndexFolder``, or ``SharedFolder`` for the ranks of a model in pieces."""

    @property
    def path(self) -> Path: ...

    @property
    def plan(self) -> Mapping[str, Any]: ...

    def alone(self, work: Callable[[], Any]) -> Any:
        """What comes of work that only whoever reads and writes there does; JSON."""
        ...

    def refresh(self) -> None: ...

    def finished(self, name: str) -> dict[str, Any] | None: ...

    def enter(self, name: str, **facts: Any) -> None: ...

    def remember(self, name: str, facts: Mapping[str, Any]) -> None: ...

    def remembered(self, first: str) -> list[dict[str, Any]]: ...

    def drop(self, name: str) -> None: ...

    def close(self, names: Iterable[str], body: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Task:
    """One file.

    Attributes:
        name: of the file.
        make: writes it, and returns what its journal entry says beside.
        ready: whether what it is made from is there.
        needless: whether something else has made it superfluous.
        uses: files that nobody needs once this one is finished.
        rows: for progress, if somebody else makes it.
        together: whether all ranks of a model in pieces make it; otherwise the one does whose the folder is.
    """

    name: str
    make: Callable[[], Mapping[str, Any]]
    ready: Callable[[], bool] = _always
    needless: Callable[[], bool] = _never
    uses: Callable[[], list[str]] = _nothing
    rows: int = 0
    together: bool = False


def complete(
    tasks: Iterable[Task], folder: Folder, crew: Crew, progress: Callable[[int], None] = lambda _rows: None
) -> int:
    """Return when every task is finished or needless, whoever did it; how many this process made.

    Raises:
        RankError: another rank died with something that is needed.
        WhenceError: as the tasks do.
    """
    open_, mine = deque(tasks), set[str]()
    while True:
        folder.refresh()
        chosen = _next(open_, folder, crew, lambda task: progress(0 if task.name in mine else task.rows))
        if chosen is None:
            if not open_:
                return len(mine)
            crew.wait()
            continue
        try:
            folder.refresh()  # somebody may have finished it just before the claim
            if not _settled(chosen, folder):
                folder.enter(chosen.name, **(chosen.make() if chosen.together else folder.alone(chosen.make)))
                mine.add(chosen.name)
                for used in chosen.uses():
                    folder.drop(used)
                folder.refresh()  # while it was made, others may have decided without it
            if chosen.needless():
                folder.drop(chosen.name)
        except (StoreError, OSError):
            # what it is made from goes when others have finished with it: those who took this process for dead, or
            # who know by now that it is needless
            folder.refresh()
            if not crew.name or not _settled(chosen, folder):
                raise
        finally:
            crew.leave(chosen.name)


def _next(open_: deque[Task], folder: Folder, crew: Crew, settled: Callable[[Task], None]) -> Task | None:
    """The first task that is to be made and that nobody else makes; what is settled leaves the list."""
    passed: list[Task] = []
    found = None
    while open_ and found is None:
        task = open_.popleft()
        if _settled(task, folder):
            settled(task)
            continue
        passed.append(task)
        if task.ready() and crew.take(task.name):
            found = task
    open_.extendleft(reversed(passed))
    return found


def _settled(task: Task, folder: Folder) -> bool:
    """Nothing is left to do about it."""
    return task.needless() or folder.finished(task.name) is not None
