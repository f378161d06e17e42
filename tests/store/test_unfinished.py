"""Work kept of a run that is not finished: whole and of the very same, or as if it had never been."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from whence.store import unfinished
from whence.store.unfinished import FOLDER, Part, open_part

OF = {"data": "xxh3:1", "seed": 0, "layers": {"a": [2, 3]}}


def kept(run: Path, **of: Any) -> Part:
    part = open_part(run, "fit", {**OF, **of})
    part.keep("stages", {"A|a": torch.arange(6.0).reshape(2, 3)}, {"notes": ["one"]})
    return part


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    """Values, types, the way it lies in memory, and what was one object."""
    wide = torch.randn(3, 4, 5, dtype=torch.float64).permute(2, 0, 1)
    tensors = {"x": wide, "y": torch.arange(3), "z": wide, "part": torch.arange(10.0)[2:6], "none": torch.empty(0, 2)}
    open_part(tmp_path, "fit", OF).keep("stages", tensors, {"rows": 3})
    found = open_part(tmp_path, "fit", OF).find("stages")
    assert found is not None and found[1] == {"rows": 3}
    for name, tensor in tensors.items():
        assert torch.equal(found[0][name], tensor) and found[0][name].dtype == tensor.dtype
    assert found[0]["x"].stride() == wide.stride() and found[0]["x"] is found[0]["z"]


def test_nothing_is_written_before_there_is_something(tmp_path: Path) -> None:
    part = open_part(tmp_path, "fit", OF)
    assert part.find("stages") is None and not (tmp_path / FOLDER).exists()


def test_of_something_else_is_thrown_away_and_said(tmp_path: Path) -> None:
    kept(tmp_path)
    open_part(tmp_path, "score", OF).keep("00000", {"x": torch.ones(1)}, {})
    part = open_part(tmp_path, "fit", {**OF, "seed": 1, "more": None, "method": "kfac"})
    assert part.differs == ("method", "seed") and part.find("stages") is None
    assert sorted(p.name for p in (tmp_path / FOLDER).iterdir()) == [
        "score.00000.json", "score.00000.safetensors", "score.json"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["fit.json", "fit.stages.json", "fit.stages.safetensors"])
def test_every_damage_is_as_if_nothing_were_there(tmp_path: Path, name: str) -> None:
    kept(tmp_path)
    path = tmp_path / FOLDER / name
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert _read(tmp_path) is None
        kept(tmp_path)
    path.write_bytes(whole[:-1])
    assert _read(tmp_path) is None


def _read(run: Path) -> object:
    return open_part(run, "fit", OF).find("stages")


def test_a_piece_of_another_plan_does_not_count(tmp_path: Path) -> None:
    """Also when the plan beside it says that it does."""
    kept(tmp_path / "other", seed=7)
    kept(tmp_path)
    for name in ("fit.stages.json", "fit.stages.safetensors"):
        (tmp_path / FOLDER / name).write_bytes((tmp_path / "other" / FOLDER / name).read_bytes())
    assert _read(tmp_path) is None


def test_forgotten_but_for_what_is_not_ours(tmp_path: Path) -> None:
    kept(tmp_path)
    note = tmp_path / FOLDER / "note.txt"
    note.write_text("mine")
    unfinished.forget(tmp_path)
    assert [p.name for p in (tmp_path / FOLDER).iterdir()] == ["note.txt"]
    note.unlink()
    kept(tmp_path)
    unfinished.forget(tmp_path)
    assert not (tmp_path / FOLDER).exists()
    unfinished.forget(tmp_path)


def test_what_a_dead_process_left_half_written_is_removed(tmp_path: Path) -> None:
    kept(tmp_path)
    (tmp_path / FOLDER / f".fit.1.safetensors.x{unfinished.atomic.PART}").write_text("half")
    (tmp_path / FOLDER / "fit.odd").mkdir()  # a folder is not ours
    part = open_part(tmp_path, "fit", {**OF, "seed": 1})
    assert part.differs == ("seed",) and [p.name for p in (tmp_path / FOLDER).iterdir()] == ["fit.odd"]


def test_a_part_of_another_format_is_begun_anew(tmp_path: Path) -> None:
    kept(tmp_path)
    path = tmp_path / FOLDER / "fit.json"
    unfinished.atomic.write_json(
        path, unfinished.sealed({**unfinished.read_sealed(path), "format": "whence unfinished 0"})
    )
    part = open_part(tmp_path, "fit", OF)
    assert not part.begun and part.differs == () and list((tmp_path / FOLDER).iterdir()) == []


def test_pieces_are_dropped_one_by_one_and_the_beginning_is_remembered(tmp_path: Path) -> None:
    part = kept(tmp_path)
    part.keep("more", {"x": torch.ones(2)}, {})
    again = open_part(tmp_path, "fit", OF)
    assert again.begun and again.since == part.since
    again.drop("stages")
    again.drop("stages")  # gone already
    assert again.find("stages") is None and again.find("more") is not None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "fit.json").write_text(json.dumps({}))
    (tmp_path / FOLDER).symlink_to(other)
    unfinished.forget(tmp_path)
    assert (other / "fit.json").is_file()
