"""An index folder of which all ranks of one model know what is finished, while the first alone holds it.

The ranks of a model in pieces must take the same steps, so none may decide by what it sees on a disk: the first rank
looks when the folder is opened, tells the others, and tells them of every file that it has finished since. They need
not see that disk at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whence.gradients.ranks import Ranks
from whence.store import atomic
from whence.store.index_folder import PLAN, IndexFolder, require_same
from whence.store.index_journal import Journal, journal_name


@dataclass(frozen=True)
class SharedFolder:
    """As ``IndexFolder``, for ranks that do the same at the same time.

    Attributes:
        ranks: who.
        held: the folder, on the first rank.
        path: of the folder; only the first rank may read or write there.
        plan: what else the plan holds.
        entries: of finished files and of other facts, by name; the same on every rank.
    """

    ranks: Ranks
    held: IndexFolder | None
    path: Path
    plan: Mapping[str, Any]
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def mine(self) -> bool:
        """Whether this process reads and writes there."""
        return self.held is not None

    def alone(self, work: Callable[[], Any]) -> Any:
        """The first rank does it, and all know what came of it, an error too."""
        return self.ranks.agreed(work)

    def refresh(self) -> None:
        """Nobody else is at work."""

    def finished(self, name: str) -> dict[str, Any] | None:
        """As ``IndexFolder.finished``, as of when it was opened or entered."""
        return self.entries.get(name)

    def enter(self, name: str, **facts: Any) -> None:
        """Record a file that the first rank just wrote; the facts of the others do not count."""
        self.entries[name] = self.alone(lambda: self._entered(name, facts))

    def _entered(self, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        assert self.held is not None
        self.held.enter(name, **facts)
        return self.held.journal.entries[name]

    def remember(self, name: str, facts: Mapping[str, Any]) -> None:
        """Record something that this rank alone has learned and that ends its work: read when the folder is opened.

        Where the disk is not that of the first rank, it is lost.
        """
        if self.held is not None:
            self.held.remember(name, facts)
        elif (self.path / PLAN).is_file():
            Journal(self.path, journal_name(f"rank-{self.ranks.rank}")).enter({"name": name, **facts})

    def remembered(self, first: str) -> list[dict[str, Any]]:
        """As ``IndexFolder.remembered``."""
        return [entry for name, entry in sorted(self.entries.items()) if name.startswith(f"{first} ")]

    def drop(self, name: str) -> None:
        """As ``IndexFolder.drop``."""
        self.entries.pop(name, None)
        if self.held is not None:
            self.held.drop(name)

    def close(self, names: Iterable[str], body: Mapping[str, Any]) -> None:
        """As ``IndexFolder.close``; the first rank's business."""
        assert self.held is not None
        self.held.close(names, body)


def shared(opened: Callable[[], IndexFolder], ranks: Ranks, path: Path, identity: Mapping[str, Any]) -> SharedFolder:
    """The folder as all ranks know it.

    Args:
        opened: opens it; called by the first rank.
        ranks: all of them call this.
        path: of the folder.
        identity: what the index is of, by the model and rows that this rank has read.

    Raises:
        StoreError: it cannot be opened, or this rank has read another model or other rows than the first (names the
            fields).
    """
    held: list[IndexFolder] = []

    def told() -> dict[str, Any]:
        held.append(opened())
        return {"identity": held[0].identity, "plan": dict(held[0].plan), "entries": _whole(held[0])}

    found = ranks.agreed(told)
    require_same(path, found["identity"], atomic.plain(identity))
    return SharedFolder(ranks, held[0] if held else None, path, found["plan"], found["entries"])


def _whole(folder: IndexFolder) -> dict[str, dict[str, Any]]:
    """Entries of files that are as they were written, and of other facts."""
    entries = folder.journal.entries
    return {n: entry for n, entry in entries.items() if "file" not in entry or folder.finished(n) is not None}
