"""Checkpoints of a Trainer's output folder: order, learning rates, and hostile or broken content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whence.errors import ModelError, OptionError
from whence.gradients.checkpoints import find_checkpoints, logged_rates, mean_weights, tracin_weights


def make(folder: Path, steps: list[int], history: list | None = None) -> Path:
    """Folders in the order given; the state with the whole history is in the last one, as the Trainer leaves it."""
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
    if history is not None:
        state = {"global_step": max(steps), "log_history": history}
        (folder / f"checkpoint-{max(steps)}" / "trainer_state.json").write_text(json.dumps(state))
    return folder


def log(**rates: float) -> list[dict]:
    return [{"step": int(k[1:]), "learning_rate": v, "loss": 1.0} for k, v in rates.items()]


def test_order_is_by_step_not_by_string(tmp_path):
    found = find_checkpoints(make(tmp_path, [100, 20, 3], log(s3=0.3, s20=0.2, s100=0.1)))
    assert [c.step for c in found] == [3, 20, 100]
    assert [c.path.name for c in found] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]
    assert [c.learning_rate for c in found] == tracin_weights(found) == [0.3, 0.2, 0.1]
    assert mean_weights(found) == pytest.approx([1 / 3] * 3)


def test_the_rate_is_the_mean_since_the_checkpoint_before(tmp_path):
    """Rates by step: 1-5 .5, 6-10 .4, 11-20 .3, and the last one for what was not logged."""
    found = find_checkpoints(make(tmp_path, [4, 15, 30], log(s5=0.5, s10=0.4, s20=0.3)))
    by_step = [0.5] * 5 + [0.4] * 5 + [0.3] * 20
    wanted = [sum(by_step[a:b]) / (b - a) for a, b in ((0, 4), (4, 15), (15, 30))]
    assert [c.learning_rate for c in found] == pytest.approx(wanted)


def test_a_schedule_that_ends_at_zero_does_not_silence_the_last_checkpoint(tmp_path):
    found = find_checkpoints(make(tmp_path, [10, 20], log(s5=1.0, s10=0.6, s15=0.4, s20=0.0)))
    assert tracin_weights(found) == pytest.approx([0.8, 0.2])


def test_untrained_and_huge_steps(tmp_path):
    found = find_checkpoints(make(tmp_path, [0, 10**17], log(s5=1.0)))
    assert [c.learning_rate for c in found] == [1.0, 1.0]


def test_every_state_counts(tmp_path):
    """Someone kept only the early state in one folder, and the final one at the top."""
    make(tmp_path, [5, 10], log(s10=0.1))
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log(s5=0.7)}))
    assert [c.learning_rate for c in find_checkpoints(tmp_path)] == [0.7, 0.1]


def test_what_is_no_checkpoint_is_passed_over(tmp_path):
    make(tmp_path, [7])
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-9.bak").mkdir()
    (tmp_path / "checkpoint-11").write_text("a file")
    (tmp_path / "checkpoint-13").symlink_to(tmp_path / "checkpoint-7", target_is_directory=True)
    assert [c.step for c in find_checkpoints(tmp_path)] == [7]


def test_missing_folders_and_checkpoints_are_explained(tmp_path):
    with pytest.raises(ModelError, match="no folder"):
        find_checkpoints(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no checkpoint-N"):
        find_checkpoints(tmp_path)
    inside = make(tmp_path, [3]) / "checkpoint-3"
    with pytest.raises(ModelError) as caught:
        find_checkpoints(inside)
    assert caught.value.try_ == str(tmp_path)


def test_unknown_and_zero_rates_are_explained(tmp_path):
    unknown = find_checkpoints(make(tmp_path / "a", [3, 4]))
    assert [c.learning_rate for c in unknown] == [None, None]
    with pytest.raises(OptionError, match="checkpoint-3, checkpoint-4: no learning rate"):
        tracin_weights(unknown)
    zero = find_checkpoints(make(tmp_path / "b", [3], log(s3=0.0)))
    with pytest.raises(OptionError, match="all learning rates are 0"):
        tracin_weights(zero)


@pytest.mark.parametrize(
    "history",
    [
        None, "text", 3, {"step": 1}, [None, 3, "x", []], [{"step": "3", "learning_rate": 0.1}],
        [{"step": 3, "learning_rate": float("nan")}], [{"step": 3, "learning_rate": "1"}], [{"step": 3}],
        [{"step": 3, "learning_rate": -1.0}],
    ],
)  # fmt: skip
def test_odd_histories_hold_no_rates(history):
    assert logged_rates({"log_history": history}) == {}


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "[" * 100_000])
def test_a_broken_state_is_one_clear_error(text, tmp_path):
    (make(tmp_path, [3]) / "checkpoint-3" / "trainer_state.json").write_text(text)
    with pytest.raises(ModelError, match=r"trainer_state\.json"):
        find_checkpoints(tmp_path)
