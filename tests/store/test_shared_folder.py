"""A folder that the first of some ranks holds: what all know of it, and who hears of an error. A group of one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from whence.errors import RankError, StoreError
from whence.gradients.backoff import Splits
from whence.gradients.ranks import Ranks
from whence.gradients.source import LiveGradients
from whence.store.crew import Alone
from whence.store.index_folder import IndexFolder, open_plan
from whence.store.shared_folder import SharedFolder, shared
from whence.store.site import Site

IDENTITY = {"data": "these rows"}


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield Ranks(0, 1, torch.device("cpu"))
    dist.destroy_process_group()


def opened(place: Path) -> IndexFolder:
    return open_plan(place, IDENTITY, extra={"threads": 1})


def site_in(place: Path, ranks: Ranks) -> Site:
    source: Any = type("Source", (), {"ranks": ranks})()
    assert not isinstance(source, LiveGradients)  # all that is looked at here is who shares the model
    return Site(shared(lambda: opened(place), ranks, place, IDENTITY), Alone(), source, Splits())


def test_what_is_whole_is_known_when_it_is_opened_again(tmp_path: Path, ranks: Ranks) -> None:
    site = site_in(tmp_path, ranks)
    both = torch.arange(6.0).reshape(2, 3)
    tensors = {"one": {"A": both, "G": torch.ones(2)}, "two": {"A": both.clone()}}
    for name in ("whole", "broken", "lost", "dropped"):
        site.folder.enter(name, **site.write_known(name, tensors))
    site.folder.remember("split 3", {"batch": 3, "parts": [1, 1]})
    (tmp_path / "broken").write_bytes(b"x")
    (tmp_path / "lost").unlink()
    site.folder.drop("dropped")
    assert site.folder.finished("dropped") is None and not (tmp_path / "dropped").exists()
    assert site.folder.remembered("split") == []  # it ends the work of this process
    again = site_in(tmp_path, ranks)
    assert isinstance(again.folder, SharedFolder) and again.folder.mine and again.folder.plan["threads"] == 1
    assert set(again.folder.entries) == {"whole", "split 3"}
    assert again.folder.remembered("split")[0]["parts"] == [1, 1]
    read = again.known("whole")
    assert all(torch.equal(read[layer][name], t) for layer, named in tensors.items() for name, t in named.items())
    assert read["one"]["A"] is read["two"]["A"]  # equal ones are one tensor, as they are read from the file
    assert list(again.known("whole", ["two"])) == ["two"]


def test_sums_of_another_rank_are_written_by_the_first(
    tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_in(tmp_path, ranks)

    def handed(_self: Ranks, source: int, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        assert source == 1 and list(tensors) == ["A|mine"]
        yield "A|a.layer", torch.full((2,), 3.0)

    with monkeypatch.context() as patch:
        patch.setattr(Ranks, "handed", handed)
        site.folder.enter("sums", **site.write_known("sums", {"mine": {"A": torch.zeros(2)}}, owner=1))
    assert site.read("sums")["a.layer"]["A"].tolist() == [3, 3]


def test_another_model_or_a_folder_that_cannot_be_opened(tmp_path: Path, ranks: Ranks) -> None:
    with pytest.raises(StoreError, match=r"something else \(data: index 'these rows', now 'others'"):
        shared(lambda: opened(tmp_path), ranks, tmp_path, {"data": "others"})

    def failing() -> IndexFolder:
        raise StoreError("in use")

    with pytest.raises(StoreError, match="in use") as caught:
        shared(failing, ranks, tmp_path, IDENTITY)
    assert not caught.value.told  # this is the process that says it


def test_an_error_of_another_rank_is_raised_and_not_said(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "first", lambda _self, _value: {"error": ["StoreError", "in use", "", ""]})
    with pytest.raises(StoreError, match="in use") as caught:
        Ranks(1, 2, torch.device("cpu")).agreed(lambda: pytest.fail("only the first rank works"))
    assert caught.value.told


def test_a_rank_that_is_gone(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_args: Any, **_given: Any) -> None:
        raise RuntimeError("[/build/gloo/pair.cc:553] Connection closed by peer [10.0.0.1]:80")

    monkeypatch.setattr(dist, "all_gather", lost)
    with pytest.raises(RankError, match=r"is gone \(Connection closed by peer"):
        ranks.everyone(1)
