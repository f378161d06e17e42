"""From a few batches to all of them, where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from whence.curvature.fit import looks
from whence.plan.glimpse import Timed, batch_tokens, spread
from whence.plan.laws import Cost, all_batches, batches_for, rows_needed, total
from whence.plan.meter import Meter, free_disk
from whence.plan.record import Disk, Step, padding
from whence.tasks.batches import plan_batches


def _true_seconds(rows: int, longest: int) -> float:
    """Linear in tokens, with a part of attention that grows with the row."""
    return rows * longest * (1e-3 + 1e-5 * longest)


def test_time_of_all_batches_from_five() -> None:
    lengths = [10 + (n * n) % 190 for n in range(900)]
    plan = plan_batches(lengths, token_budget=1024)
    sizes = batch_tokens(plan.batches, plan.lengths)
    truth = sum(_true_seconds(*size) for size in sizes)
    seen = [Timed(n, _true_seconds(*sizes[n]), 2 * _true_seconds(*sizes[n])) for n in spread(len(sizes), 5)]
    found = total(all_batches(seen, sizes))
    assert found.seconds == pytest.approx(truth, rel=0.02)
    assert found.cpu_seconds == pytest.approx(2 * truth, rel=0.02)
    assert total(all_batches([], sizes)) == Cost()


def test_one_slow_moment_does_not_decide() -> None:
    sizes = [(8, 16)] * 40
    seen = [Timed(n, 9.0 if n == 3 else 1.0, 1.0) for n in range(7)]
    assert total(all_batches(seen, sizes)).seconds == pytest.approx(40.0)


def test_spread_reaches_both_ends() -> None:
    assert spread(3, 6) == [0, 1, 2]
    chosen = spread(100, 7)
    assert chosen[:2] == [0, 99] and len(set(chosen)) == 7 == len(chosen)
    assert spread(100, 1) == [0]


@pytest.mark.parametrize(("slope", "scale"), [(1.0, 4.0), (0.8, 1.5), (1.3, 20.0)])
def test_rows_needed_follows_the_trend(slope: float, scale: float) -> None:
    trail = [{"rows": n, "predicted": 1 - scale * n**-slope} for n in (64, 80, 96, 128)]
    truth = (scale / (1 - 0.9925)) ** (1 / slope)
    rows, settled = rows_needed(trail, 0.9925, 10**6)
    assert rows == pytest.approx(truth, rel=0.02) and not settled
    assert rows_needed(trail, 0.9925, 200) == (200, False)


def test_rows_of_a_check_that_was_satisfied_are_known() -> None:
    trail = [{"rows": 32, "predicted": 0.9}, {"rows": 40, "predicted": 0.995}]
    assert rows_needed(trail, 0.9925, 1000) == (40, True)
    assert rows_needed([], 0.9925, 1000) == (1000, False)


def test_batches_stop_at_a_look() -> None:
    sizes = [(10, 5)] * 50
    order = list(range(50))
    assert batches_for(95, order, sizes, []) == 10
    assert batches_for(95, order, sizes, looks(50)) == next(n for n in looks(50) if n >= 10)
    assert batches_for(10**6, order, sizes, looks(50)) == 50


def test_the_meter_sees_memory_come_and_go() -> None:
    meter = Meter()
    with meter.reading() as found:
        block = torch.ones(20_000_000)  # 80 MB: of up to 32 MB malloc may reuse what it kept, and nothing new is seen
        assert block.sum() > 0
        del block
    assert found.peak - found.before > 75_000_000
    assert found.cpu_seconds > 0 and found.seconds > 0
    assert (meter.available() or 0) > 0


def test_padding_and_records() -> None:
    assert padding([(2, 10), (1, 5)], 20) == {"batches": 2, "padded_tokens": 25, "padding": 0.2}
    step = Step("score", Cost(1.234, 2.0), rows=50).plain(100)
    assert step["passes"] == 0.5 and step["seconds"] == 1.23 and step["peak_bytes"] is None
    assert Disk({"a": 3, "b": 4}, "/", 10).plain() == {
        "bytes": 7, "files": {"a": 3, "b": 4}, "folder": "/", "free_bytes": 10
    }  # fmt: skip


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path) -> None:
    folder, free = free_disk(tmp_path / "not" / "yet")
    assert folder == str(tmp_path) and free > 0 and math.isfinite(free)
