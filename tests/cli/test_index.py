"""``whence index`` and ``whence ask`` as a user runs them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import whence as library
from cli.conftest import Place, Said, process
from folders import animal_rows, model_folder, write_rows

Call = Callable[..., Said]
QUESTION = ("--prompt", "the cat sat on", "--response", " the mat .")


@pytest.fixture
def build(place: Place) -> list[str]:
    return ["index", "--model", str(place.model), "--data", str(place.data), "-o", "index", "--fit-rows", "all"]


def test_index_then_ask_says_what_trace_says(place: Place, build: list[str], whence: Call) -> None:
    made = whence(*build)
    assert made.code == 0, made.err
    assert "12 rows x" in made.err and "next: whence ask --index index" in made.err
    assert whence(*place.trace, "--fit-rows", "all", "-o", "traced").code == 0
    place.data.unlink()  # not needed any more
    said = whence("ask", "--index", "index", *QUESTION, "-o", "asked", "--report", "page.html")
    assert said.code == 0, said.err
    assert "proponents" in said.out and "open page.html" in said.err and Path("page.html").stat().st_size > 10_000
    asked, traced = library.load("asked"), library.load("traced")
    assert asked.train_ids == traced.train_ids
    np.testing.assert_allclose(asked.values, traced.values, atol=2e-3 * np.abs(traced.values).max())
    assert [r.train_id for r in asked.proponents(0, 3)] == [r.train_id for r in traced.proponents(0, 3)]
    assert whence("info", "asked").code == 0
    assert whence("report", "asked", "-o", "again.html").code == 0


def test_ndjson(build: list[str], whence: Call) -> None:
    records = whence(*build, "--json").records
    done = records[-1]
    assert done["type"] == "done" and done["rows"] == 12 and done["code"]["scheme"] == "fp16"
    assert {"model", "layers", "train", "fit", "index"} <= {r.get("kind") for r in records}
    said = whence("ask", "--index", "index", *QUESTION, "--top-k", 2, "--json").records
    scores = [r for r in said if r["type"] == "score"]
    assert [r["rank"] for r in scores if r["side"] == "proponent"] == [1, 2]
    assert said[-1]["type"] == "done"


def test_a_cache(build: list[str], whence: Call) -> None:
    pytest.importorskip("faiss")
    assert whence(*build).code == 0
    first, then = (whence("ask", "--index", "index", *QUESTION, "--cache", "faiss:2", "--audit", 0) for _ in range(2))
    assert first.code == then.code == 0, then.err
    assert "made of 12 rows, all of which were scored" in " ".join(first.err.split())
    assert "4 of 12 rows were candidates" in " ".join(then.err.split())
    assert next(Path("index/.cache").iterdir()).name.startswith("faiss-")


def test_again_keeps_what_is_finished(build: list[str], whence: Call) -> None:
    assert whence(*build, "--budget", 0.3).code == 0
    before = {p.name: p.stat().st_mtime_ns for p in Path("index").glob("shard-*.safetensors")}
    again = whence(*build, "--budget", 0.3)
    assert again.code == 0 and "1 of them were there" in again.err
    assert {p.name: p.stat().st_mtime_ns for p in Path("index").glob("shard-*.safetensors")} == before


@pytest.mark.parametrize(
    ("change", "field"),
    [(["--budget", "0.2"], "compression.budget"), (["--method", "kfac"], "options.method"), (["--seed", "3"], "seed")],
)
def test_another_plan_is_refused(build: list[str], whence: Call, change: list[str], field: str) -> None:
    assert whence(*build).code == 0
    said = whence(*build, *change)
    assert said.code == 4 and field in said.err and "Traceback" not in said.err


def test_other_rows_and_models_are_refused(place: Place, build: list[str], whence: Call, tmp_path: Path) -> None:
    assert whence(*build).code == 0
    write_rows(place.data, animal_rows(11))
    said = whence(*build)
    assert said.code == 4 and "data" in said.err
    other = model_folder(tmp_path / "other", seed=5)
    said = whence("ask", "--index", "index", *QUESTION, "--model", other)
    assert said.code == 4 and "model.safetensors" in said.err


def test_a_damaged_shard(build: list[str], whence: Call) -> None:
    assert whence(*build).code == 0
    shard = Path("index/shard-00000.safetensors")
    shard.write_bytes(shard.read_bytes()[:-3])
    said = whence("ask", "--index", "index", *QUESTION)
    assert said.code == 4 and "shard-00000.safetensors is damaged" in said.err and not said.out.strip()
    assert whence(*build).code == 0
    assert whence("ask", "--index", "index", *QUESTION).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("ask", "--index", "index"), 2, "no question"),
        (("ask", "--index", "index", "--prompt", "x"), 2, "without a response"),
        (("ask", "--index", "nowhere", *QUESTION), 4, "not an index"),
        (("ask", *QUESTION), 2, "--index"),
        (("ask", "--index", "index", *QUESTION, "--cache", "annoy"), 2, "cache 'annoy'"),
        (("ask", "--index", "index", *QUESTION, "--normalise", "theta"), 2, "theta"),
    ],
)
def test_mistakes(build: list[str], whence: Call, arguments: tuple[str, ...], code: int, said: str) -> None:
    assert whence(*build).code == 0
    found = whence(*arguments)
    assert found.code == code and said in found.err and "Traceback" not in found.err


@pytest.mark.parametrize(
    ("change", "said"),
    [(["--scheme", "sparze"], "sparse"), (["--budget", "0.001"], "bytes a row"), (["--method", "cg"], "per-layer")],
)
def test_what_cannot_be_built(build: list[str], whence: Call, change: list[str], said: str) -> None:
    found = whence(*build, *change)
    assert found.code == 2 and said in found.err and "Traceback" not in found.err


def test_killed_then_run_again(place: Place, build: list[str], whence: Call) -> None:
    """A real process, killed without warning while it works."""
    command = [*build, "--batch-tokens", 16, "--budget", 0.3]
    running = process(*command)
    until = time.monotonic() + 120
    while not Path("index/factors.json").exists() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert whence(*command).code == 0
    whole = [*command[: command.index("-o")], "-o", "whole", *command[command.index("-o") + 2 :]]
    assert whence(*whole).code == 0
    for name in ("shard-00000.safetensors", "factors.safetensors", "rows.parquet", "index-plan.json"):
        assert Path("index", name).read_bytes() == Path("whole", name).read_bytes(), name
