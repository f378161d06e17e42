"""The environment of SLURM without SLURM: as its steps, batch scripts and requeued tasks see it.

``benchmarks/slurm_array.py`` does the same with a real one.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from reliability.crews import PATIENCE, is_stopped
from reliability.harness import forked, fresh, result_of, snapshot, workload
from reliability.sweeps import truth
from whence.store.crew import MEMBERS, VARIABLE

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", VARIABLE: str(PATIENCE)}


def task(rank: int, of: int) -> dict[str, str]:
    """What ``srun -n`` tells its tasks."""
    tasks = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": of, "SLURM_STEP_TASKS_PER_NODE": of}
    numbers = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": str(of)}
    return {**JOB, **numbers, "SLURM_GTIDS": ",".join(map(str, range(of))), **{k: str(v) for k, v in tasks.items()}}


def test_a_step_of_srun(place: Path) -> None:
    work = workload("small")
    whole = truth(work, place)
    for count in (2, 3):
        with fresh(place, "step") as folder:
            pids = [forked(lambda f=folder: work.build(f), environment=task(n, count)) for n in range(count)]
            assert [result_of(pid).code for pid in pids] == [0] * count
            assert snapshot(folder) == whole


def test_a_script_submitted_from_a_step_waits_for_nobody(place: Path) -> None:
    """Its environment still speaks of the step's three tasks; it is one."""
    work = workload("small")
    script = {**task(0, 3), "SLURM_JOB_ID": "8", "SLURM_GTIDS": "0", "SLURM_NTASKS": "1"}
    with fresh(place, "script") as folder:
        began = time.monotonic()
        assert result_of(forked(lambda: work.build(folder), environment=script)).code == 0
        assert time.monotonic() - began < PATIENCE


def test_a_task_is_requeued_while_the_others_work(place: Path) -> None:
    """Killed with a file half made, back under the same number before anybody misses it."""
    work = workload("small")
    whole = truth(work, place)
    with fresh(place, "requeued") as folder:
        other = forked(lambda: work.build(folder, shard="0/2"), faults_="stop@60", environment=JOB)
        until = time.monotonic() + 30
        while not is_stopped(other):
            assert time.monotonic() < until
            time.sleep(0.01)
        first = result_of(forked(lambda: work.build(folder, shard="1/2"), faults_="kill@60", environment=JOB))
        assert first.code == -signal.SIGKILL
        again = forked(lambda: work.build(folder, shard="1/2"), environment=JOB)
        while not list((folder / MEMBERS).glob("shard-1.1")):
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(other, signal.SIGCONT)
        assert (result_of(other).code, result_of(again).code) == (0, 0)
        assert snapshot(folder) == whole
