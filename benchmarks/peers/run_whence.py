"""EK-FAC with whence, every row used. Run: python -m benchmarks.peers.run_whence --fisher empirical"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.engine import fit_and_score, open_sources
from benchmarks.peers.measure import Clock, Job, run

FIT = ("covariance", "eigendecomposition", "eigenvalues")


def attribute(job: Job, clock: Clock) -> np.ndarray:
    sources = open_sources(job.workload, job.workload.model())
    clock.start()
    scores, parts = fit_and_score(sources, rows="all", fisher=job.fisher)
    # The clock runs on to the scores; the fit's share is what its own stages took.
    clock.split("fit", cpu=sum(parts.seconds[name] for name in FIT))
    return scores


if __name__ == "__main__":
    sys.exit(run("whence", ("whence", "transformers"), attribute))
