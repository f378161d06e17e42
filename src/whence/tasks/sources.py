"""What a user may point at: paths, folders, hub names, data sets, lists, and several of these with names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import xxhash

from whence.errors import DataError, did_you_mean
from whence.tasks.formats import Limits, Record, check_object, read_file
from whence.tasks.images import image_fields, image_files

_HUB = re.compile(r"^(?P<name>[\w.-]+(?:/[\w.-]+)?):(?P<split>\w+)(?::(?P<n>\d+)|(?P<slice>\[[\d:%-]+\]))?$")


@dataclass(frozen=True)
class Source:
    """Something that yields records.

    Attributes:
        name: shown to people and used in ids (file stem, or the name the user gave).
        place: where it is, the first half of a row's location.
        records: opens it anew and reads it from the start.
        path: the file, when it is a single one (it is then watched for changes).
    """

    name: str
    place: str
    records: Callable[[], Iterable[Record]]
    path: Path | None = None


def open_sources(spec: Any, *, default_name: str, limits: Limits) -> list[Source]:
    """The sources of a spec, with names that differ.

    Raises:
        DataError: a path that does not exist, or a kind of object that holds no rows.
    """
    if isinstance(spec, Mapping):
        named = [(str(name), part) for name, part in spec.items()]
    elif isinstance(spec, Sequence) and not isinstance(spec, str) and spec and _all_places(spec):
        named = [("", part) for part in spec]
    else:
        named = [("", spec)]
    if not named:
        raise DataError("there are no sources", wanted="at least one file or list of rows")
    return _distinct([_open(part, name, default_name, limits) for name, part in named])


def file_digest(path: Path) -> dict[str, Any]:
    """Size and xxh3-128 digest of a file's bytes."""
    digest = xxhash.xxh3_128()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "xxh3": digest.hexdigest()}


def _all_places(spec: Sequence[Any]) -> bool:
    return all(isinstance(part, str | Path | datasets.Dataset) for part in spec)


def _open(spec: Any, name: str, default_name: str, limits: Limits) -> Source:
    if isinstance(spec, str | Path):
        return _open_place(str(spec), name, limits)
    if isinstance(spec, datasets.Dataset):
        title = name or default_name
        return Source(title, title, lambda: _dataset_records(spec, limits))
    if isinstance(spec, Iterable):
        items, title = list(spec), name or default_name
        return Source(title, title, lambda: (check_object(item, i, limits) for i, item in enumerate(items, start=1)))
    raise DataError(
        f"cannot read rows from {type(spec).__name__}",
        wanted="a path, a hub name with a split, a datasets.Dataset, or a list of dictionaries",
    )


def _open_place(spec: str, name: str, limits: Limits) -> Source:
    path = Path(spec)
    if not _exists(path) and "=" in spec:
        given, _, rest = spec.partition("=")
        return _open_place(rest, name or given.strip(), limits)
    if _exists(path) and path.is_dir():
        return Source(name or path.name, spec, lambda: _folder_records(path, limits))
    if _exists(path):
        return Source(name or _stem(path), spec, lambda: read_file(path, limits), path)
    split_folder, _, split = spec.rpartition(":")
    if split_folder and _exists(Path(split_folder)) and Path(split_folder).is_dir():
        folder = Path(split_folder)
        return Source(name or f"{folder.name}-{split}", spec, lambda: _folder_records(folder, limits, split))
    if hub := _HUB.match(spec):
        title = name or hub["name"].rpartition("/")[2]
        return Source(title, spec, lambda: _hub_records(spec, hub, limits))
    raise _missing(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, or holding a NUL: some text, not a path
        return False


def _missing(path: Path) -> DataError:
    folder = path.parent
    inside = [p.name for p in folder.iterdir()] if _exists(folder) and folder.is_dir() else []
    tip = did_you_mean(path.name, inside) if inside else f"there is no folder {folder} either"
    return DataError(
        f"no such file: {str(path)[:200]!r}",
        wanted="a file or folder that exists, or a hub data set with its split (owner/name:train:1000)",
        try_=tip,
    )


def _stem(path: Path) -> str:
    return re.sub(r"(\.(jsonl|ndjson|json|csv|tsv|parquet|pq))?(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _distinct(sources: list[Source]) -> list[Source]:
    """Sources of one name get their folder's name before it, then a number: ``source:line`` must tell rows apart."""
    names = [source.name for source in sources]
    taken: set[str] = set()
    result = []
    for source in sources:
        name = source.name
        if names.count(name) > 1 and source.path is not None:
            name = f"{source.path.absolute().parent.name}/{name}"
        n, base = 1, name
        while name in taken:
            n += 1
            name = f"{base}#{n}"
        taken.add(name)
        result.append(Source(name, source.place, source.records, source.path))
    return result


def _dataset_records(dataset: datasets.Dataset, limits: Limits) -> Iterator[Record]:
    plain = dataset.with_format(None)
    for name, kind in plain.features.items():
        if isinstance(kind, datasets.Image):  # undecoded: what is read must not depend on an image library
            plain = plain.cast_column(name, datasets.Image(decode=False))
    for start in range(0, len(plain), 1000):
        columns = plain[start : start + 1000]
        rows = zip(*columns.values(), strict=True)
        for number, values in enumerate(rows, start=start + 1):
            yield check_object(dict(zip(columns, values, strict=True)), number, limits)


def _folder_records(folder: Path, limits: Limits, split: str = "") -> Iterator[Record]:
    if images := image_files(folder):
        yield from _image_records(folder, images, limits)
        return
    if not ((folder / "state.json").exists() or (folder / "dataset_dict.json").exists()):
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:10])
        raise DataError(
            f"{folder} is a folder, but not one saved by datasets (it holds: {inside or 'nothing'})",
            wanted="a file, or a folder written by save_to_disk",
            try_="name the files themselves; several are taken",
        )
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever arrow or json raise for a damaged folder
        raise DataError(f"{folder}: cannot be read as a saved data set ({str(error)[:200]})") from error
    if isinstance(loaded, datasets.DatasetDict):
        splits = [str(name) for name in loaded]
        split = split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else "")
        if split not in splits:
            raise DataError(
                f"{folder} holds several splits and {split or 'none'!r} was chosen",
                wanted="one of " + ", ".join(splits),
                try_=f"{folder}:{splits[0] if splits else 'train'}",
            )
        loaded = loaded[split]
    yield from _dataset_records(loaded, limits)


def _image_records(folder: Path, images: list[Path], limits: Limits) -> Iterator[Record]:
    """One row per image, with what ``metadata.jsonl`` (``file_name`` and any columns) says of it."""
    said: dict[str, Mapping[str, Any]] = {}
    if (folder / "metadata.jsonl").is_file():
        for record in read_file(folder / "metadata.jsonl", limits):
            if record.fields is not None and isinstance(record.fields.get("file_name"), str):
                said[record.fields["file_name"]] = {k: v for k, v in record.fields.items() if k != "file_name"}
    for number, path in enumerate(images, start=1):
        fields = image_fields(folder, path, said.get(path.relative_to(folder).as_posix(), {}))
        yield check_object(fields, number, limits)


def _hub_records(spec: str, hub: re.Match[str], limits: Limits) -> Iterator[Record]:
    part = f"[:{hub['n']}]" if hub["n"] else hub["slice"] or ""
    try:
        loaded = datasets.load_dataset(hub["name"], split=hub["split"] + part)
    except Exception as error:  # network, missing set, missing split: a dozen types upstream
        raise DataError(
            f"cannot load the hub data set {spec!r}: {type(error).__name__}: {str(error)[:300]}",
            wanted="a local file, or a hub name with a split that exists (owner/name:train:1000)",
            try_="check the name and the network; a set with several configurations must be loaded by yourself",
        ) from error
    assert isinstance(loaded, datasets.Dataset)
    yield from _dataset_records(loaded, limits)
