"""What the source may not contain: calls that run somebody's data, and traces of one developer's machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator

import pytest

from architecture.tree import ROOT, call_name, imports, modules

# serialisers that run code of the file they read
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "compile",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "pandas.read_pickle",
    "pd.read_pickle",
}


def _calls() -> Iterator[tuple[str, str, list[ast.keyword]]]:
    """(where, name, keywords) of every call in the source."""
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                yield module.at(node), call_name(node), node.keywords


def _is(keywords: list[ast.keyword], name: str, value: bool) -> bool:
    return any(k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value for k in keywords)


def test_no_unsafe_serialisers() -> None:
    for module in modules():
        for node, target in imports(module.tree):
            assert target.split(".")[0] not in UNSAFE_MODULES, f"{module.at(node)}: {target}"


def test_no_call_that_runs_data() -> None:
    for where, name, keywords in _calls():
        restricted = name == "torch.load" and _is(keywords, "weights_only", True)
        assert name not in UNSAFE_CALLS or restricted, f"{where}: {name}"
        for dangerous in ("allow_pickle", "trust_remote_code", "shell"):
            assert not _is(keywords, dangerous, True), f"{where}: {name}({dangerous}=True)"


def test_numpy_files_are_read_without_pickle() -> None:
    for where, name, keywords in _calls():
        assert name not in ("np.load", "numpy.load") or _is(keywords, "allow_pickle", False), where


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name]


def test_no_machine_paths() -> None:
    home = re.compile(r"(?<![\w./])/(?:root|work|home/\w+|Users/\w+)/[\w.]")
    found = []
    for name in _tracked():
        path = ROOT / name
        if not path.is_file() or path.suffix in (".png", ".parquet", ".gz", ".safetensors"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if home.search(line) and name != "tests/architecture/test_safety.py":
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, "paths of one machine:\n" + "\n".join(found)


def test_no_large_files() -> None:
    large = [n for n in _tracked() if (ROOT / n).is_file() and (ROOT / n).stat().st_size > 400_000]
    assert not large, f"over 400 kB: {large}"
