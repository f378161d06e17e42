"""The clone that tests are run in, for what is not part of the package."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    """A module of the score-card; only inside its tests."""
    return importlib.import_module(f"scorecard.{name}")
