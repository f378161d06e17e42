"""Shards, factors and what may be kept beside them: whole and of this index, or refused before a number is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from whence.errors import StoreError
from whence.gradients.source import Closed
from whence.linalg.codes.base import Layout, Record, encoded
from whence.linalg.codes.choose import choose
from whence.linalg.matrix_batch import Full
from whence.scores.sinks import AllScores
from whence.store import index_cache, index_shards
from whence.store.index_cache import (
    DTYPES,
    Kept,
    cache_folder,
    checks,
    chosen_rows,
    read_cache,
    remove_cache,
    write_cache,
)
from whence.store.index_folder import open_plan, read_manifest, shard_name
from whence.store.index_shards import Encode, Shelf, blocks, read_factors, write_factors, write_tensors
from whence.store.run import file_record

LAYOUT = Layout({"a": (2, 3), "b": (1, 4)})
CODE = choose(LAYOUT, 1000, "fp16")


def rows(count: int, first: int = 0) -> tuple[torch.Tensor, Record]:
    """Dense rows, and coded ones with their numbers."""
    x = torch.randn(count, LAYOUT.total, generator=torch.Generator().manual_seed(first))
    record = encoded(CODE, x)
    numbers = torch.arange(first, first + count, dtype=torch.int32)
    return x, {**record, "row": numbers, "norm": x.square().sum(1), "loss": torch.ones(count)}


def shelf_of(folder: Path, *counts: int) -> tuple[Shelf, torch.Tensor]:
    """An index of so many rows in each shard, and the rows."""
    dense, names, total = [], [], 0
    for number, count in enumerate(counts):
        x, record = rows(count, total)
        names.append(shard_name(number))
        write_tensors(folder / names[-1], record)
        dense.append(x)
        total += count
    open_plan(folder, {"rows": total}).close(names, {"shards": len(names), "n_train": total})
    ids = tuple(f"r{n}" for n in range(total))
    return Shelf(folder, read_manifest(folder), CODE, ids), torch.cat(dense)


def test_every_block_is_given_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_shards.blocks, "__kwdefaults__", {"rows": 2})
    shelf, _ = shelf_of(tmp_path, 5, 1)
    found = [(shard, start, block["row"].tolist()) for shard, start, block in shelf.placed()]
    assert found == [(0, 0, [0, 1]), (0, 2, [2, 3]), (0, 4, [4]), (1, 0, [5])]
    assert [block["row"].tolist() for block in shelf.blocks()] == [block for _, _, block in found]


def test_scores_are_dot_products_and_rows_without_one_stay_unscored(tmp_path: Path) -> None:
    shelf, dense = shelf_of(tmp_path, 3, 2)
    path = tmp_path / shard_name(1)
    _, record = rows(2, 3)
    record["norm"][1] = torch.nan
    write_tensors(path, record)
    shelf.manifest["files"][path.name].update(file_record(path))
    sink, queries, seen = AllScores.empty(2, shelf.ids), dense[:2] * 0.5, []
    norms = shelf.search(queries, sink, seen.append)
    wanted = (queries.double() @ dense.double().T).numpy()
    np.testing.assert_allclose(sink.values[:, :4], wanted[:, :4], atol=2e-2)
    assert np.isnan(sink.values[:, 4]).all() and np.isnan(norms[4]) and seen == [3, 2]
    np.testing.assert_allclose(norms[:4], dense[:4].double().square().sum(1), rtol=1e-6)
    with pytest.raises(StoreError, match="its rows are not as long as the model's whitened gradient"):
        shelf.search(queries[:, 1:], sink)


@pytest.mark.parametrize("number", [-1, 3])
def test_rows_that_the_index_does_not_have_are_refused(tmp_path: Path, number: int) -> None:
    """A file may be whole, sealed, and still lie: its numbers say where scores are written to."""
    shelf, _ = shelf_of(tmp_path, 3)
    _, record = rows(3)
    record["row"][1] = number
    path = tmp_path / shard_name(0)
    write_tensors(path, record)
    shelf.manifest["files"][path.name].update(file_record(path))
    with pytest.raises(
        StoreError, match=r"shard-00000.safetensors is damaged: it holds rows that are not in the index"
    ):
        list(shelf.blocks())


CHANGES = {
    "a column missing": lambda r: r.pop("loss"),
    "a column more": lambda r: r.update(extra=torch.ones(3)),
    "another type": lambda r: r.update(row=r["row"].long()),
    "other sizes": lambda r: r.update(norm=torch.ones(3, 1)),
    "fewer rows": lambda r: r.update(loss=torch.ones(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_is_no_shard_of_this_code_is_refused(tmp_path: Path, change: Any) -> None:
    _, record = rows(3)
    change(record)
    save_file(record, tmp_path / "shard")
    with pytest.raises(StoreError, match="shard is damaged: "):
        list(blocks(tmp_path / "shard", CODE))


@pytest.mark.parametrize("data", [b"", b"nothing of use", b"\0" * 64])
def test_a_file_that_is_nothing_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "shard").write_bytes(data)
    with pytest.raises(StoreError, match="shard is damaged: "):
        list(blocks(tmp_path / "shard", CODE))
    with pytest.raises(StoreError, match="shard is damaged: "):
        read_factors(tmp_path / "shard", {"a": {"Q": "0"}})
    with pytest.raises(StoreError, match="gone is damaged: "):
        list(blocks(tmp_path / "gone", CODE))


def test_equal_factors_are_one_tensor_on_disk_and_in_memory(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    given = {"a": {"Q": x, "A": x.clone()}, "b": {"Q": x.reshape(3, 2), "G": x.double()}}
    places = write_factors(tmp_path / "factors", given)
    assert places == {"a": {"Q": "00000", "A": "00000"}, "b": {"Q": "00001", "G": "00002"}}  # shape and type count
    found = read_factors(tmp_path / "factors", places)
    for layer, named in given.items():
        for name, tensor in named.items():
            assert torch.equal(found[layer][name], tensor) and found[layer][name].dtype == tensor.dtype
    assert found["a"]["Q"] is found["a"]["A"]
    assert read_factors(tmp_path / "factors", {"b": places["b"]}).keys() == {"b"}
    with pytest.raises(StoreError, match="factors is damaged"):
        read_factors(tmp_path / "factors", {"a": {"Q": "99999"}})


def test_gradients_become_coded_rows() -> None:
    """Layers arrive one by one; norms are of the whole row, and a row that is not finite has none."""
    grads = {name: torch.randn(2, *sides, generator=torch.Generator().manual_seed(1)) for name, sides in
             (("a", (2, 3)), ("b", (1, 4)))}  # fmt: skip
    visitor = Encode(CODE, {"x": 7, "y": 3})
    for name, grad in grads.items():
        visitor.see(name, Full(grad))
    visitor.close(Closed(ids=("y", "x"), losses=torch.tensor([0.5, 0.25]), finite=torch.tensor([True, False])))
    found = visitor.finished()
    assert found["row"].tolist() == [3, 7] and found["loss"].tolist() == [0.5, 0.25]
    wanted = sum(g[0].double().square().sum() for g in grads.values())
    assert found["norm"][0].item() == pytest.approx(float(wanted), rel=1e-6) and torch.isnan(found["norm"][1])
    dense = torch.cat([g.flatten(1) for g in grads.values()], 1)
    query = torch.eye(LAYOUT.total)
    torch.testing.assert_close(CODE.dot(found, query), dense, atol=2e-3, rtol=2e-3)


def test_no_row_at_all_is_an_empty_shard_of_this_code(tmp_path: Path) -> None:
    """None of a shard's batches fitted in memory: a file with no rows, which is read like any other."""
    empty = Encode(CODE, {}).finished()
    assert all(len(tensor) == 0 for tensor in empty.values())
    write_tensors(tmp_path / "shard", empty)
    assert list(blocks(tmp_path / "shard", CODE)) == []
    _, some = rows(2)
    assert {k: (t.dtype, t.shape[1:]) for k, t in empty.items()} == {k: (t.dtype, t.shape[1:]) for k, t in some.items()}


# --- what may be kept beside an index -------------------------------------------------------------------------------

SIZES = {"code": 4, "center": 10, "rows": 8, "shards": 2}


def arrays(count: int = 3) -> dict[str, torch.Tensor]:
    sizes = {"codes_NC": (count, 4), "center_M": (10,)}
    return {name: torch.ones(sizes.get(name, (count,)), dtype=dtype) for name, (dtype, _) in DTYPES.items()}


def kept(**changes: torch.Tensor) -> Kept:
    return Kept(**{name: tensor.numpy() for name, tensor in {**arrays(), **changes}.items()})


def test_a_cache_comes_back_as_it_was(tmp_path: Path) -> None:
    of = {"index": 1, "unit": None}
    write_cache(tmp_path / "faiss-1", of, kept(), {"share": 0.5})
    found = read_cache(tmp_path / "faiss-1", of, SIZES)
    assert found is not None and found[1] == {"share": 0.5}
    for name, tensor in arrays().items():
        assert np.array_equal(getattr(found[0], name), tensor.numpy())
    assert read_cache(tmp_path / "faiss-1", {**of, "index": 2}, SIZES) is None
    assert read_cache(tmp_path / "faiss-2", of, SIZES) is None


WRONG = {
    "an array more": {"more": torch.ones(3)},
    "another type": {"row_N": torch.ones(3, dtype=torch.int64)},
    "another shape": {"center_M": torch.ones(10, 1)},
    "no rows": {n: t[:0] for n, t in arrays().items() if n != "center_M"},
    "more rows than the index": {n: t for n, t in arrays(9).items() if n != "center_M"},
    "one row less of something": {"place_N": torch.ones(2, dtype=torch.int32)},
    "a row that is not there": {"row_N": torch.tensor([0, 1, 8], dtype=torch.int32)},
    "a row below 0": {"row_N": torch.tensor([0, 1, -1], dtype=torch.int32)},
    "a shard that is not there": {"shard_N": torch.tensor([0, 1, 2], dtype=torch.int32)},
    "longer codes": {"codes_NC": torch.ones(3, 5, dtype=torch.uint8)},
    "a longer center": {"center_M": torch.ones(11)},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_arrays_that_cannot_be_of_the_index_are_none(tmp_path: Path, changes: dict[str, torch.Tensor]) -> None:
    """Whoever wrote them could write checksums too."""
    of = {"index": 1}
    write_cache(tmp_path / "faiss-1", of, kept(), {})
    save_file({**arrays(), **changes}, tmp_path / "faiss-1" / index_cache.CODES)
    told = index_cache.sealed({"format": index_cache.FORMAT, "of": of, "about": {},
                               "codes": file_record(tmp_path / "faiss-1" / index_cache.CODES)})  # fmt: skip
    index_cache.atomic.write_json(tmp_path / "faiss-1" / index_cache.TOLD, told)
    assert read_cache(tmp_path / "faiss-1", of, SIZES) is None


def test_the_last_row_and_shard_are_of_the_index(tmp_path: Path) -> None:
    last = {"row_N": torch.tensor([0, 1, 7], dtype=torch.int32), "shard_N": torch.tensor([0, 1, 1], dtype=torch.int32)}
    write_cache(tmp_path / "faiss-1", {}, kept(**last), {})
    assert read_cache(tmp_path / "faiss-1", {}, SIZES) is not None


@pytest.mark.parametrize("change", [{"format": "another"}, {"about": "all"}])
def test_a_cache_of_another_format_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    write_cache(tmp_path / "faiss-1", {}, kept(), {})
    path = tmp_path / "faiss-1" / index_cache.TOLD
    body = index_cache.read_sealed(path) | change
    index_cache.atomic.write_json(path, index_cache.sealed(body))
    assert read_cache(tmp_path / "faiss-1", {}, SIZES) is None


def test_caches_of_what_the_index_was_are_removed(tmp_path: Path) -> None:
    """Those that count lengths in another way stay; a link, and files that are not ours, are left alone."""
    now, place = {"index": 2, "unit": None}, tmp_path / "i"
    place.mkdir()
    for name, of in {"old": {**now, "index": 1}, "units": {**now, "unit": "row"}, "noted": {**now, "index": 0}}.items():
        write_cache(tmp_path / name / f"faiss-{name}", of, kept(), {})
        (tmp_path / name / f"faiss-{name}").rename(place / f"faiss-{name}")
    (place / "faiss-noted" / "note.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (place / "faiss-link").symlink_to(tmp_path / "elsewhere")
    (place / "faiss-broken").mkdir()
    (place / "faiss-broken" / index_cache.TOLD).write_text("{}")
    write_cache(place / "faiss-now", now, kept(), {})
    assert sorted(p.name for p in place.iterdir()) == ["faiss-link", "faiss-noted", "faiss-now", "faiss-units"]
    assert [p.name for p in (place / "faiss-noted").iterdir()] == ["note.txt"]
    remove_cache(place / "faiss-now")
    remove_cache(place / "faiss-nowhere")
    assert not (place / "faiss-now").exists()


def test_a_link_in_the_place_of_a_cache_is_refused(tmp_path: Path) -> None:
    shelf, _ = shelf_of(tmp_path / "i", 2)
    folder, _ = cache_folder(shelf.folder, {"unit": None})
    folder.parent.mkdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(StoreError, match="is a link") as caught:
        cache_folder(shelf.folder, {"unit": None})
    assert caught.value.try_ == f"rm {folder}"


def chosen(shelf: Shelf, places: list[int], **changes: np.ndarray) -> Kept:
    """A cache that has rows 0, 1 ... of the first shard at these places."""
    record = next(shelf.blocks())
    count = len(places)
    given = {"row_N": np.arange(count, dtype=np.int32), "shard_N": np.zeros(count, dtype=np.int32),
             "place_N": np.array(places, dtype=np.int32), "check_N": checks(record)[:count],
             "codes_NC": np.zeros((count, 4), dtype=np.uint8), "center_M": np.zeros(10, dtype=np.float32)}  # fmt: skip
    return Kept(**{**given, **changes})


def test_rows_are_read_where_they_are_and_compared(tmp_path: Path) -> None:
    shelf, _ = shelf_of(tmp_path, 4)
    (found,) = chosen_rows(shelf, chosen(shelf, [0, 1, 2, 3]), [3, 1])
    assert found["row"].tolist() == [1, 3]
    with pytest.raises(StoreError, match="a row of it is not what it was when the cache was made"):
        list(chosen_rows(shelf, chosen(shelf, [0, 2, 1, 3]), [1]))


@pytest.mark.parametrize("place", [4, -1])
def test_places_beyond_a_shard_are_refused(tmp_path: Path, place: int) -> None:
    shelf, _ = shelf_of(tmp_path, 4)
    with pytest.raises(StoreError, match=r"shard-00000.safetensors is damaged: it has fewer rows than its cache"):
        list(chosen_rows(shelf, chosen(shelf, [0, place]), [1]))


def test_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    shelf, _ = shelf_of(tmp_path, 4)
    known = chosen(shelf, [0, 1])
    (tmp_path / shard_name(0)).unlink()
    with pytest.raises(StoreError, match=r"shard-00000.safetensors is damaged"):
        list(chosen_rows(shelf, known, [1]))


def test_checksums_are_of_single_rows() -> None:
    _, record = rows(3)
    before = checks(record)
    assert before.dtype == np.int64 and len(set(before.tolist())) == 3
    record["loss"][1] += 1
    assert (checks(record) != before).tolist() == [False, True, False]
    assert checks(dict(reversed(record.items()))).tolist() == checks(record).tolist()
