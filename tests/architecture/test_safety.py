"""What the source may not contain: calls that run somebody's data, and traces of one developer's machine."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

from architecture.tree import ROOT, Module, call_name, imports, modules

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

every_module = pytest.mark.parametrize("module", modules(), ids=[m.name or "whence" for m in modules()])


@every_module
def test_no_unsafe_serialisers(module: Module) -> None:
    for node, target in imports(module.tree):
        assert target.split(".")[0] not in UNSAFE_MODULES, f"{module.at(node)}: {target}"


@every_module
def test_no_call_that_runs_data(module: Module) -> None:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = call_name(node)
        weights_only = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
        assert name not in UNSAFE_CALLS or (name == "torch.load" and weights_only), f"{module.at(node)}: {name}"
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            dangerous = keyword.arg in ("allow_pickle", "trust_remote_code", "shell") and value is True
            assert not dangerous, f"{module.at(node)}: {name}({keyword.arg}=True)"


@every_module
def test_numpy_files_are_read_without_pickle(module: Module) -> None:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and call_name(node) in ("np.load", "numpy.load"):
            said = any(k.arg == "allow_pickle" and getattr(k.value, "value", None) is False for k in node.keywords)
            assert said, f"{module.at(node)}: say allow_pickle=False"


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
