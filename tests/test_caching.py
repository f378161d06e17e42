"""The cache of an index: it changes no score, says what it loses, and is worth nothing when it is not of the index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import whence
from folders import animal_rows
from test_indexing import QUESTION, answer, build, live
from whence.caching import Cached, CacheWish, parse_cache
from whence.candidates import neighbours
from whence.errors import OptionError, StoreError
from whence.linalg.codes.base import Layout, encoded
from whence.linalg.codes.choose import choose
from whence.scores.sinks import AllScores, TopK
from whence.store import index_cache, index_folder, index_shards
from whence.store.index_damage import examine
from whence.store.run import file_record, seal
from whence.watch import Silent

pytest.importorskip("faiss")
LAYOUT, ROWS, SHARD = Layout({"block": (16, 32)}), 1500, 600


def drawn(count: int, seed: int) -> torch.Tensor:
    """Rows with a few common directions, as gradients have."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(20, LAYOUT.total, generator=torch.Generator().manual_seed(7))
    return torch.randn(count, 20, generator=generator) @ common + torch.randn(count, LAYOUT.total, generator=generator)


QUERIES = drawn(4, 99)


def shelf_of(folder: Path, scheme: str = "int8", budget: int = 1000) -> index_shards.Shelf:
    """An index of 1,500 rows in three shards; two rows have no score."""
    code, names = choose(LAYOUT, budget, scheme), []
    for number, start in enumerate(range(0, ROWS, SHARD)):
        x = drawn(min(SHARD, ROWS - start), number)
        record = encoded(code, x)
        record["row"] = torch.arange(start, start + len(x), dtype=torch.int32).flip(0)
        record["norm"], record["loss"] = x.square().sum(1), torch.ones(len(x))
        record["norm"][3 if number else slice(0)] = torch.nan
        names.append(index_folder.shard_name(number))
        index_shards.write_tensors(folder / names[-1], record)
    facts = {"shards": len(names), "code": dict(code.about), "n_train": ROWS}
    index_folder.open_plan(folder, {"rows": ROWS, "scheme": scheme}).close(names, facts)
    return index_shards.Shelf(folder, index_folder.read_manifest(folder), code, tuple(f"r{n}" for n in range(ROWS)))


def searched(cached: Cached, queries: torch.Tensor = QUERIES) -> np.ndarray:
    sink = AllScores.empty(len(queries), cached.shelf.ids)
    cached.search(queries, sink, lambda rows: None)
    return sink.values


def exact(shelf: index_shards.Shelf, queries: torch.Tensor = QUERIES) -> np.ndarray:
    sink = AllScores.empty(len(queries), shelf.ids)
    shelf.search(queries, sink)
    return sink.values


def cached_of(shelf: index_shards.Shelf, keep: float | None = None, **given: Any) -> Cached:
    return Cached(shelf, CacheWish(keep, **given), Silent())


def folder_of(shelf: index_shards.Shelf) -> Path:
    return next((shelf.folder / index_cache.CACHE).iterdir())


@pytest.mark.parametrize(("scheme", "budget"), [("int8", 1000), ("sparse", 400), ("fp16", 2000)])
def test_scores_are_those_without_it(tmp_path: Path, scheme: str, budget: int) -> None:
    shelf = shelf_of(tmp_path / "i", scheme, budget)
    truth = exact(shelf)
    np.testing.assert_array_equal(searched(cached_of(shelf)), truth)  # when it is made, all rows are scored
    later = cached_of(shelf, 0.05, audit=0)
    found = searched(later)
    there = np.isfinite(found)
    assert (there == there[0]).all() and 0.05 * ROWS < there[0].sum() <= 0.4 * ROWS
    np.testing.assert_allclose(found[there], truth[there], rtol=1e-6, atol=1e-6 * np.nanmax(np.abs(truth)))
    assert later.unscored() == {shelf.ids[n] for n in np.flatnonzero(~there[0] & np.isfinite(truth[0]))}
    best = [
        set(np.argsort(-row)[:10]) & set(np.flatnonzero(np.isfinite(new)))
        for row, new in zip(np.nan_to_num(truth, nan=-np.inf), found, strict=True)
    ]
    assert np.mean([len(b) for b in best]) >= 9


def test_what_is_lost_is_measured(tmp_path: Path) -> None:
    """Told when it is made, and by a sample later; with every row in the sample that is the truth."""
    shelf = shelf_of(tmp_path / "i")
    truth = np.nan_to_num(exact(shelf), nan=0.0)
    first = cached_of(shelf)
    searched(first)
    told = first.about["recall_by_share"]
    assert list(told) == ["1%", "2%", "5%", "10%", "20%"] and sorted(told.values()) == list(told.values())
    assert first.about["questions"] == 4 and first.about["share"] in (0.01, 0.02, 0.05, 0.1, 0.2)
    few = cached_of(shelf, 3, audit="all")
    np.testing.assert_array_equal(searched(few), exact(shelf))
    bare = cached_of(shelf, 3, audit=0)
    kept = np.isfinite(searched(bare)[0])
    for side, sign in (("proponents", 1), ("opponents", -1)):
        share = np.mean([kept[np.argsort(-sign * row, kind="stable")[:10]].mean() for row in truth])
        assert few.about[side] == [round(share, 4)] * 3
        assert share < 0.9
    assert "no others were, to see what was lost" in bare.about["told"] and "proponents" not in bare.about
    assert (
        f"when the cache was made, 1% of the rows held {told['1%']:.2f} of the exact top 10 (4 questions)"
        in bare.about["told"]
    )
    sampled = cached_of(shelf, 3, audit=300)
    searched(sampled)
    assert sampled.about["audited"] == 300 and "95 % interval" in sampled.about["told"]
    assert sampled.about["proponents"][1] <= few.about["proponents"][0] <= sampled.about["proponents"][2]


def test_lengths_count_when_they_are_divided_by(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path / "i")
    searched(cached_of(shelf))
    plain = folder_of(shelf)
    searched(cached_of(shelf, unit=True))
    assert len(list(plain.parent.iterdir())) == 2  # each way of asking has its own
    found, norms = cached_of(shelf, 5, audit=0, unit=True), np.full(ROWS, np.nan)
    there = np.isfinite(searched(found)[0])
    for block in shelf.blocks():
        norms[block["row"].numpy()] = block["norm"].numpy()
    ranked = np.nan_to_num(exact(shelf) / np.sqrt(norms), nan=0.0)
    assert np.mean([there[np.argsort(-row)[:3]].mean() for row in ranked]) > 0.8


def test_where_most_rows_are_candidates_all_are_scored(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path / "i")
    searched(cached_of(shelf))
    many = cached_of(shelf, 0.4)
    np.testing.assert_array_equal(searched(many), exact(shelf))
    assert "all were scored" in many.about["told"] and not many.unscored()


def test_streaming_keeps_the_strongest(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path / "i")
    searched(cached_of(shelf))
    cached = cached_of(shelf, 0.1, audit=0)
    best = TopK({id_: n for n, id_ in enumerate(shelf.ids)}, 3, 4)
    cached.search(QUERIES, best, lambda rows: None)
    whole = np.nan_to_num(searched(cached_of(shelf, 0.1, audit=0)), nan=-np.inf)
    assert best.finish()[1][:, :3].tolist() == np.argsort(-whole, axis=1)[:, :3].tolist()


@pytest.mark.parametrize("what", ["delete", "flip", "seal", "other index", "arrays", "numbers", "words"])
def test_a_cache_that_is_not_of_the_index_is_made_again(tmp_path: Path, what: str) -> None:
    shelf = shelf_of(tmp_path / "i")
    searched(cached_of(shelf))
    folder = folder_of(shelf)
    codes, told = folder / index_cache.CODES, folder / index_cache.TOLD
    whole = codes.read_bytes()
    if what == "delete":
        codes.unlink()
    elif what == "flip":
        codes.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    elif what == "seal":
        told.write_text(told.read_text().replace('"share"', '"shame"'))
    elif what == "other index":
        for name in (index_folder.PLAN, index_folder.MANIFEST):
            (shelf.folder / name).unlink()
        shelf = shelf_of(tmp_path / "i", "fp16", 2000)
    else:  # somebody who can write checksums
        tensors = load_file(codes)
        if what == "arrays":
            tensors["codes_NC"] = tensors["codes_NC"][:, :-1].contiguous()
        elif what == "numbers":
            tensors["shard_N"][0] = 77
        save_file(tensors, codes)
        body = json.loads(told.read_text()) | {"codes": file_record(codes)}
        body.pop("seal")
        if what == "words":
            body["about"]["share"] = "all of them"
        told.write_text(index_cache.atomic.json_text({**body, "seal": seal(body)}))
    again = cached_of(shelf, 0.05)
    np.testing.assert_array_equal(searched(again), exact(shelf))
    assert again.about["made"] and len(list((shelf.folder / index_cache.CACHE).iterdir())) == 1
    if what != "other index":
        assert codes.read_bytes() == whole


def test_a_changed_row_is_found_before_it_is_used(tmp_path: Path) -> None:
    """The shard is not read whole, so its rows have checksums of their own."""
    shelf = shelf_of(tmp_path / "i")
    searched(cached_of(shelf))
    path = shelf.folder / "shard-00001.safetensors"
    raw = bytearray(path.read_bytes())
    tensors = load_file(path)
    spot = raw.find(tensors["level"].numpy().tobytes())
    for n in range(SHARD):
        raw[spot + n * LAYOUT.total] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(StoreError, match=r"shard-00001.safetensors is damaged: a row of it is not what it was"):
        searched(cached_of(shelf, 0.02, audit=0))


def test_links_are_refused(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path / "i")
    (tmp_path / "elsewhere").mkdir()
    (shelf.folder / index_cache.CACHE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link"):
        searched(cached_of(shelf))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_questions_to_an_index(tmp_path: Path) -> None:
    rows = [
        {"id": f"{n}-{r['id']}" if "id" in r else f"{n}", "text": f"{r['text']} a dog ran"[: 30 + n]}
        for n, r in enumerate(animal_rows() * 6)
    ]
    build(tmp_path / "i", train=rows, fit_rows="all")
    truth = answer(tmp_path / "i")
    made = answer(tmp_path / "i", cache="faiss")
    np.testing.assert_array_equal(made.values, truth.values)
    assert made.about["index"]["cache"]["made"]
    found = answer(tmp_path / "i", cache="faiss:6", audit=0, top_k=2)
    assert found.about["index"]["cache"]["a_side"] == 6 and any("candidates" in w for w in found.about["warnings"])
    assert [found.proponents(q, 1)[0].train_id for q in range(2)] == [
        truth.proponents(q, 1)[0].train_id for q in range(2)
    ]
    assert (
        sum(v.status == "not a candidate" for v in found.train_rows.values())
        == len(rows) - found.about["index"]["cache"]["candidates"]
    )
    whence.ask(tmp_path / "i", QUESTION, model=live(), cache="faiss:6", normalise="cosine", out=tmp_path / "run")
    assert not examine(tmp_path / "i").damaged and not examine(tmp_path / "i").extra
    before = truth.values
    build(tmp_path / "i", train=rows, fit_rows="all")  # again: the index is as it was, and no worse for a cache
    np.testing.assert_array_equal(answer(tmp_path / "i").values, before)


@pytest.mark.parametrize("text", ["annoy", "faiss:", "faiss:0", "faiss:0%", "faiss:120%", "faiss:x", "faiss:-3"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="cache"):
        parse_cache(text)


def test_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [parse_cache(t) for t in ("faiss", "faiss:5%", "faiss:2000")] == [None, 0.05, 2000]
    monkeypatch.setattr(neighbours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="without faiss") as raised:
        parse_cache("faiss")
    assert "pip install" in str(raised.value)


def test_not_with_a_tuned_model(tmp_path: Path) -> None:
    build(tmp_path / "i")
    with pytest.raises(OptionError, match="cache with tuned"):
        answer(tmp_path / "i", cache="faiss", tuned={"model": live(), "data": animal_rows()})
