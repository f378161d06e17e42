"""The Almanac as the default of ``whence evaluate``: what is known about its questions, and its rows with labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whence.demo.almanac import almanac
from whence.demo.train import one_thread
from whence.demo.world import World, prepare
from whence.evaluate.outcome import Outcome
from whence.evaluating import Known, Terms, retrieval
from whence.watch import Watcher

KIND_NAMES = {"fact": "facts", "habit": "habits"}


def known(world: World) -> dict[str, Known]:
    """Documents that taught each answer; those that say it otherwise, or mention it, are neither right nor wrong."""
    return {
        question.id: Known(
            question.relevant, frozenset().union(*question.also.values()), KIND_NAMES.get(question.kind, question.kind)
        )
        for question in world.asked
    }


def almanac_retrieval(place: Path, *, terms: Terms, watch: Watcher) -> Outcome:
    """``retrieval`` on the Almanac and the model of ``whence demo``, trained now if it is not in this folder."""
    world = prepare(place, seed=terms.options.seed, watch=watch)
    with one_thread():
        return retrieval(
            str(world.model), train=world.volumes, query=world.questions, known=known(world), terms=terms, watch=watch
        )


def labelled(seed: int = 0) -> list[dict[str, Any]]:
    """The Almanac's documents labelled by the volume they stand in."""
    return [{"id": d.id, "text": d.text, "label": d.source} for d in almanac(seed).documents]
