"""The environment: every package pinned, every dependency with its reason, the one package that must stay out."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from architecture.tree import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNPINNED_ON_PURPOSE = {"whence", "torchvision"}


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def _needed() -> set[str]:
    """Names of everything the core and the extras pull in on this machine."""
    extras = [r for rows in PROJECT["optional-dependencies"].values() for r in rows]
    todo = [Requirement(r) for r in (*PROJECT["dependencies"], *extras)]
    seen: set[tuple[str, str]] = set()
    names: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, str(requirement.extras)) in seen or name in UNPINNED_ON_PURPOSE:
            continue
        seen.add((name, str(requirement.extras)))
        names.add(name)
        try:
            declared = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in declared:
            child = Requirement(line)
            environments = [{"extra": extra} for extra in requirement.extras or [""]]
            if child.marker is None or any(child.marker.evaluate(e) for e in environments):
                todo.append(child)
    return names


def test_every_package_is_pinned() -> None:
    assert not _needed() - set(_pins()), "needed but not pinned in constraints.txt"


def test_torch_is_pinned_without_a_local_version() -> None:
    assert _pins()["torch"] == "2.13.0"


def test_torchvision_stays_out() -> None:
    """Its registry build does not match a CPU torch, and breaks ``import transformers``."""
    assert "torchvision" not in _pins()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("torchvision")


def test_every_core_dependency_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("\ndependencies = [") : text.index("[project.optional-dependencies]")]
    lines = [line for line in block.splitlines() if line.strip().startswith('"')]
    assert len(lines) == len(PROJECT["dependencies"])
    for line in lines:
        assert re.search(r'",\s+# \S', line), f"no reason given: {line.strip()}"
