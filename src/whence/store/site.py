"""Where an index is built, and by whom: one process, several that share the folder, or the ranks of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from whence.gradients.backoff import Splits
from whence.gradients.ranks import Ranks
from whence.gradients.source import LiveGradients
from whence.store.crew import Crew
from whence.store.index_folder import damaged
from whence.store.index_shards import read_factors, write_factors
from whence.store.worklist import Folder, Task, complete

Tensors = Mapping[str, Mapping[str, Tensor]]  # layer -> name -> tensor
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Site:
    """Where an index is built, and by whom.

    Attributes:
        folder: of the index.
        crew: this process and others.
        source: the training rows' gradients.
        splits: what did not fit in memory so far.
    """

    folder: Folder
    crew: Crew
    source: LiveGradients
    splits: Splits

    @property
    def ranks(self) -> Ranks | None:
        """Over which the model is spread, if it is."""
        return self.source.ranks

    @property
    def device(self) -> str:
        """Where factors belong."""
        return str(self.source.device if self.ranks is None else self.ranks.device)

    def complete(self, tasks: Iterable[Task], progress: Progress) -> int:
        """All tasks finished, by whomever; how many by this process."""
        return complete(tasks, self.folder, self.crew, progress)

    def read(self, name: str, layers: Iterable[str] | None = None) -> dict[str, dict[str, Tensor]]:
        """Tensors of a finished file, of all layers or of some; for who may read in the folder."""
        return read_factors(self.folder.path / name, self._places(name, layers), device=self.device)

    def known(self, name: str, layers: Iterable[str] | None = None) -> dict[str, dict[str, Tensor]]:
        """As ``read``, for all ranks at once: the first reads, the others hear."""
        if self.ranks is None:
            return self.read(name, layers)
        places, read = self._places(name, layers), self.read(name, layers) if self.ranks.rank == 0 else {}
        mine = {places[layer][of]: tensor for layer, named in read.items() for of, tensor in named.items()}
        kept = dict(self.ranks.handed(0, mine))
        return {layer: {of: kept[key] for of, key in named.items()} for layer, named in places.items()}

    def write(self, name: str, tensors: Tensors) -> dict[str, Any]:
        """Write such a file, for who may write in the folder; what its entry must say."""
        there = self.made_by_others(name)
        return {"places": there["places"] if there else write_factors(self.folder.path / name, tensors)}

    def made_by_others(self, name: str) -> dict[str, Any] | None:
        """The entry of a file that somebody else has finished while this process was making it.

        They took this process for dead, and it was suspended. What they built on that file is theirs, so it stays as it
        is: after what did not fit in memory here, it may not be the same.
        """
        self.folder.refresh()
        return self.folder.finished(name)

    def write_known(self, name: str, tensors: Tensors, *, owner: int = 0) -> dict[str, Any]:
        """As ``write``, for all ranks at once: the first writes.

        Args:
            name: of the file.
            tensors: what is in it.
            owner: the rank that has them; those of the others do not count.
        """
        if self.ranks is not None and owner:
            tensors = self._handed(tensors, owner, self.ranks)
        return self.folder.alone(lambda: self.write(name, tensors))

    def entry(self, name: str) -> dict[str, Any]:
        """What the journal says of a finished file.

        Raises:
            StoreError: it is not there, or not any more.
        """
        entry = self.folder.finished(name)
        if entry is None:
            raise damaged(self.folder.path / name, "it is gone")
        return entry

    def _places(self, name: str, layers: Iterable[str] | None) -> Mapping[str, Mapping[str, str]]:
        places = self.entry(name)["places"]
        return places if layers is None else {layer: places[layer] for layer in layers}

    def _handed(self, tensors: Tensors, owner: int, ranks: Ranks) -> Tensors:
        """The owner's tensors, in the main memory of whoever writes."""
        flat = {f"{of}|{layer}": tensor for layer, named in tensors.items() for of, tensor in named.items()}
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in ranks.handed(owner, flat):
            of, _, layer = key.partition("|")
            if ranks.rank == 0:
                found.setdefault(layer, {})[of] = tensor.cpu()
        return found


def site_of(folder: Folder, crew: Crew, source: LiveGradients) -> Site:
    """With what earlier processes learned about memory."""
    splits = Splits(record=folder.remember)
    splits.sizes |= {entry["batch"]: list(entry["parts"]) for entry in folder.remembered("split")}
    splits.too_large |= {entry["row"] for entry in folder.remembered("too_large")}
    return Site(folder, crew, source, splits)
