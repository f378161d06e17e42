"""What a trace keeps for another try: when it pays, what fits, and that a disk without room costs no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whence
from folders import animal_rows, tiny_llama, word_tokenizer
from whence import resuming
from whence.api import write_report
from whence.errors import ResourceError
from whence.results import Scores
from whence.store.unfinished import FOLDER, Part

QUESTION = {"prompt": "the cat sat on", "completion": " the mat ."}
GIVEN: dict[str, Any] = {"batch_tokens": 26, "fit_rows": "all"}


class Heard:
    def __init__(self) -> None:
        self.facts: list[tuple[str, dict[str, Any]]] = []
        self.said: list[str] = []

    def note(self, kind: str, text: str, **facts: Any) -> None:
        if kind in ("resumed", "unfinished"):
            self.said.append(text)
            self.facts.append((kind, facts))

    def step(self, stage: str, done: int, total: int) -> None: ...

    @property
    def taken(self) -> dict[str, Any]:
        return {
            facts["part"]: facts.get("rows", facts.get("stages")) for kind, facts in self.facts if kind == "resumed"
        }


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece after every batch; no time is spent on pages that nobody reads here, nor on waiting for the disk."""
    monkeypatch.setattr("os.fsync", lambda _handle: None)
    monkeypatch.setattr("whence.api.page", lambda _scores: "<p>")
    monkeypatch.setattr(resuming, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(resuming, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(resuming, "SHARE", float("inf"))


def run(out: Path, heard: Heard | None = None, **options: Any) -> Scores:
    model = tiny_llama().double(), word_tokenizer()
    given = {**GIVEN, "query": QUESTION, **options}
    return whence.attribute(model, train=animal_rows(16), out=out, watch=heard, **given)


def interrupted(out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("whence.api.save_scores", broken)
        run(out, **options)


def test_a_quick_run_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path / "run", monkeypatch)
    assert not (tmp_path / "run" / FOLDER).exists()


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fit_rows": "auto", "top_k": 2},
        {"method": "kfac", "normalise": "cosine", "offload": ("disk",)},
        {"candidates": "bm25:50%", "audit": 2},
    ],
    ids=str,
)
def test_goes_on_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    whole = run(tmp_path / "whole", **options)
    interrupted(tmp_path / "run", monkeypatch, **options)
    assert (tmp_path / "run" / FOLDER).is_dir()
    heard = Heard()
    found = run(tmp_path / "run", heard, **options)
    assert set(heard.taken) == {"fit", "score"}, heard.said
    assert found.values.tobytes() == whole.values.tobytes()
    assert not (tmp_path / "run" / FOLDER).exists()


@pytest.mark.usefixtures("everything")
def test_another_question_takes_the_fit_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path / "run", monkeypatch)
    heard = Heard()
    other = {"prompt": "a dog ran", "completion": " over the log ."}
    found = run(tmp_path / "run", heard, query=other)
    assert list(heard.taken) == ["fit"]
    assert any("of something else (questions)" in line for line in heard.said), heard.said
    assert np.array_equal(found.values, run(tmp_path / "new", query=other).values)


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize(
    ("option", "field"),
    [({"seed": 3}, "options.seed"), ({"max_length": 5, "damping": "relative:0.2"}, "data.batch_plan"),
     ({"layers": ("*.mlp.*",)}, "layers")],
)  # fmt: skip
def test_other_settings_begin_anew_and_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any], field: str
) -> None:
    interrupted(tmp_path / "run", monkeypatch)
    heard = Heard()
    run(tmp_path / "run", heard, **option)
    assert not heard.taken
    assert any(field in facts["differs"] for kind, facts in heard.facts if kind == "unfinished"), heard.said


@pytest.mark.usefixtures("everything")
def test_no_room_to_keep_anything_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Part, *_: object) -> None:
        raise ResourceError("no room to write it")

    monkeypatch.setattr(Part, "keep", full)
    heard = Heard()
    run(tmp_path / "run", heard)
    assert [line for line in heard.said if "nothing more of the fit is kept" in line] == heard.said[:1]
    assert write_report(tmp_path / "run", tmp_path / "report.html").is_file()


@pytest.mark.usefixtures("everything")
def test_two_stages_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"model": (tiny_llama(seed=5).double(), word_tokenizer()), "data": animal_rows(9), "alpha": 0.5}
    whole = run(tmp_path / "whole", pretraining=base)
    interrupted(tmp_path / "run", monkeypatch, pretraining=base)
    heard = Heard()
    found = run(tmp_path / "run", heard, pretraining=base)
    assert set(heard.taken) == {"fit-fine-tuning", "fit-pre-training", "score-fine-tuning", "score-pre-training"}
    assert found.values.tobytes() == whole.values.tobytes()
    interrupted(tmp_path / "run", monkeypatch, pretraining=base)
    heard = Heard()
    run(tmp_path / "run", heard, pretraining={**base, "alpha": 0.7})
    assert not any(name.startswith("score") for name in heard.taken), "a score depends on alpha"


@pytest.mark.usefixtures("everything")
def test_checkpoints_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (10, 20):
        place = tmp_path / "training" / f"checkpoint-{step}"
        tiny_llama(seed=step).save_pretrained(place)
    options: dict[str, Any] = {"checkpoints": str(tmp_path / "training"), "dtype": "float32"}
    whole = run(tmp_path / "whole", **options)
    interrupted(tmp_path / "run", monkeypatch, **options)
    heard = Heard()
    found = run(tmp_path / "run", heard, **options)
    assert set(heard.taken) == {"fit-10", "score-10", "fit-20", "score-20"}
    assert found.values.tobytes() == whole.values.tobytes()
