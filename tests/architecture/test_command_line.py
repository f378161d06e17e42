"""The command line in the prose is the one that exists, and its help stays short."""

from __future__ import annotations

import re

import pytest

from architecture.tree import ROOT
from whence.cli import evaluate
from whence.cli.main import GROUPS, VERBS, run
from whence.options import TraceOptions, TraceRequest

MAX_FLAGS = 12
EVERYWHERE = {"--help", "--json", "--quiet", "--debug", "--version"}
# every verb as it is written after `whence`; a group and each of its verbs
SPOKEN = [*VERBS, *(f"evaluate {verb}" for verb in evaluate.VERBS)]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _help(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    assert run([*verb.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", SPOKEN)
def test_few_flags_in_the_help(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = set(re.findall(r"^\W*(--[a-z][\w-]*)", _help(verb, monkeypatch, capsys), flags=re.MULTILINE)) - EVERYWHERE
    assert len(flags) <= MAX_FLAGS, f"whence {verb}: {sorted(flags)}"


def _commands() -> list[tuple[str, str]]:
    """(page, command) of every whence command in a console block, continued lines joined."""
    found = []
    for path in PROSE:
        for block in re.findall(r"```console\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.match(r"\$ (?:\.venv/bin/)?whence (.+)", line)
                if command:
                    found.append((str(path.relative_to(ROOT)), command[1].split("  #")[0]))
    return found


def test_commands_in_the_prose_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands = _commands()
    assert len(commands) > 3
    helps = {verb: _help(verb, monkeypatch, capsys) for verb in SPOKEN}
    settings = {f"--{name.replace('_', '-')}" for name in (*TraceOptions.model_fields, *TraceRequest.model_fields)}
    for page, command in commands:
        first, *rest = command.split()
        verb = f"{first} {rest[0]}" if first in GROUPS and rest else first
        assert verb in SPOKEN, f"{page}: no verb {verb}"
        known = EVERYWHERE | set(re.findall(r"(?<!\w)--?[a-z][\w-]*", helps[verb]))
        known |= settings if verb == "trace" else set()
        for flag in re.findall(r"(?<=\s)--?[a-z][\w-]*", command):
            assert flag in known, f"{page}: whence {verb} has no {flag}"
