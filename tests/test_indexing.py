"""Index and ask: the scores of ``attribute`` from disk, and nothing lost, mixed up or believed when damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whence
from folders import animal_rows, edit_weights, model_folder, tiny_llama, word_tokenizer, write_rows
from whence import building
from whence.errors import OptionError, StoreError
from whence.repairing import repair_index
from whence.store import index_folder
from whence.store.index_damage import examine
from whence.store.site import Site

QUESTION = [{"prompt": "the cat sat on", "completion": " the mat ."}, {"prompt": "the dog", "completion": " ran on ."}]
SMALL = {"budget": 0.3, "shard_bytes": 1000}  # KB: sparse, several shards
WHOLE = {"budget": 100}


def live() -> tuple[Any, Any]:
    return tiny_llama().double(), word_tokenizer()


def build(out: Path, **given: Any) -> dict[str, Any]:
    settings = {"train": animal_rows(), "compression": WHOLE, "batch_tokens": 32, **given}
    return whence.build_index(settings.pop("model", None) or live(), out=out, **settings)


def answer(index: Path, **given: Any) -> whence.Scores:
    return whence.ask(index, QUESTION, model=given.pop("model", None) or live(), **given)


def exact(**given: Any) -> whence.Scores:
    settings = {"train": animal_rows(), "query": QUESTION, "tokens": 0, "batch_tokens": 32, "fit_rows": "all", **given}
    return whence.attribute(live(), **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the history, which says how long things took."""
    told = {index_folder.HISTORY, ".whence.lock"}
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in told}


@pytest.mark.parametrize("method", ["ekfac", "ekfac:blocks=2", "kfac", "diagonal", "identity", "logra:size=3"])
def test_scores_of_all_numbers_are_those_of_attribute(tmp_path: Path, method: str) -> None:
    assert build(tmp_path / "i", method=method, fit_rows="all")["code"] == {"scheme": "fp16"}
    found, truth = answer(tmp_path / "i"), exact(method=method)
    assert found.train_ids == truth.train_ids and found.query_ids == truth.query_ids
    np.testing.assert_allclose(found.values, truth.values, atol=2e-3 * np.abs(truth.values).max())
    np.testing.assert_array_equal(found.lexical, truth.lexical)
    assert found.n_train == truth.n_train and found.train_rows == truth.train_rows


@pytest.mark.parametrize("how", ["cosine", "relative"])
def test_normalised_scores(tmp_path: Path, how: str) -> None:
    build(tmp_path / "i", fit_rows="all")
    truth = exact(normalise=how).values
    np.testing.assert_allclose(answer(tmp_path / "i", normalise=how).values, truth, atol=2e-3 * np.abs(truth).max())


@pytest.mark.parametrize("how", ["none", "cosine"])
def test_top_k_is_that_of_all_scores(tmp_path: Path, how: str) -> None:
    body = build(tmp_path / "i", compression=SMALL)
    assert body["code"]["scheme"] == "sparse" and body["shards"] > 2 and body["bytes_per_row"] <= 312
    every, best = answer(tmp_path / "i", normalise=how), answer(tmp_path / "i", normalise=how, top_k=3)
    for q in range(2):
        for side in ("proponents", "opponents"):
            shown = [[r.train_id for r in getattr(s, side)(q, 3)] for s in (every, best)]
            assert shown[0] == shown[1]


def test_mixed_questions_and_spans(tmp_path: Path) -> None:
    build(tmp_path / "i", fit_rows="all")
    for given in ({"combine": "contrast"}, {"combine": "mean"}, {"span": "1:4"}):
        truth = exact(**given)
        found = answer(tmp_path / "i", **given)
        np.testing.assert_allclose(found.values, truth.values, atol=2e-3 * np.abs(truth.values).max())
        assert found.query_ids == truth.query_ids


def test_an_answer_is_a_run_with_a_report(tmp_path: Path) -> None:
    build(tmp_path / "i")
    found = answer(tmp_path / "i", out=tmp_path / "run", report=tmp_path / "page.html")
    np.testing.assert_array_equal(whence.load(tmp_path / "run").values, found.values)
    assert "scores come from an index" in (tmp_path / "page.html").read_text()


def test_a_bad_row_has_no_score(tmp_path: Path) -> None:
    rows = [*animal_rows(), {"text": "."}]
    build(tmp_path / "i", train=rows, max_bad_rows=2)
    found = answer(tmp_path / "i")
    assert np.isnan(found.values[:, -1]).all() and np.isfinite(found.values[:, :-1]).all()
    assert found.train_rows[found.train_ids[-1]].status.startswith("quarantined")
    assert found.n_train == 12


def test_again_keeps_what_is_finished(tmp_path: Path) -> None:
    """Killing at every point is in tests/reliability; here: nothing is written twice."""
    build(tmp_path / "i", compression=SMALL)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "i").glob("*.*") if p.name in contents(tmp_path / "i")}
    whole = contents(tmp_path / "i")
    build(tmp_path / "i", compression=SMALL)
    assert contents(tmp_path / "i") == whole
    assert {name: (tmp_path / "i" / name).stat().st_mtime_ns for name in before} == before


def test_repair(tmp_path: Path) -> None:
    model, rows = model_folder(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl", animal_rows())
    folder = tmp_path / "i"
    build(folder, model=str(model), train=str(rows), compression=SMALL)
    whole = contents(folder)
    before, after = repair_index(folder)
    assert not before.damaged and not after.damaged and before.finished
    (folder / "shard-00000.safetensors").unlink()
    (folder / "journal.jsonl").write_text("half a li")
    (folder / "index-plan.json").write_text("{}")
    before, after = repair_index(folder)
    assert set(before.damaged) == {"shard-00000.safetensors", "journal.jsonl", "index-plan.json"} and not after.damaged
    assert contents(folder) == whole
    (folder / "index.json").write_text("{}")
    repair_index(folder)
    assert contents(folder) == whole
    model.rename(tmp_path / "moved")
    (folder / "rows.parquet").unlink()
    repair_index(folder, model=str(tmp_path / "moved"))
    assert set(examine(folder).damaged) == set()
    build(tmp_path / "live")
    (tmp_path / "live" / "rows.parquet").unlink()
    with pytest.raises(OptionError, match="built from Python objects"):
        repair_index(tmp_path / "live")


def test_a_damaged_shard_is_found_before_use_and_alone_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "i"
    build(folder, compression=SMALL)
    whole, before = contents(folder), {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    shard = folder / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"shard-00001.safetensors is damaged"):
        answer(folder)
    build(folder, compression=SMALL)
    assert contents(folder) == whole
    others = [p for p in folder.glob("shard-*.safetensors") if p != shard]
    assert others and all(p.stat().st_mtime_ns == before[p.name] for p in others)
    assert np.isfinite(answer(folder).values).all()


def test_a_new_fit_in_place_of_a_damaged_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums are beside a manifest that is whole, and are needed all the same."""
    folder, settings = tmp_path / "i", {"compression": SMALL, "fit_rows": "all"}
    build(folder, **settings)
    whole, factors = contents(folder), folder / "factors.safetensors"
    factors.write_bytes(factors.read_bytes()[:-1] + b"?")
    write, made = Site.write, list[str]()

    def counted(self: Site, name: str, tensors: Any) -> dict[str, Any]:
        made.append(name)
        if len(made) == 4:
            raise KeyboardInterrupt
        return write(self, name, tensors)

    monkeypatch.setattr(Site, "write", counted)
    with pytest.raises(KeyboardInterrupt):
        build(folder, **settings)
    build(folder, **settings)
    assert made[3] == made[4] and len(made) == 1 + len(set(made)) and made[-1] == factors.name
    assert contents(folder) == whole


def test_a_shard_that_others_finished_meanwhile_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process was suspended and taken for dead. What did not fit in its memory may have fitted in theirs."""
    build(tmp_path / "whole", compression=SMALL)
    publish, first = building.write_tensors, "shard-00000.safetensors"

    def overtaken(self: Site, name: str) -> dict[str, Any] | None:
        if name == first:
            (self.folder.path / name).write_bytes((tmp_path / "whole" / name).read_bytes())
            row = self.source.examples[0].id
            self.folder.remember(f"too_large {row}", {"row": row})
            index_folder.open_plan(self.folder.path, self.folder.identity, member="other").enter(name)
        return made_by_others(self, name)

    made_by_others, written = Site.made_by_others, list[str]()
    monkeypatch.setattr(Site, "made_by_others", overtaken)
    monkeypatch.setattr(building, "write_tensors", lambda path, rows: (written.append(path.name), publish(path, rows)))
    body = build(tmp_path / "i", compression=SMALL)
    assert first not in written and len(written) == body["shards"] - 1
    assert "splits" not in body  # the row has a score, whatever was said of it
    assert contents(tmp_path / "i") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["factors.safetensors", "rows.parquet", "quarantine.jsonl", "index.json"])
def test_damage_anywhere_is_found(tmp_path: Path, name: str) -> None:
    build(tmp_path / "i", train=[*animal_rows(), {"text": "."}], max_bad_rows=2)
    path = tmp_path / "i" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"damaged"):
        answer(tmp_path / "i")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": (tiny_llama(seed=1).double(), word_tokenizer())}, "model.digest"),
        ({"train": animal_rows(11)}, "data"),
        ({"method": "kfac"}, "options.method"),
        ({"damping": 0.2}, "options.damping"),
        ({"max_length": 5}, "task.max_length"),
        ({"compression": {"budget": 0.2}}, "compression.budget"),
    ],
)
def test_another_plan_is_refused_by_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    build(tmp_path / "i", compression=SMALL)
    before = contents(tmp_path / "i")
    with pytest.raises(StoreError, match=rf"index of something else \(.*{field}"):
        build(tmp_path / "i", **{"compression": SMALL, **change})
    assert {n: b for n, b in contents(tmp_path / "i").items() if n != ".whence"} == {
        n: b for n, b in before.items() if n != ".whence"
    }


def test_a_changed_model_or_tokenizer_is_refused(tmp_path: Path) -> None:
    model, rows = model_folder(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl", animal_rows())
    build(tmp_path / "i", model=str(model), train=str(rows))
    rows.unlink()  # an answer never needs them
    assert np.isfinite(whence.ask(tmp_path / "i", QUESTION).values).all()
    moved = tmp_path / "elsewhere"
    model.rename(moved)
    assert np.isfinite(whence.ask(tmp_path / "i", QUESTION, model=str(moved)).values).all()
    tokenizer = json.loads((moved / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zebra"] = len(tokenizer["model"]["vocab"])
    (moved / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(StoreError, match=r"tokenizer\.checksum"):
        whence.ask(tmp_path / "i", QUESTION, model=str(moved))
    model_folder(moved)
    edit_weights(moved, model__norm__weight=lambda t: t + 1)
    with pytest.raises(StoreError, match=r"model\.model\.safetensors"):
        whence.ask(tmp_path / "i", QUESTION, model=str(moved))


def test_no_index_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not an index"):
        answer(tmp_path)
    build(tmp_path / "i")
    (tmp_path / "i" / index_folder.MANIFEST).unlink()
    with pytest.raises(StoreError, match="unfinished index"):
        answer(tmp_path / "i")


def test_a_run_and_an_index_do_not_share_a_folder(tmp_path: Path) -> None:
    build(tmp_path / "i")
    with pytest.raises(StoreError, match="holds index files"):
        exact(out=tmp_path / "i")
    exact(out=tmp_path / "run")
    with pytest.raises(StoreError, match="holds run files"):
        build(tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "said"),
    [({"method": "trak:size=3"}, "no per-layer inverse"), ({"normalise": "theta"}, "theta"), ({"span": "1:2"}, "span")],
)
def test_what_cannot_be_indexed(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        build(tmp_path / "i", **given)


def test_a_question_cannot_change_the_curvature(tmp_path: Path) -> None:
    build(tmp_path / "i")
    with pytest.raises(OptionError, match="damping for an index"):
        answer(tmp_path / "i", damping=0.5)
