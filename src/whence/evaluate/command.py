"""The user's own training command as a trainer: the rows go out as a file, the losses (or a model) come back."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whence.errors import DataError, OptionError
from whence.store import atomic

LOSSES = "losses.json"
LAST = 2000  # characters of the command's output shown when it fails


@dataclass(frozen=True)
class CommandTrainer:
    """Runs a command per member, without a shell.

    The words of the command may hold ``{rows}`` (a .jsonl of the rows kept, fields as given), ``{ids}`` (their ids, one
    per line), ``{seed}`` and ``{out}`` (an empty folder). The command leaves in ``{out}`` either ``losses.json``, an
    object of query id -> nats, or a model folder for ``price``.

    Attributes:
        command: the words, quoted as for a shell.
        rows: N rows as (id, fields).
        query_ids: Q queries.
        price: model folder -> query id -> nats; None = the command must write the losses itself.
        about: what else decides the outcome (contents of the queries).
        at_once: the bank is written after this many members.
    """

    command: str
    rows: Sequence[tuple[str, Mapping[str, Any]]]
    query_ids: Sequence[str]
    price: Callable[[Path], Mapping[str, float]] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    at_once: int = 1

    def fingerprint(self) -> dict[str, Any]:
        """The command as written, and the contents of the rows."""
        contents = json.dumps([[id_, atomic.plain(fields)] for id_, fields in self.rows], sort_keys=True)
        return {"command": self.command, "rows": atomic.text_checksum(contents), **self.about}

    def losses(self, kept_KN: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """K x Q measurements, one command after the other.

        Raises:
            OptionError: the command cannot run or fails.
            DataError: it leaves no losses for some query.
        """
        self._check()
        return np.stack([self._one(kept, seed) for kept, seed in zip(kept_KN, seeds, strict=True)])

    def _check(self) -> None:
        missing = [place for place in ("{out}",) if place not in self.command]
        if "{rows}" not in self.command and "{ids}" not in self.command:
            missing.append("{rows} or {ids}")
        if missing:
            raise OptionError(
                f"command {self.command!r} has no {' and no '.join(missing)}",
                wanted="words that say where the rows are and where the result goes",
                try_='--command "python train.py --data {rows} --seed {seed} --output {out}"',
            )

    def _one(self, kept_N: np.ndarray, seed: int) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="whence-") as folder:
            place = Path(folder)
            chosen = [row for row, keep in zip(self.rows, kept_N, strict=True) if keep]
            atomic.write_jsonl(place / "rows.jsonl", [{**fields, "id": id_} for id_, fields in chosen])
            atomic.write_text(place / "ids.txt", "".join(f"{id_}\n" for id_, _ in chosen))
            (place / "out").mkdir()
            values = {"rows": place / "rows.jsonl", "ids": place / "ids.txt", "seed": seed, "out": place / "out"}
            run_words(filled(self.command, values))
            return self._read(place / "out")

    def _read(self, out: Path) -> np.ndarray:
        written = out / LOSSES
        try:
            found = json.loads(written.read_text("utf-8")) if written.is_file() else None
        except ValueError as error:
            raise DataError(f"{LOSSES} of the command: {error}", wanted="an object of query id -> nats") from error
        if found is None and self.price is not None:
            found = self.price(out)
        if not isinstance(found, Mapping):
            raise DataError(f"the command left no {LOSSES}", wanted="losses in {out}, or a model folder")
        missing = [id_ for id_ in self.query_ids if not isinstance(found.get(id_), (int, float))]
        if missing:
            raise DataError(
                f"the command gave no loss for query {missing[0]!r} ({len(missing)} of {len(self.query_ids)})",
                wanted="a number for every query id",
            )
        return np.array([float(found[id_]) for id_ in self.query_ids])


def filled(command: str, places: Mapping[str, object]) -> list[str]:
    """The words of a command, quoted as for a shell, with each ``{name}`` of a place replaced by its value.

    Raises:
        OptionError: quotes that do not end.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise OptionError(f"command {command!r}: {error}", wanted="words, quoted as for a shell") from error
    # in one go, so that a value that looks like a place is not filled in itself
    names = re.compile("|".join(re.escape(f"{{{name}}}") for name in places))
    return [names.sub(lambda found: str(places[found[0][1:-1]]), word) for word in words]


def run_words(words: Sequence[str]) -> None:
    """Run a command and wait for it.

    Raises:
        OptionError: it cannot run, or fails; with the end of what it said.
    """
    try:
        # The user's own command, on purpose; as words, so that no row or seed is ever read by a shell.
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    except OSError as error:
        raise OptionError(f"cannot run {words[0]!r}: {error.strerror}", wanted="a command that exists") from error
    if done.returncode:
        said = (done.stderr or done.stdout)[-LAST:].strip()
        raise OptionError(f"{words[0]} ended with code {done.returncode}: {said}", wanted="a training that ends well")
