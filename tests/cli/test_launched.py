"""Verbs that a launcher starts several times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import Place, Said

TWO = {"RANK": "0", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize("environment", TWO, ids=["torchrun", "srun"])
def test_a_trace_is_not_done_twice(
    environment: dict[str, str], whence: Callable[..., Said], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would write the same folder; whoever came second was told that the first holds it."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ask = ["ask", "--index", "index", "--prompt", "the cat", "--response", " sat"]
    for verb in (place.trace, ask):
        said = whence(*verb, "-o", "run")
        assert said.code == 2 and f"whence {verb[0]} started 2 times by one launcher" in said.err
        assert "--fsdp" in said.err and not Path("run").exists()
