"""What an index may say of itself: everything that is used is looked at first, and named when it cannot be."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whence.errors import StoreError
from whence.store.index_folder import FACTORS, QUARANTINE, ROWS, shard_name
from whence.store.index_schema import MOST_BYTES, MOST_ROWS, MOST_SHARDS, MOST_SIDE, checked

RECORD = {"bytes": 10, "checksum": "xxh3:" + "0f" * 16}
BODY: dict[str, Any] = {
    "identity": {"layers": {"a": [2, 3], "b": [1, 4]}},
    "files": dict.fromkeys((FACTORS, ROWS, QUARANTINE, shard_name(0), shard_name(1)), RECORD),
    "spec": "model",
    "options": {"method": "ekfac:blocks=2", "trust_remote_code": False},
    "code": {"scheme": "fp16"},
    "layout": {"a": [2, 3], "b": [1, 2]},
    "places": {"a": {"Q": "00000"}, "b": {}},
    "shards": 2,
    "rows": 9,
    "n_train": 9,
    "bytes_per_row": 10,
    "fit": {"stages": ["covariance"]},
    "about": {},
}  # fmt: skip


def body(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(BODY), **changes}


def test_what_whence_writes_passes_as_it_is(tmp_path: Path) -> None:
    given = body()
    assert checked(tmp_path, given) is given and given == BODY
    assert checked(tmp_path, body(fit={}, places={}))  # a method without a fit
    assert checked(tmp_path, body(n_train=1, bytes_per_row=MOST_BYTES))


def test_no_more_rows_than_shards_can_number() -> None:
    assert np.iinfo(np.int32).max == MOST_ROWS


ODD: dict[str, list[Any]] = {
    "identity": [None, [], {1: 2}],
    "files": [
        {**BODY["files"], ROWS: record} for record in (
            None, {}, {"bytes": 10}, {**RECORD, "more": 1}, {**RECORD, "bytes": -1}, {**RECORD, "bytes": True},
            {**RECORD, "bytes": MOST_BYTES + 1}, {**RECORD, "bytes": 1.0}, {**RECORD, "checksum": None},
            {**RECORD, "checksum": "xxh3:0f"}, {**RECORD, "checksum": RECORD["checksum"] + "0"},
            {**RECORD, "checksum": "md5:" + "0f" * 16},
        )
    ],
    "spec": [None, 5],
    "options": [None, "method"],
    "code": [[], 1],
    "layout": [None, {"a": [2]}, {"a": [2, 3, 4]}, {"a": [0, 3]}, {"a": [2, MOST_SIDE + 1]}, {"a": "23"},
               {"a": [True, 3]}],
    "places": [None, {"a": None}, {"a": {"Q": 0}}],
    "shards": [-1, 1.0, True, "2", MOST_SHARDS + 1, None],
    "rows": [0, MOST_ROWS + 1],
    "n_train": [0, MOST_ROWS + 1, False],
    "bytes_per_row": [0, MOST_BYTES + 1],
    "fit": [None],
    "about": [None, "a"],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ODD.items() for value in values])
def test_a_field_that_cannot_be_is_named(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(StoreError) as caught:
        checked(tmp_path, body(**{field: value}))
    assert caught.value.got == f"{tmp_path / 'index.json'} is damaged: its field {field!r} cannot be"


@pytest.mark.parametrize("field", BODY)
def test_a_field_that_is_missing_is_named(tmp_path: Path, field: str) -> None:
    given = body()
    del given[field]
    with pytest.raises(StoreError, match=f"its field '{field}' cannot be"):
        checked(tmp_path, given)


def lacking(name: str) -> dict[str, Any]:
    return {n: r for n, r in BODY["files"].items() if n != name}


TOGETHER = {
    "its files are not those of 2 shards ('shard-00001.safetensors')": {"files": lacking(shard_name(1))},
    "its files are not those of 2 shards ('factors.safetensors')": {"files": lacking(FACTORS)},
    "its files are not those of 2 shards ('../secret')": {"files": {**BODY["files"], "../secret": RECORD}},
    "its files are not those of 1 shards ('shard-00001.safetensors')": {"shards": 1},
    "it has more training rows than rows": {"n_train": 10},
    "it does not name the layers": {"identity": {"layers": {"a": [2]}}},
    "its rows are longer than the gradient of layer 'a'": {"layout": {"a": [3, 3]}},
    "its rows are longer than the gradient of layer 'b'": {"layout": {"b": [1, 5]}},
    "its rows are longer than the gradient of layer 'c'": {"layout": {"c": [1, 1]}},
    "its layers, and where their curvature and rows are, do not agree": {"layout": {}},
    "it asks for trust_remote_code": {"options": {"method": "ekfac", "trust_remote_code": True}},
    "it asks for allow_pickle_weights": {"options": {"method": "ekfac", "allow_pickle_weights": True}},
}


@pytest.mark.parametrize("said", TOGETHER)
def test_what_does_not_go_together_is_refused(tmp_path: Path, said: str) -> None:
    with pytest.raises(StoreError) as caught:
        checked(tmp_path, body(**TOGETHER[said]))
    assert caught.value.got == f"{tmp_path / 'index.json'} is damaged: {said}"


def test_curvature_of_other_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="do not agree"):
        checked(tmp_path, body(places={"a": {}}))
    assert checked(tmp_path, body(places={"a": {}}, fit={"stages": []}))  # no stage, no places


def test_what_is_imported_is_for_the_user_to_name(tmp_path: Path) -> None:
    """A dot in the settings of a method is no module."""
    theirs = body(options={"method": "their.module"})
    with pytest.raises(StoreError, match=r"asks for the method 'their.module', which is not one of whence") as caught:
        checked(tmp_path, theirs)
    assert "method='their.module'" in caught.value.try_
    with pytest.raises(StoreError, match="not one of whence"):
        checked(tmp_path, theirs, own_method="other.module")
    assert checked(tmp_path, theirs, own_method="their.module")
    assert checked(tmp_path, body(options={"method": "cg:tolerance=0.1"}))
