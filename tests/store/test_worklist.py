"""Work as a list of files: in any order that their needs allow, by whomever, and nothing twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from whence.errors import StoreError
from whence.store.crew import Alone
from whence.store.index_folder import IndexFolder, damaged, open_plan
from whence.store.index_shards import read_factors
from whence.store.site import site_of
from whence.store.worklist import Task, complete


class Mates(Alone):  # type: ignore[misc]
    """Others are at work too: they hold some tasks, and finish them while this process waits."""

    def __init__(self, folder: IndexFolder, *held: str, name: str = "shard-0") -> None:
        super().__init__(name)
        self.folder, self.held = folder, list(held)
        self.log: list[str] = []

    def take(self, task: str) -> bool:
        self.log.append(f"take {task}")
        return task not in self.held

    def leave(self, task: str) -> None:
        self.log.append(f"leave {task}")

    def wait(self) -> None:
        name = self.held.pop(0)
        (self.folder.path / name).write_text("theirs")
        open_plan(self.folder.path, {"of": 1}, member="other").enter(name)
        self.log.append(f"wait {name}")


def making(folder: IndexFolder, name: str, made: list[str], **given: Any) -> Task:
    def make() -> dict[str, Any]:
        made.append(name)
        (folder.path / name).write_text(name)
        return {"says": name.upper()}

    return Task(name, make, **given)


def test_needs_decide_the_order_and_what_is_used_up_goes(tmp_path: Path) -> None:
    folder, made, told = open_plan(tmp_path, {"of": 1}), [], []
    tasks = [
        making(folder, "c", made, ready=lambda: folder.finished("b") is not None, uses=lambda: ["b"]),
        making(folder, "b", made, ready=lambda: folder.finished("a") is not None, rows=5,
               needless=lambda: folder.finished("c") is not None),
        making(folder, "a", made, rows=7),
    ]  # fmt: skip
    assert complete(tasks, folder, Alone(), told.append) == 3
    assert made == ["a", "b", "c"] and sorted(p.name for p in tmp_path.glob("?")) == ["a", "c"]
    assert folder.finished("c")["says"] == "C" and set(told) == {0}  # its own rows were counted as they were made
    again: list[str] = []
    told.clear()
    assert complete([making(folder, n, again, rows=3) for n in "ac"], folder, Alone(), told.append) == 0
    assert again == [] and told == [3, 3]


def test_what_others_make_is_waited_for_and_counted(tmp_path: Path) -> None:
    folder, made, told = open_plan(tmp_path, {"of": 1}), [], []
    mates = Mates(folder, "a")
    assert complete([making(folder, n, made, rows=4) for n in "ab"], folder, mates, told.append) == 1
    assert made == ["b"] and sorted(told) == [0, 4] and (tmp_path / "a").read_text() == "theirs"
    assert mates.log == ["take a", "take b", "leave b", "take a", "wait a"]


def test_what_somebody_finished_before_the_claim_is_not_made_again(tmp_path: Path) -> None:
    folder, made = open_plan(tmp_path, {"of": 1}), []
    mates = Mates(folder, "a")
    mates.take = lambda name: mates.wait() or True  # finished in the very moment  # type: ignore[method-assign]
    assert complete([making(folder, "a", made)], folder, mates) == 0
    assert made == [] and mates.log == ["wait a", "leave a"]


def test_what_became_needless_while_it_was_made_is_removed(tmp_path: Path) -> None:
    """Sums of a fit that somebody else has finished in the meantime."""
    folder, made = open_plan(tmp_path, {"of": 1}), []
    task = making(folder, "sum", made, needless=lambda: bool(made))
    assert complete([task], folder, Alone()) == 1 and made == ["sum"] and not (tmp_path / "sum").exists()
    assert complete([task], folder, Alone()) == 0 and made == ["sum"]


def test_a_task_that_fails_is_given_back(tmp_path: Path) -> None:
    folder = open_plan(tmp_path, {"of": 1})
    mates = Mates(folder)

    def fail() -> dict[str, Any]:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        complete([Task("a", fail)], folder, mates)
    assert mates.log == ["take a", "leave a"] and folder.finished("a") is None


def test_what_others_have_finished_with_is_no_failure(tmp_path: Path) -> None:
    """A task was taken over: when this process wakes up, what it is made from is gone, and so is the need."""
    folder = open_plan(tmp_path, {"of": 1})
    mates = Mates(folder)

    def overtaken() -> dict[str, Any]:
        mates.held.append("a")
        mates.wait()
        raise damaged(tmp_path / "input", "it is gone")

    assert complete([Task("a", overtaken)], folder, mates) == 0
    assert mates.log == ["take a", "wait a", "leave a"] and (tmp_path / "a").read_text() == "theirs"


def test_what_others_made_needless_meanwhile_is_removed_at_once(tmp_path: Path) -> None:
    """Not at the end: sums may be as large as the model."""
    folder, made = open_plan(tmp_path, {"of": 1}), []
    task = making(folder, "sum", made, needless=lambda: folder.finished("end") is not None)
    mates = Mates(folder, "end")

    def make() -> dict[str, Any]:
        mates.wait()
        return task.make()

    assert complete([replace(task, make=make)], folder, mates) == 1
    assert made == ["sum"] and not (tmp_path / "sum").exists()


def test_a_file_that_others_finished_stays_as_it_is(tmp_path: Path) -> None:
    """They took this process for dead, and built on theirs."""
    site = site_of(open_plan(tmp_path, {"of": 1}), Alone(), None)
    tensors = {"layer": {"a": torch.ones(2)}}
    theirs = site_of(open_plan(tmp_path, {"of": 1}, member="other"), Alone(), None)
    theirs.folder.enter("fit", **theirs.write("fit", {"layer": {"a": torch.zeros(2)}}))
    assert site.write("fit", tensors) == {"places": {"layer": {"a": "00000"}}}
    assert site.made_by_others("fit") is not None and site.made_by_others("other") is None
    kept = read_factors(site.folder.path / "fit", {"layer": {"a": "00000"}})
    assert kept["layer"]["a"].tolist() == [0.0, 0.0]


def test_what_is_not_there_is_told_as_gone(tmp_path: Path) -> None:
    site = site_of(open_plan(tmp_path, {"of": 1}), Alone(), None)
    with pytest.raises(StoreError, match="fit is damaged: it is gone"):
        site._places("fit", None)


@pytest.mark.parametrize("name", ["", "shard-0"], ids=["alone", "of several"])
def test_what_is_gone_and_still_needed_is_told(tmp_path: Path, name: str) -> None:
    folder = open_plan(tmp_path, {"of": 1})
    mates = Mates(folder, name=name)

    def lacking() -> dict[str, Any]:
        raise damaged(tmp_path / "input", "it is gone")

    with pytest.raises(StoreError, match="it is gone"):
        complete([Task("a", lacking)], folder, mates)
    assert mates.log == ["take a", "leave a"]


def test_what_did_not_fit_in_memory_is_remembered(tmp_path: Path) -> None:
    folder = open_plan(tmp_path, {"of": 1})
    folder.remember("split 3", {"batch": 3, "parts": [2, 1]})
    folder.remember("split 5", {"batch": 5, "parts": [1]})
    folder.remember("too_large x", {"row": "x"})
    site = site_of(open_plan(tmp_path, {"of": 1}), Alone(), None)
    assert site.splits.sizes == {3: [2, 1], 5: [1]} and site.splits.too_large == {"x"}
    site.splits.record("split 7", {"batch": 7, "parts": [4, 4]})
    assert site_of(open_plan(tmp_path, {"of": 1}), Alone(), None).splits.sizes[7] == [4, 4]
