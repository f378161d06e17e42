"""What is said of a machine where the system says less than usual, and what is never said."""

from __future__ import annotations

import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from whence.store import provenance
from whence.store.provenance import HIDDEN, cpu_model, git_commit, peak_memory_bytes, redacted, redacted_argv, versions


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is run"))
    assert git_commit() is None


@pytest.mark.parametrize("error", [OSError("gone"), subprocess.TimeoutExpired("git", 5)])
def test_a_git_that_fails_costs_no_run(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/git")
    monkeypatch.setattr(subprocess, "run", fail)
    assert git_commit() is None


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_the_commit_is_the_working_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None  # outside of any clone

    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "one")
    assert git_commit() == git("rev-parse", "HEAD")


def test_a_package_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "whence-of-another-world"))
    assert list(versions()) == ["numpy"]


def test_the_processor_is_named_as_far_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"text": "processor\t: 0\nmodel name\t: Abacus 9\nmodel name\t: another\n"}

    def read(self: Path, *_: Any, **__: Any) -> str:
        if told["text"] is None:
            raise OSError("no such file")
        return told["text"]

    monkeypatch.setattr(Path, "read_text", read)
    assert cpu_model() == "Abacus 9"
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "abacus64")
    for silent in ("processor : 0\n", None):
        told["text"] = silent
        assert cpu_model() == "abacus64"
    monkeypatch.setattr(platform, "processor", lambda: "an abacus")
    assert cpu_model() == "an abacus"


class Usage:
    ru_maxrss = 3000


@pytest.mark.parametrize(("system", "wanted"), [("linux", 3000 * 1024), ("darwin", 3000)])
def test_the_peak_without_proc(monkeypatch: pytest.MonkeyPatch, system: str, wanted: int) -> None:
    """KiB, and bytes on a Mac."""
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: Usage())
    assert peak_memory_bytes() == wanted
    monkeypatch.setattr(provenance, "resource", None)
    assert peak_memory_bytes() is None


def test_the_peak_where_proc_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "Name:\tpython\n")
    assert peak_memory_bytes() is None
    monkeypatch.setattr(Path, "read_text", lambda self: "Name:\tpython\nVmHWM:\t    2048 kB\n")
    assert peak_memory_bytes() == 2048 * 1024


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--token", "abc", "next"], ["--token", HIDDEN, "next"]),
        (["--hf-token=abc", "next"], [f"--hf-token={HIDDEN}", "next"]),
        (["--password"], ["--password"]),
        (["-o", "run", "--tokens", "5"], ["-o", "run", "--tokens", "5"]),  # a number of tokens is no secret
        (["s3://me:pw@host/x"], [f"s3://{HIDDEN}@host/x"]),
        (["https://h/x?a=1&Signature=abc&b=2"], [f"https://h/x?a=1&Signature={HIDDEN}&b=2"]),
        (["hf_abcdefgh", "sk-abcdefgh", "ghp_abcdefgh", "AKIA0123456789AB"], [HIDDEN] * 4),
        (["hf_short", "task-oriented"], ["hf_short", "task-oriented"]),
    ],
)  # fmt: skip
def test_what_is_hidden_and_what_is_not(given: list[str], shown: list[str]) -> None:
    assert redacted_argv(given) == shown
    assert redacted(" ".join(shown)) == " ".join(shown)  # nothing is left to hide
