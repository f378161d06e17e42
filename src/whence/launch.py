"""What a launcher (torchrun, accelerate, srun) tells the processes that it starts: which of how many each one is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from whence.errors import OptionError

TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# SLURM_NTASKS is also set in a batch script, where this may be the only process; the step's variables are not.
STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
_ENTRY = re.compile(r"(\d+)(?:\(x(\d+)\))?")
PORTS = range(15_000, 31_000)  # below those that systems give to whoever asks for any


@dataclass(frozen=True)
class Launched:
    """A process among those that were started together.

    Attributes:
        rank: which, from 0.
        world: of how many.
        local: its place on its machine.
    """

    rank: int
    world: int
    local: int


def launched(environment: Mapping[str, str]) -> Launched | None:
    """What the launcher says; None where there is none. What torchrun says comes before what the step around it says.

    Args:
        environment: ``os.environ``.
    """
    for rank, size, local in (TORCH, STEP):
        told = environment.get(rank, ""), environment.get(size, "")
        if all(part.isdigit() for part in told) and (rank in TORCH or _is_task(environment)):
            return Launched(int(told[0]), int(told[1]), int(environment.get(local) or 0))
    return None


def _is_task(environment: Mapping[str, str]) -> bool:
    """Is this a task of the step that the variables speak of?

    ``sbatch`` inside a step hands them on to the new job's script, which is one process. There SLURM has written down
    anew which tasks run on this node (one), and on how many nodes the job is.
    """
    here, nodes = environment.get("SLURM_GTIDS"), _counts(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = environment.get("SLURM_NODEID", "0")
    if here is None or not nodes or not node.isdigit():
        return True
    of_job = environment.get("SLURM_JOB_NUM_NODES", "")
    if of_job.isdigit() and len(nodes) > int(of_job):
        return False
    return int(node) < len(nodes) and nodes[int(node)] == len(here.split(","))


def _counts(text: str) -> list[int]:
    """``2(x3),1`` is 2, 2, 2, 1; nothing for what is written otherwise."""
    found = [_ENTRY.fullmatch(part) for part in text.split(",")]
    return [int(m[1]) for m in found if m for _ in range(int(m[2] or 1))] if all(found) else []


def for_torch(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which the processes of ``torch.distributed`` find each other; given ones stay.

    Raises:
        OptionError: no launcher, or one that does not say where the first process is.
    """
    found = launched(environment)
    if found is None:
        raise OptionError(
            "fsdp in a process that no launcher started",
            wanted="one process per GPU",
            try_="torchrun --nproc-per-node 2 -m whence ... --fsdp",
        )
    alone = environment.get("SLURM_STEP_NUM_NODES") == "1" and "RANK" not in environment
    if not alone and "MASTER_ADDR" not in environment:
        raise OptionError(
            "fsdp over several machines without MASTER_ADDR",
            wanted="the machine of the first process, in the environment of all",
            try_='export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) before srun',
        )
    numbers = (found.rank, found.world, found.local)
    own = {name: str(number) for name, number in zip(TORCH, numbers, strict=True)}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port(environment))}
    return {name: environment.get(name, value) for name, value in {**own, **place}.items()}


def _port(environment: Mapping[str, str]) -> int:
    """The same for all processes of a step, and mostly another for the next."""
    step = [environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    job, number = (int(part) if part.isdigit() else 0 for part in step)
    return PORTS[(10 * job + number) % len(PORTS)]


def require_one(environment: Mapping[str, str], *, verb: str, try_: str) -> None:
    """Refuse to do the same work once for every process of a launcher.

    Raises:
        OptionError: there are several.
    """
    found = launched(environment)
    if found is not None and found.world > 1:
        raise OptionError(
            f"{verb} started {found.world} times by one launcher",
            wanted="one process: every one of them would do all the work and write the same files",
            try_=try_,
        )
