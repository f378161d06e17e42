"""EK-FAC with bergson: `approximate_hessians`, then its pipeline for queries, inverse and scores.

It reads model and rows from disk; its token batch may not exceed the model's positions. Its default damping is 0.1
times the mean eigenvalue. Run in its environment: python -m benchmarks.peers.run_bergson
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
from bergson.config.config import (
    DataConfig,
    DistributedConfig,
    HessianConfig,
    HessianPipelineConfig,
    IndexConfig,
    InversionConfig,
    PreprocessConfig,
    QuerySetConfig,
    ScoreConfig,
)
from bergson.data import load_scores
from bergson.hessians.hessian_approximations import approximate_hessians
from bergson.hessians.pipeline import hessian_pipeline
from datasets import Dataset

from benchmarks.peers.measure import DAMPING, Clock, Job, run


def saved(rows: np.ndarray, folder: Path) -> str:
    """Path of a dataset folder that holds the rows as `input_ids`."""
    Dataset.from_dict({"input_ids": rows.tolist()}).save_to_disk(str(folder))
    return str(folder)


def attribute(job: Job, clock: Clock) -> np.ndarray:
    rows = saved(job.workload.rows, job.scratch / "rows")
    queries = saved(job.workload.queries, job.scratch / "queries")
    index = IndexConfig(
        run_path=str(job.scratch / "run"),
        model=str(job.workload.model_folder),
        precision="fp32",
        data=DataConfig(dataset=rows),
        token_batch_size=job.batch * job.workload.rows.shape[1],
        distributed=DistributedConfig(nproc_per_node=1),
    )
    hessian = HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=job.fisher == "empirical")
    fit_index = deepcopy(index)
    fit_index.run_path = str(job.scratch / "run" / "hessian" / "kfac")
    clock.start()
    approximate_hessians(fit_index, hessian)
    clock.lap("fit")
    pipeline = HessianPipelineConfig(
        query=QuerySetConfig(dataset=queries), inversion_cfg=InversionConfig(damping_factor=DAMPING), resume=True
    )
    hessian_pipeline(index, hessian, ScoreConfig(), PreprocessConfig(), pipeline)
    return np.asarray(load_scores(job.scratch / "run" / "scores")[:]).T


if __name__ == "__main__":
    sys.exit(run("bergson", ("bergson", "transformers"), attribute))
