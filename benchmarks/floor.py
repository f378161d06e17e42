"""The floor: one plain forward and backward over the same rows. Its CPU seconds are the unit, a *pass*.

Parameters require grad, the loss is summed, one thread, CPU seconds of the process (all threads, no waiting). It is
to be measured in the same process as the thing compared with it, before and after, because CPU speed drifts.
Needs only torch and NumPy, so that it runs in the peers' environments too.

Run: python -m benchmarks.floor
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.workload import BATCH, WORK, load_workload, summed_loss


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds that this process spends on `work`."""
    start = time.process_time()
    work()
    return time.process_time() - start


def one_pass(model: torch.nn.Module, rows: np.ndarray, batch: int = BATCH) -> float:
    """CPU seconds of a forward and backward over all rows."""

    def sweep() -> None:
        for start in range(0, len(rows), batch):
            summed_loss(model, torch.from_numpy(rows[start : start + batch])).backward()
            model.zero_grad(set_to_none=True)

    return cpu_seconds(sweep)


def peak_megabytes() -> float:
    """The largest resident size of this process so far, in MB (10^6 bytes).

    Not ru_maxrss where it can be avoided: Linux hands the launching process's peak on to the process launched.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK / "workload")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    workload = load_workload(args.work)
    model = workload.model()
    seconds = [one_pass(model, workload.rows) for _ in range(args.repeats)]
    print(json.dumps({"floor_seconds": statistics.median(seconds), "all": seconds, "peak_mb": peak_megabytes()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
