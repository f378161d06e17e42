"""What the source may not contain: calls that run somebody's data, and traces of one developer's machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator

import pytest

from architecture.tree import PACKAGE, ROOT, call_name, imports, modules

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


# whoever writes a result writes it whole or not at all: only store/atomic.py touches the disk, but for these
WRITES = {"fsync", "replace", "rename", "link", "symlink", "unlink", "rmdir", "rmtree", "remove", "mkdir", "makedirs"}
WRITES |= {"save", "savez", "savez_compressed", "copytree", "copyfile", "copy", "move", "write"}
WRITERS = {"os", "shutil", "np", "numpy", "torch"}
MAY_WRITE = {
    "store/atomic.py": "the only place",
    "store/run.py: unlink": "who holds a folder, and a manifest that is no longer true, are removed",
    "store/tables.py: unlink": "tables of an earlier result are removed before the new manifest",
    "demo/world.py: save_pretrained": "a model of the demonstration; the file that says it is finished comes last",
    "demo/quick.py: save_pretrained": "likewise",
    "evaluate/command.py: mkdir": "a temporary folder for the user's own command",
    "evaluate/bank.py: savez": "into memory",
    "callback.py: mkdir": "an empty folder",
    "cli/main.py: open": "the null device",
    "plan/meter.py: write_text": "a switch of the kernel, not a file",
}


def _writes(call: ast.Call) -> str | None:
    """The name of a call that changes the disk."""
    name = call_name(call)
    owner, _, method = name.rpartition(".")
    if owner in ("atomic", "part"):  # the temporary file that ``atomic.writing`` gives
        return None
    opened = [*call.args[:2], *(k.value for k in call.keywords if k.arg == "mode")]
    modes = [a.value for a in opened if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if method == "open" and any(set(mode) & set("wax+") and len(mode) <= 3 for mode in modes):
        return "open"
    if method in ("save_pretrained", "write_text", "write_bytes", "mkdir", "unlink", "touch", "rmdir"):
        return method
    return method if method in WRITES and owner.split(".")[0] in WRITERS else None


def test_only_one_file_writes() -> None:
    found = []
    for module in modules():
        place = module.path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(module.tree):
            what = _writes(node) if isinstance(node, ast.Call) else None
            if what and place not in MAY_WRITE and f"{place}: {what}" not in MAY_WRITE:
                found.append(f"{module.at(node)}: {call_name(node)}")
    assert not found, "write through whence.store.atomic:\n" + "\n".join(found)
