"""A choice of rows on disk: the rows as they stand in the input, their scores, the page, and a record written last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whence.errors import StoreError
from whence.report.account import account_page
from whence.select.account import Account
from whence.select.choose import Choice
from whence.select.lines import write_counted
from whence.select.origins import Opened
from whence.store import atomic
from whence.store.run import file_record

RECORD, PAGE, SCORES = "selection.json", "report.html", "scores.jsonl"
FORMAT = "whence selection 1"


def check_out(out: str | Path) -> Path:
    """A new folder, an empty one, or an earlier choice of ours.

    Raises:
        StoreError: anything else.
    """
    place = Path(out).expanduser()
    if place.exists() and (not place.is_dir() or (any(place.iterdir()) and not (place / RECORD).is_file())):
        raise StoreError(
            f"{place} is {'not empty' if place.is_dir() else 'a file'}",
            wanted="a new folder, an empty one, or one with an earlier choice",
            try_="another name with -o",
        )
    return place


def write_chosen(folder: Path, opened: Opened, choice: Choice) -> list[Path]:
    """Rows kept, rows dropped, and what was decided about each."""
    kept = choice.kept.astype(int).tolist()
    files = write_counted(opened.origins, kept, folder, "kept")
    files += write_counted(opened.origins, [1 - k for k in kept], folder, "dropped")
    lines = zip(opened.rows.ids, opened.sources, choice.values.tolist(), kept, choice.reasons, strict=True)
    atomic.write_jsonl(
        folder / SCORES,
        ({"id": i, "source": s, "value": v, "kept": bool(k), "reason": r} for i, s, v, k, r in lines),
    )
    return [*files, folder / SCORES]


def write_account(folder: Path, account: Account, files: Sequence[Path], **facts: Any) -> tuple[Path, ...]:
    """The page, and the record with the checksums of all files, last."""
    told = atomic.plain(account.to_dict())
    atomic.write_text(folder / PAGE, account_page(told))
    files = [*files, folder / PAGE]
    record = {"format": FORMAT, **facts, "account": told, "files": {file.name: file_record(file) for file in files}}
    atomic.write_json(folder / RECORD, record)
    return (*files, folder / RECORD)
