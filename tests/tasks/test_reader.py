"""Every kind of source, ids, names and fingerprints."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from whence.errors import DataError, OptionError
from whence.tasks import sources
from whence.tasks.rows import ReadOptions, Row, changed_files, read_rows, row_text, row_view

TEXTS = [{"text": f"text number {n}"} for n in range(5)]


def texts(rows) -> list[str]:
    return [r.fields["text"] for r in rows.rows]


def spec_of(kind: str, tmp_path: Path):
    lines = "".join(json.dumps(r) + "\n" for r in TEXTS)
    path = tmp_path / f"data.{kind}"
    if kind in ("jsonl", "ndjson"):
        path.write_text(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps(TEXTS, indent=2))
    elif kind in ("csv", "tsv"):
        path.write_text("text\n" + "\n".join(r["text"] for r in TEXTS) + "\n")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(TEXTS), path)
    elif kind == "folder":
        datasets.Dataset.from_list(TEXTS).save_to_disk(path)
    elif kind == "splits":
        datasets.DatasetDict({"train": datasets.Dataset.from_list(TEXTS)}).save_to_disk(path)
    elif kind == "dataset":
        return datasets.Dataset.from_list(TEXTS)
    elif kind == "list":
        return TEXTS
    return str(path)


KINDS = ["jsonl", "ndjson", "jsonl.gz", "json", "csv", "tsv", "parquet", "folder", "splits", "dataset", "list"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_rows(kind, tmp_path):
    rows = read_rows(spec_of(kind, tmp_path))
    assert texts(rows) == [r["text"] for r in TEXTS]
    assert rows.shape == "text"
    assert not rows.quarantine
    first = 2 if kind in ("csv", "tsv") else 1
    stem = {"dataset": "rows", "list": "rows", "folder": "data.folder", "splits": "data.splits"}.get(kind, "data")
    assert [r.id for r in rows.rows] == [f"{stem}:{n}" for n in range(first, first + 5)]
    assert rows.ids == tuple(r.id for r in rows.rows)
    assert rows.rows[1].location.endswith(f":{first + 1}")


def test_a_json_file_may_hold_a_line_per_object(write):
    assert len(read_rows(write("a.json", TEXTS))) == 5
    assert len(read_rows(write("b.json", '[\n{"text": "only"}\n]'))) == 1
    assert len(read_rows(write("c.json", '{"text":\n "pretty"}'))) == 1


def test_csv_with_quotes_and_line_breaks_keeps_physical_lines(write):
    rows = read_rows(write("a.csv", 'id,text\na,"one\ntwo, ""three"""\nb,four\n'))
    assert texts(rows) == ['one\ntwo, "three"', "four"]
    assert [r.location.rpartition(":")[2] for r in rows.rows] == ["2", "4"]


def test_several_files_with_names(write):
    one, two = write("one.jsonl", TEXTS), write("two.jsonl", TEXTS[:2])
    rows = read_rows([one, f"web={two}"])
    assert {r.source for r in rows.rows} == {"one", "web"}
    assert rows.rows[-1].id == "web:2"
    assert rows.rows[-1].location == f"{two}:2"
    assert read_rows({"a": one, "b": TEXTS}).about["rows"] == {"a": 5, "b": 5}


def test_same_stem_in_two_folders_gets_different_names(write):
    rows = read_rows([write("x/train.jsonl", TEXTS), write("y/train.jsonl", TEXTS)])
    assert {r.source for r in rows.rows} == {"x/train", "y/train"}
    assert len(set(rows.ids)) == 10


def test_the_same_file_twice_is_two_sources(write):
    path = write("a/train.jsonl", TEXTS)
    assert {r.source for r in read_rows([path, path]).rows} == {"a/train", "a/train#2"}


def test_sources_of_different_shapes_are_mixed(write):
    pairs = [{"prompt": "a", "completion": "b"}] * 2
    rows = read_rows({"a": TEXTS, "b": pairs})
    assert rows.shape == "mixed"
    assert rows.about["shapes"] == {"a": "text", "b": "prompt_completion"}


def test_a_path_with_an_equals_sign(write):
    assert read_rows(write("lr=0.1.jsonl", TEXTS)).rows[0].source == "lr=0.1"


def test_hub_names(monkeypatch):
    asked = []

    def load(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list(TEXTS)

    monkeypatch.setattr(sources.datasets, "load_dataset", load)
    read_rows("owner/some-set:train:100")
    read_rows("owner/some-set:test[:10%]")
    read_rows("plain:validation")
    assert asked == [("owner/some-set", "train[:100]"), ("owner/some-set", "test[:10%]"), ("plain", "validation")]


def test_hub_failure_is_explained(monkeypatch):
    def load(name, split):
        raise ConnectionError("no network")

    monkeypatch.setattr(sources.datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"owner/set:train.*no network"):
        read_rows("owner/set:train")


@pytest.mark.parametrize("spec", ["missing.jsonl", "owner/set", "no/such/folder/x.jsonl", "x" * 5000, "nul\0byte"])
def test_what_is_not_there_is_never_asked_of_the_hub(spec, monkeypatch):
    monkeypatch.setattr(sources.datasets, "load_dataset", None)
    with pytest.raises(DataError, match="no such file"):
        read_rows(spec)


def test_a_near_miss_is_suggested(write):
    path = write("stories.jsonl", TEXTS)
    with pytest.raises(DataError, match=r"did you mean 'stories\.jsonl'"):
        read_rows(path.replace("stories", "storeis"))


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_empty_files(write, name, content):
    with pytest.raises(DataError) as caught:
        read_rows(write(name, content))
    assert caught.value.exit_code == 3


def test_no_rows_no_sources():
    for spec in ([], {}, 3, datasets.Dataset.from_list([])):
        with pytest.raises(DataError):
            read_rows(spec)


def test_unknown_kind_of_file(write, tmp_path):
    with pytest.raises(DataError, match=r"\.jsonl"):
        read_rows(write("a.xlsx", "x"))
    with pytest.raises(DataError, match="not one saved by datasets"):
        read_rows(str(tmp_path))


def test_a_saved_set_that_is_damaged_is_named(tmp_path):
    datasets.Dataset.from_list(TEXTS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "dataset_info.json").write_text("{half")
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path / "saved"))
    assert caught.value.got.startswith(f"{tmp_path / 'saved'}: cannot be read as a saved data set (")


def test_images_of_a_folder_with_what_is_said_of_them(tmp_path):
    """Lines of metadata.jsonl that name no file, or cannot be read, say nothing of anything."""
    for name in ("a.png", "deep/b.png", "c.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(path)
    bare = read_rows(str(tmp_path / "images"))
    assert bare.shape == "image" and [r.fields.get("label") for r in bare.rows] == [None, None, "deep"]
    said = [{"file_name": "a.png", "label": 1}, {"label": 2}, {"file_name": 5, "label": 3}]
    said += [{"file_name": "deep/b.png", "label": 4}, {"file_name": "gone.png", "label": 5}]
    lines = [json.dumps(line) for line in said]
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join([*lines, "{half"]))
    rows = read_rows(str(tmp_path / "images"))
    assert [r.fields.get("label") for r in rows.rows] == [1, None, 4] and not rows.quarantine
    assert not any("file_name" in r.fields for r in rows.rows)


def test_a_set_with_several_splits_needs_a_choice(tmp_path):
    part = datasets.Dataset.from_list(TEXTS)
    datasets.DatasetDict({"one": part, "two": part}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="one of one, two"):
        read_rows(str(tmp_path / "d"))
    assert read_rows(f"{tmp_path / 'd'}:two").rows[0].id == "d-two:1"


# --- ids ------------------------------------------------------------------------------------------------------------


def test_own_ids(write):
    rows = read_rows([{"id": "a", "text": "x"}, {"id": 7, "text": "y"}, {"id": 8.0, "text": "y"}, {"text": "z"}])
    assert [r.id for r in rows.rows] == ["a", "7", "8", "rows:4"]


def test_an_id_of_another_kind_is_quarantined():
    good = [{"id": str(n), "text": "x"} for n in range(10)]
    odd = [
        {"id": [1], "text": "x"},
        {"id": True, "text": "x"},
        {"id": 1.5, "text": "x"},
        {"id": "x" * 600, "text": "x"},
    ]
    rows = read_rows(good + odd, options=ReadOptions(max_bad_rows=4))
    assert [q.code for q in rows.quarantine] == ["bad_id"] * 4


def test_duplicate_ids_stop_with_both_places(write):
    path = write("a.jsonl", [{"id": "same", "text": "x"}, {"id": "b", "text": "x"}, {"id": "same", "text": "y"}])
    with pytest.raises(DataError, match=r"'same': .*a\.jsonl:1 and .*a\.jsonl:3"):
        read_rows(path)


def test_duplicate_ids_can_be_numbered():
    data = [{"id": i, "text": "x"} for i in ("a", "a#2", "a", "a")]
    rows = read_rows(data, options=ReadOptions(dup_ids="suffix"))
    assert [r.id for r in rows.rows] == ["a", "a#2", "a#3", "a#4"]


def test_duplicate_ids_can_be_told_apart_by_source():
    rows = read_rows(
        {"one": [{"id": 1, "text": "x"}], "two": [{"id": 1, "text": "x"}]}, options=ReadOptions(dup_ids="source")
    )
    assert [r.id for r in rows.rows] == ["one/1", "two/1"]


def test_duplicate_rows_are_kept_apart():
    assert len(read_rows([{"text": "same"}] * 3)) == 3


# --- columns, fingerprints ------------------------------------------------------------------------------------------


def test_columns_are_mapped():
    options = ReadOptions(columns={"prompt": "question", "completion": "answer"})
    rows = read_rows([{"question": "q", "answer": "a", "prompt": "not this"}], options=options)
    assert rows.shape == "prompt_completion"
    assert rows.rows[0].fields["prompt"] == "q"
    assert rows.rows[0].fields["question"] == "q"


def test_a_mapped_name_hides_the_column_of_that_name():
    rows = read_rows(
        [{"id": "dup", "key": "a", "text": "x"}, {"id": "dup", "key": "b", "text": "y"}],
        options=ReadOptions(columns={"id": "key"}),
    )
    assert [r.id for r in rows.rows] == ["a", "b"]


def test_unknown_columns_name_what_was_found():
    with pytest.raises(DataError, match="sentence") as caught:
        read_rows([{"sentence": "x", "score": 1}])
    assert "text=sentence" in caught.value.try_
    with pytest.raises(DataError) as caught:
        read_rows([{"question": "x", "answer": "y"}])
    assert "--column prompt=question --column completion=answer" in caught.value.try_


def test_what_follows_a_prompt_may_be_called_its_response():
    rows = read_rows([{"prompt": "q", "response": "a"}, {"prompt": "q", "response": "not this", "completion": "b"}])
    assert rows.shape == "prompt_completion"
    assert [row_view(row).spans[1] for row in rows.rows] == [("completion", "a"), ("completion", "b")]


def test_a_mapped_column_that_is_not_there():
    for rows in ([{"sentence": "x"}], [{"text": "x", "sentence": "y"}]):
        with pytest.raises(DataError, match="'sentense'") as caught:
            read_rows(rows, options=ReadOptions(columns={"text": "sentense"}))
        assert "did you mean 'sentence'" in caught.value.try_
    options = ReadOptions(columns={"text": "sentence"})  # one source may have its own names
    assert len(read_rows({"a": [{"sentence": "x"}], "b": [{"text": "y"}]}, options=options)) == 2


def test_wrong_options():
    for options in (ReadOptions(shape="novel"), ReadOptions(dup_ids="drop"), ReadOptions(max_bad_rows=-1)):  # pyright: ignore
        with pytest.raises(OptionError):
            read_rows(TEXTS, options=options)
    with pytest.raises(OptionError):
        read_rows(TEXTS, options=ReadOptions(max_bad_rows=float("nan")))


def test_fingerprint_depends_on_content_alone(write):
    ids = [{"id": str(n), **r} for n, r in enumerate(TEXTS)]
    turned = [dict(reversed(r.items())) for r in ids]
    first = read_rows(ids).fingerprint
    assert read_rows(write("a.jsonl", ids)).fingerprint == first
    assert read_rows(turned).fingerprint == first
    assert read_rows(ids[::-1]).fingerprint != first
    assert read_rows([*ids[:-1], {"id": "4", "text": "other"}]).fingerprint != first


def test_a_changed_file_is_noticed(write):
    path = write("a.jsonl", TEXTS)
    rows = read_rows(path)
    assert changed_files(rows) == []
    Path(path).write_text('{"text": "another"}\n')
    assert changed_files(rows) == [path]
    Path(path).unlink()
    assert changed_files(rows) == [path]


def test_a_file_that_changes_while_read_is_noticed(write, monkeypatch):
    path = write("a.jsonl", TEXTS)
    original = sources.read_file

    def meddle(p, limits):
        yield from original(p, limits)
        p.write_text('{"text": "another"}\n')

    monkeypatch.setattr(sources, "read_file", meddle)
    with pytest.raises(DataError, match="changed while it was being read"):
        read_rows(path)


def test_numpy_values_become_plain():
    rows = read_rows([{"input_ids": np.arange(3), "labels": np.array([-100, 1, 2])}, {"input_ids": [1, 2]}])
    assert rows.rows[0].fields["input_ids"] == [0, 1, 2]


# --- what a person sees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text", "kinds"),
    [
        ({"text": "a"}, "a", []),
        ({"prompt": "a ", "completion": "b"}, "a b", ["prompt", "completion"]),
        ({"instruction": "a", "input": "", "output": "b"}, "a\nb", ["instruction", "output"]),
        ({"instruction": "a", "input": "x", "response": "b"}, "a\nx\nb", ["instruction", "input", "output"]),
        ({"messages": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}]}, "a\nb",
         ["user", "assistant"]),
        ({"input_ids": [1, 2]}, "1 2", []),
        ({"input_ids": [1, 2], "text": "a b"}, "a b", []),
        ({"input": "a", "target": "b"}, "a\nb", ["input", "target"]),
        ({"chosen": "a", "rejected": "b"}, "a\nb", ["chosen", "rejected"]),
        ({"prompt": "p", "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}],
          "rejected": [{"role": "assistant", "content": "b"}]}, "p\na\n\nb", ["prompt", "chosen", "rejected"]),
        ({"prompt": [{"role": "user", "content": "a"}],
          "completion": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "a\n", ["user", "assistant"]),
        ({"text": "a", "text_pair": "b", "label": 0}, "a\nb", ["text", "text_pair"]),
        ({"tokens": ["a", "b", "c"], "tags": ["O", "PER", 0]}, "a b c\nb/PER", ["text", "tags"]),
        ({"words": ["a", "b"], "ner_tags": [0, 0]}, "a b", []),
        ({"text": "a bc", "entities": [{"start": 2, "end": 4, "label": "X"}]}, "a bc\nbc/X", ["text", "tags"]),
        ({"features": [1.0], "target": 2.0}, "features=[1.0], target=2.0", []),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}, "a\nb",
         ["user", "assistant"]),
    ],
)  # fmt: skip
def test_row_text(fields, text, kinds):
    shown, spans = row_text(Row("r", fields))
    assert shown == text
    assert [kind for kind, _ in spans] == kinds


def test_row_view_carries_label_and_place():
    view = row_view(Row("r", {"text": "a", "label": 0}, "src", "f:1"))
    assert (view.label, view.source, view.location, view.status) == ("0", "src", "f:1", "scored")
