"""A model, rows and a way to run the command line, in this process or as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from folders import animal_rows, model_folder, write_rows
from whence.cli.main import run


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """NDJSON of stdout; a bare NaN would be an error."""
        return [json.loads(line, parse_constant=pytest.fail) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Place:
    """A working folder with a model and rows."""

    model: Path
    data: Path

    @property
    def trace(self) -> list[str]:
        """A command line that works."""
        question = ["--prompt", "the cat sat on", "--response", " the mat ."]
        return ["trace", "--model", str(self.model), "--data", str(self.data), *question]


@pytest.fixture(scope="session")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("shared") / "model")


@pytest.fixture
def place(shared_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return Place(shared_model, write_rows(tmp_path / "train.jsonl", animal_rows()))


@pytest.fixture
def whence(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def call(*arguments: Any) -> Said:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    return call


def process(*arguments: Any, **extra: Any) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra.pop("env", {})}
    command = [sys.executable, "-m", "whence", *(str(argument) for argument in arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{**pipes, **extra})
