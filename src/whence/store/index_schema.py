"""What a manifest must look like before anything in it is used: an index may come from anybody.

The seal only says that a manifest was not damaged by accident. Names are plain names of an index's files, numbers are
within bounds, and what says how much there is agrees with the files that are there, so that nothing is allocated for
what is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from whence.errors import StoreError
from whence.store.index_folder import FACTORS, MANIFEST, QUARANTINE, ROWS, damaged, shard_name

MOST_ROWS = 2**31 - 1  # shards number them with int32
MOST_SHARDS, MOST_BYTES, MOST_SIDE = 10**6, 2**50, 2**31
_CHECKSUM = re.compile(r"xxh3:[0-9a-f]{32}")


def _count(most: int, least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _mapping(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and of(v) for k, v in value.items())


def _sides(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_count(MOST_SIDE, 1)(side) for side in value)


def _record(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"bytes", "checksum"}:
        return False
    told = value["checksum"]
    return _count(MOST_BYTES)(value["bytes"]) and isinstance(told, str) and _CHECKSUM.fullmatch(told) is not None


FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "identity": _mapping(lambda _: True),
    "files": _mapping(_record),
    "spec": lambda value: isinstance(value, str),
    "options": _mapping(lambda _: True),
    "code": _mapping(lambda _: True),
    "layout": _mapping(_sides),
    "places": _mapping(_mapping(lambda key: isinstance(key, str))),
    "shards": _count(MOST_SHARDS),
    "rows": _count(MOST_ROWS, 1),
    "n_train": _count(MOST_ROWS, 1),
    "bytes_per_row": _count(MOST_BYTES, 1),
    "fit": _mapping(lambda _: True),
    "about": _mapping(lambda _: True),
}


def checked(folder: Path, body: dict[str, Any], *, own_method: str | None = None) -> dict[str, Any]:
    """The manifest itself.

    Args:
        folder: of the index.
        body: its manifest.
        own_method: a method of a third party that the user names; a manifest may not choose what is imported.

    Raises:
        StoreError: names the first field that cannot be.
    """
    path = folder / MANIFEST
    for name, right in FIELDS.items():
        if name not in body or not right(body[name]):
            raise damaged(path, f"its field {name!r} cannot be")
    wanted = {FACTORS, ROWS, QUARANTINE, *(shard_name(number) for number in range(body["shards"]))}
    if set(body["files"]) != wanted:
        odd = sorted(set(body["files"]) ^ wanted)[0]
        raise damaged(path, f"its files are not those of {body['shards']} shards ({odd[:80]!r})")
    if body["n_train"] > body["rows"]:
        raise damaged(path, "it has more training rows than rows")
    layers = body["identity"].get("layers")
    if not _mapping(_sides)(layers):
        raise damaged(path, "it does not name the layers")
    for name, (outputs, inputs) in body["layout"].items():
        if name not in layers or outputs > layers[name][0] or inputs > layers[name][1]:
            raise damaged(path, f"its rows are longer than the gradient of layer {name[:80]!r}")
    if not body["layout"] or (body["fit"].get("stages") and set(body["places"]) != set(layers)):
        raise damaged(path, "its layers, and where their curvature and rows are, do not agree")
    _check_trust(path, body["options"], own_method)
    return body


def _check_trust(path: Path, options: Mapping[str, Any], own_method: str | None) -> None:
    """What runs code is the user's to allow, and never a file's."""
    flags = [name for name in ("trust_remote_code", "allow_pickle_weights") if options.get(name)]
    if flags:
        raise damaged(path, f"it asks for {flags[0]}")
    method = str(options.get("method"))
    if "." in method.partition(":")[0] and method != own_method:
        raise StoreError(
            f"{path} asks for the method {method[:80]!r}, which is not one of whence",
            wanted="a method that you name yourself, because it is imported",
            try_=f"whence.ask(index, ..., method={method[:80]!r})",
        )
