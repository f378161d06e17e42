"""EK-FAC with kronfluence: a Task, `fit_all_factors`, `compute_pairwise_scores`.

Its default damping is 1e-8; `damping_factor=None` gives 0.1 times the mean eigenvalue. Sampled labels are drawn with
`torch.multinomial`, as its own examples do. Run in its environment: python -m benchmarks.peers.run_kronfluence
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch.utils.data import Dataset

from benchmarks.peers.measure import Clock, Job, run
from benchmarks.workload import linear_layers, summed_loss


class Tokens(Dataset):
    """Rows of token ids."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index]


class NextToken(Task):
    """Summed next-token loss on the 28 linear layers."""

    def __init__(self, layers: list[str]) -> None:
        self.layers = layers

    def compute_train_loss(self, batch: torch.Tensor, model: torch.nn.Module, sample: bool = False) -> torch.Tensor:
        if not sample:
            return summed_loss(model, batch)
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        with torch.no_grad():
            labels = torch.multinomial(logits.detach().softmax(-1), num_samples=1).flatten()
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
        return summed_loss(model, batch)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.layers


def attribute(job: Job, clock: Clock) -> np.ndarray:
    model = job.workload.model()
    task = NextToken(linear_layers(model))
    model = prepare_model(model, task)
    analyzer = Analyzer(
        "peer", model, task, cpu=True, output_dir=str(job.scratch), disable_tqdm=True, disable_model_save=True
    )
    clock.start()
    analyzer.fit_all_factors(
        "ekfac",
        dataset=Tokens(job.workload.rows),
        per_device_batch_size=job.batch,
        factor_args=FactorArguments("ekfac", use_empirical_fisher=job.fisher == "empirical"),
    )
    clock.lap("fit")
    analyzer.compute_pairwise_scores(
        "pairwise",
        "ekfac",
        query_dataset=Tokens(job.workload.queries),
        train_dataset=Tokens(job.workload.rows),
        per_device_query_batch_size=len(job.workload.queries),
        per_device_train_batch_size=job.batch,
        score_args=ScoreArguments(damping_factor=None),
    )
    return analyzer.load_pairwise_scores("pairwise")["all_modules"].float().numpy()


if __name__ == "__main__":
    sys.exit(run("kronfluence", ("kronfluence", "transformers"), attribute))
