"""EK-FAC with dattri-LLM: an AttributionTask and `EKFACAttributor.attribute`, gradients streamed live.

It fits from training labels only (empirical Fisher); `relative_damping` is the multiple of the mean eigenvalue. The
invasive capture, its fast one, skips the weight gradients. Run in its environment:
python -m benchmarks.peers.run_dattri_llm --fisher empirical
"""

from __future__ import annotations

import re
import sys

import numpy as np
import torch
from dattri_llm import AttributionArguments, AttributionTask, EKFACAttributor, HookManagerConfig

from benchmarks.peers.measure import DAMPING, Clock, Job, run
from benchmarks.workload import linear_layers, summed_loss


def samples(rows: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """Rows in the form of a Hugging Face dataset."""
    return [{"input_ids": torch.from_numpy(row)} for row in rows]


def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return summed_loss(model, batch["input_ids"])


def attribute(job: Job, clock: Clock) -> np.ndarray:
    if job.fisher != "empirical":
        raise SystemExit("dattri-LLM fits the empirical Fisher only: --fisher empirical")
    model = job.workload.model()
    layers = [f"^{re.escape(name)}$" for name in linear_layers(model)]
    arguments = AttributionArguments(
        output_dir=str(job.scratch),
        per_device_train_batch_size=job.batch,
        per_device_eval_batch_size=job.batch,
        use_cpu=True,
    )
    attributor = EKFACAttributor(arguments, task=AttributionTask(loss, model))
    fit = attributor.fit_raw

    def fit_and_lap(source: object) -> object:
        factors = fit(source)
        clock.lap("fit")
        return factors

    attributor.fit_raw = fit_and_lap
    clock.start()
    scores = attributor.attribute(
        samples(job.workload.rows),
        samples(job.workload.queries),
        hook_config=HookManagerConfig(invasive_linear_io=layers),
        damping=DAMPING,
        relative_damping=True,
    )
    return scores.agnostic_matrix()[1].float().cpu().numpy().T


if __name__ == "__main__":
    sys.exit(run("dattri_llm", ("dattri-llm", "transformers"), attribute))
