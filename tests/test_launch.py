"""What a launcher tells its processes, as real ones said it (the SLURM variables are those of 22.05)."""

from __future__ import annotations

import pytest

from whence.errors import OptionError
from whence.launch import PORTS, Launched, for_torch, launched, require_one
from whence.watch import is_first

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
BATCH = {  # the script of `sbatch --ntasks=3`
    "SLURM_JOB_ID": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GTIDS": "0",
    "SLURM_NTASKS": "3", "SLURM_NPROCS": "3", "SLURM_JOB_NUM_NODES": "1",
}  # fmt: skip
TASK = {  # the third task of `srun -n 3`
    "SLURM_JOB_ID": "6", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_LOCALID": "2", "SLURM_NODEID": "0",
    "SLURM_GTIDS": "0,1,2", "SLURM_NTASKS": "3", "SLURM_JOB_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "3",
}  # fmt: skip
ELSEWHERE = {**TASK, "SLURM_JOB_NUM_NODES": "3", "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}


def test_who_the_launcher_says_this_is() -> None:
    assert launched({}) is None and launched(BATCH) is None
    assert launched(TASK) == Launched(2, 3, 2)
    assert launched({**TASK, **TORCHRUN}) == Launched(1, 4, 1)  # torchrun in a step
    assert launched({"RANK": "x", "WORLD_SIZE": "2"}) is None


@pytest.mark.parametrize("step", [TASK, ELSEWHERE], ids=["one node", "three nodes"])
def test_a_script_submitted_from_a_step_is_one_process(step: dict[str, str]) -> None:
    """``sbatch`` hands the variables of the step on; only what SLURM writes anew is true."""
    assert launched({**step, **BATCH}) is None


def test_tasks_on_several_nodes() -> None:
    spread = {**ELSEWHERE, "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_PROCID": "4", "SLURM_NODEID": "2"}
    assert launched({**spread, "SLURM_GTIDS": "4"}) == Launched(4, 3, 2)
    assert launched({**spread, "SLURM_GTIDS": "2,3", "SLURM_NODEID": "1"}) is not None
    assert launched({**spread, "SLURM_GTIDS": "0", "SLURM_NODEID": "0"}) is None
    # an older or a newer SLURM that writes them otherwise is believed
    assert launched({**spread, "SLURM_STEP_TASKS_PER_NODE": "two"}) is not None


@pytest.mark.parametrize(
    ("environment", "first"),
    [({}, True), (BATCH, True), (TASK, False), ({**TASK, "SLURM_PROCID": "0"}, True), (TORCHRUN, False)],
    ids=["alone", "a batch script", "third task", "first task", "torchrun"],
)
def test_one_answers_for_all(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", *TASK):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first() == first


def test_tasks_of_one_node_find_each_other() -> None:
    found = for_torch(TASK)
    assert found.pop("MASTER_PORT") == for_torch({**TASK, "SLURM_PROCID": "0"})["MASTER_PORT"]
    assert found == {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2", "MASTER_ADDR": "127.0.0.1"}
    ports = {int(for_torch({**TASK, "SLURM_JOB_ID": str(job)})["MASTER_PORT"]) for job in range(500)}
    assert len(ports) == 500 and ports <= set(PORTS)


def test_what_is_given_stays() -> None:
    assert for_torch(TORCHRUN) == TORCHRUN
    assert for_torch({**ELSEWHERE, "SLURM_GTIDS": "2", "MASTER_ADDR": "node1"})["MASTER_ADDR"] == "node1"


def test_what_is_missing_is_said() -> None:
    with pytest.raises(OptionError, match="no launcher"):
        for_torch(BATCH)
    with pytest.raises(OptionError, match="MASTER_ADDR") as caught:
        for_torch({**ELSEWHERE, "SLURM_GTIDS": "2"})
    assert "scontrol show hostnames" in caught.value.try_


def test_the_same_work_is_not_done_twice() -> None:
    require_one({**TASK, **BATCH}, verb="it", try_="")
    require_one({"RANK": "0", "WORLD_SIZE": "1"}, verb="it", try_="")
    with pytest.raises(OptionError, match="whence trace started 3 times by one launcher"):
        require_one(TASK, verb="whence trace", try_="one")
