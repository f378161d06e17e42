"""Help: twelve flags at most, two examples first, quick to come, nothing heavy loaded."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from cli.conftest import Said
from whence.cli import evaluate
from whence.cli.main import VERBS
from whence.cli.trace import VISIBLE
from whence.options import TraceOptions, TraceRequest

Call = Callable[..., Said]


def flags(text: str) -> list[str]:
    return [flag for flag in re.findall(r"^\W*(--[\w-]+)", text, flags=re.MULTILINE) if flag != "--help"]


def test_the_first_page(whence: Call) -> None:
    said = whence("--help")
    assert said.code == 0
    for verb in VERBS:
        assert verb in said.out


@pytest.mark.parametrize("verb", VERBS)
def test_flag_budget(whence: Call, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    said = whence(verb, "--help")
    assert said.code == 0
    assert len(flags(said.out)) <= 12, flags(said.out)
    assert f"whence {verb}" in said.out.split("Options")[0].replace(f"Usage: whence {verb}", "", 1)


def test_every_option_is_a_flag_and_only_twelve_are_shown(whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = flags(whence("trace", "--help").out)
    assert shown == [f"--{name.replace('_', '-')}" for name in VISIBLE]
    for name in TraceOptions.model_fields:
        if name == "columns":
            continue
        field = TraceOptions.model_fields[name]
        flag = f"--{name}" if field.annotation is bool else f"--{name}=1"
        said = whence("trace", flag, "--model=x")
        assert "No such option" not in said.err, name


def test_every_setting_is_described_once() -> None:
    for record in (TraceRequest, TraceOptions):
        for name, field in record.model_fields.items():
            assert name == "options" or (field.description or "").rstrip().endswith((".", "Never implied.")), name


def test_verbs_exist() -> None:
    for name, (module, line) in VERBS.items():
        assert callable(getattr(importlib.import_module(f"whence.cli.{module}"), name))
        assert line.endswith((".", "?"))


EVALUATIONS = [["evaluate", "--help"], *(["evaluate", verb, "--help"] for verb in evaluate.VERBS)]


def test_evaluations_exist() -> None:
    for name, (module, line) in evaluate.VERBS.items():
        assert callable(getattr(importlib.import_module(f"whence.cli.{module}"), name))
        assert line.endswith((".", "?"))


@pytest.mark.parametrize("arguments", [["--help"], ["trace", "--help"], *EVALUATIONS])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from whence.cli.main import run; run(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'scipy.stats'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_version(whence: Call) -> None:
    said = whence("--version")
    assert said.code == 0
    assert re.fullmatch(r"whence \d+\.\d+\.\d+\n", said.out)


def test_no_arguments_is_help(whence: Call) -> None:
    assert "Usage" in (said := whence()).out + said.err
