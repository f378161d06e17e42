"""A module imported from another text than its file's: how a mutant gets into a process without touching the disk.

Only the standard library: a ``sitecustomize`` runs this in every process that a test starts, when ``WHENCE_MUTANT`` is
``module=file of the text``.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

VARIABLE = "WHENCE_MUTANT"


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the other text under the file's own name; nothing is cached."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str):
        return compile(self._text, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self._name:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert found is not None and found.origin is not None
        loader = _Loader(fullname, found.origin, self._text)
        folders = found.submodule_search_locations
        return importlib.util.spec_from_file_location(
            fullname, found.origin, loader=loader, submodule_search_locations=folders
        )


def install(told: str | None = None) -> None:
    """Use the text that ``WHENCE_MUTANT`` (or ``told``) names from now on."""
    told = told or os.environ.get(VARIABLE, "")
    if told:
        name, _, file = told.partition("=")
        sys.meta_path.insert(0, _Finder(name, Path(file).read_text("utf-8")))
