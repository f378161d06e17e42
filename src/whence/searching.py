"""Looking questions up in a finished index: shared by ``ask`` and by a funnel that has an index as a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whence.caching import Cached
from whence.curvature.base import Factors, Problem
from whence.gradients.ranks import Ranks, by_first
from whence.gradients.source import Nobody
from whence.identity import model_identity
from whence.indexing import OF_THE_MODEL, Wish, damped_inverse
from whence.linalg.codes.base import Layout
from whence.linalg.codes.choose import code_of
from whence.linalg.matrix_batch import Full
from whence.linalg.operators import Blocks, Gradients, Identity
from whence.pipeline import Material, Subject
from whence.questions import pose
from whence.scores.low_rank import HELD
from whence.scores.relative import cosine_scores, relative_scores
from whence.scores.sinks import AllScores, TopK
from whence.scoring import counted
from whence.store import atomic, index_folder, index_shards
from whence.store.index_folder import FACTORS

COPIES = 3  # of a group of questions while it is whitened


@dataclass(frozen=True)
class Lookup:
    """An index and a model that may ask it.

    Attributes:
        wish: method, damping and settings of the index, with the question's own ones.
        subject: the model.
        shelf: the coded rows.
        cache: what chooses which of them are scored, if anything.
        ranks: where the model is in pieces and the first of its ranks alone has the index: all of them.
    """

    wish: Wish
    subject: Subject
    shelf: index_shards.Shelf
    cache: Cached | None = None
    ranks: Ranks | None = None

    def answer(self, asked: Material) -> tuple[np.ndarray, np.ndarray | None]:
        """Scores of the questions, and columns where only the strongest are kept; as many questions at once as fit.

        With ``ranks`` the first calls this, and the others ``work_along``.
        """
        inverse = self._agreed_inverse(asked)
        assert inverse is not None
        total = len(asked.examples) if self.subject.options.combine == "each" else 1
        with counted(self.wish.watch, "search", total * int(self.shelf.manifest["n_train"])) as count:
            parts = [self._searched(*self._whitened(group, inverse), count) for group in self._groups(asked)]
        columns = [part[1] for part in parts if part[1] is not None]
        return np.concatenate([part[0] for part in parts]), np.concatenate(columns) if columns else None

    def work_along(self, asked: Material) -> None:
        """The part of a rank that holds a part of the model, while the first rank looks the questions up."""
        self._agreed_inverse(asked)
        for group in self._groups(asked):
            group.source.visit(Nobody(), labels="measurement")

    def look_up(self, grads: Gradients, asked: Material) -> np.ndarray:
        """Q x N scores of gradients that are not of this model's own questions, under its layers' names.

        Args:
            grads: layer -> Q matrices; layers that are missing count as 0.
            asked: the questions, for the curvature's record.
        """
        inverse, sample = self._inverse(asked), next(iter(grads.values()))
        zeros = {
            name: Full(torch.zeros(len(sample), *size, dtype=sample.dtype, device=sample.device))
            for name, size in self.subject.layers.sizes.items()
        }
        query_QD, _ = self._flat({**zeros, **grads}, inverse)
        sink = AllScores.empty(len(query_QD), self.shelf.ids)
        total = len(query_QD) * int(self.shelf.manifest["n_train"])
        with counted(self.wish.watch, "search", total) as count:
            self.shelf.search(query_QD, sink, lambda rows: count(rows * len(query_QD)))
        return sink.values

    def _groups(self, asked: Material) -> Iterator[Material]:
        """A mixture is one question whatever it is made of. Ranks begin each group together."""
        for group in self._parts(asked):
            if self.ranks is not None:
                self.ranks.first(None)  # the first may have searched for long
            yield group

    def _parts(self, asked: Material) -> Iterator[Material]:
        most = max(1, HELD // (4 * COPIES * max(1, self.shelf.code.layout.total)))
        ids = asked.source.ids
        if self.subject.options.combine != "each" or len(ids) <= most:
            yield asked
            return
        for start in range(0, len(ids), most):
            some = set(ids[start : start + most])
            examples = tuple(example for example in asked.examples if example.id in some)
            yield replace(asked, examples=examples, source=asked.source.only(some))

    def _agreed_inverse(self, asked: Material) -> Blocks | None:
        """The inverse where the index is read; all ranks of one model hear if that fails."""
        return by_first(self.ranks, lambda: self._inverse(asked))

    def _inverse(self, asked: Material) -> Blocks:
        path = index_folder.verify(self.shelf.folder, self.shelf.manifest, FACTORS)
        tensors = index_shards.read_factors(path, self.shelf.manifest["places"])
        problem = Problem(asked.source, self.wish.options.fisher, self.wish.options.seed)
        return damped_inverse(self.wish, Factors(tensors, self.shelf.manifest["fit"]), problem)

    def _whitened(self, asked: Material, inverse: Blocks) -> tuple[torch.Tensor, np.ndarray]:
        """Q x D whitened gradients of the questions as posed, and their Q squared lengths."""
        whole = self.subject.options.model_copy(update={"query_rank": "none"})
        plain = Blocks({name: Identity(*size) for name, size in self.subject.layers.sizes.items()})
        return self._flat(pose(replace(self.subject, options=whole), asked, plain).grads, inverse)

    def _flat(self, raw: Gradients, inverse: Blocks) -> tuple[torch.Tensor, np.ndarray]:
        flat = {name: inverse.layers[name].whiten(raw[name]).full() for name in self.shelf.code.layout.sizes}
        query_QD = self.shelf.code.layout.flat(flat).cpu()
        return query_QD, query_QD.double().square().sum(1).numpy()

    def _searched(
        self, query_QD: torch.Tensor, norms_Q: np.ndarray, count: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Streaming where only the strongest are wanted and nothing must be divided."""
        ids, top_k, how = self.shelf.ids, self.wish.options.top_k, self.wish.options.normalise
        best = None if top_k is None else TopK({id_: n for n, id_ in enumerate(ids)}, top_k, len(query_QD))

        def progress(rows: int) -> None:
            count(rows * len(query_QD))

        search = self.shelf.search if self.cache is None else self.cache.search
        if best is not None and how == "none":
            search(query_QD, best, progress)
            return best.finish()
        sink = AllScores.empty(len(query_QD), ids)
        norms_N = search(query_QD, sink, progress)
        values = sink.values
        if how == "relative":
            values = relative_scores(values, norms_N)
        elif how == "cosine":
            values = cosine_scores(values, norms_N, norms_Q)
        if best is None:
            return values, None
        best.put(ids, values, None)
        return best.finish()


def shelf_of(place: Path, body: Mapping[str, Any], ids: tuple[str, ...]) -> index_shards.Shelf:
    """The coded rows of an index.

    Raises:
        StoreError: coded in a way that this version does not know.
    """
    layout = Layout({name: (int(size[0]), int(size[1])) for name, size in body["layout"].items()})
    return index_shards.Shelf(place, body, code_of(layout, body["code"]), ids)


def require_model(place: Path, body: Mapping[str, Any], subject: Subject) -> None:
    """Refuse a model that is not the indexed one.

    Raises:
        StoreError: names the fields that differ.
    """
    stored = {f: v for f, v in body["identity"].items() if f.startswith(OF_THE_MODEL)}
    index_folder.require_same(place, stored, atomic.plain(model_identity(subject)))
