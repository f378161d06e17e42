"""TRAK's output function: the log-odds of the right answer, in place of its loss.

f = Σ over supervised tokens of log p / (1 - p). It does not saturate as log p does, and its gradient is that of the
loss divided by (1 - p): ∇L = (1 - p) ∇(-f) for one label, which is where TRAK's factor Q comes from (Park et al. 2023,
section 3.2). A measurement is better when lower, so it is -f.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import TaskError
from whence.tasks.base import Batch, Task
from whence.tasks.wrapping import Wrapping


@dataclass(frozen=True)
class Margin(Wrapping):
    """A task that is priced as before and *measured* by -f. Logits are B x C, or B x T x V of tokens.

    Position t of a language model prices token t + 1; a task whose position t prices label t says so by ``aligned``.
    """

    task: Task

    def fingerprint(self) -> dict[str, Any]:
        """The task's, and that its measurement is a margin."""
        return {**self.task.fingerprint(), "measurement": "margin"}

    def measurements(self, outputs: Tensor, batch: Batch) -> Tensor:
        """B values of -f, summed over supervised tokens."""
        odds_BT, where_BT = self._margins(outputs, batch)
        return -torch.where(where_BT, odds_BT, 0.0).sum(1)

    def doubts(self, outputs: Tensor, batch: Batch) -> Tensor:
        """B values of Q: 1 - p of the right answer, averaged over supervised tokens."""
        odds_BT, where_BT = self._margins(outputs, batch)
        return torch.where(where_BT, torch.sigmoid(-odds_BT), 0.0).sum(1) / where_BT.sum(1).clamp(min=1)

    def _margins(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return _token_margins(outputs, batch.labels, shifted=not getattr(self.task, "aligned", False))


def _token_margins(outputs: Tensor, labels: Tensor, *, shifted: bool) -> tuple[Tensor, Tensor]:
    """B x T log-odds of the labels and where they count (one column for a classifier).

    Raises:
        TaskError: outputs that are not logits over classes.
    """
    classes = not labels.is_floating_point()
    if classes and outputs.dim() == 3 and labels.dim() == 2:
        logits, labels = (outputs[:, :-1], labels[:, 1:]) if shifted else (outputs, labels)
    elif classes and outputs.dim() == 2 and labels.dim() == 1:
        logits, labels = outputs[:, None], labels[:, None]
    else:
        raise TaskError(
            f"outputs of shape {tuple(outputs.shape)} have no classes",
            wanted="logits of a classifier or a language model: a margin is the log-odds of a right answer",
            try_="logra or ekfac for regression",
        )
    where = labels >= 0
    at = labels.clamp(min=0)[..., None]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, at)[..., 0]
    # The others are summed without the right one: 1 - p taken from p would be all rounding where the model is sure.
    others = logits.scatter(-1, at, float("-inf")).logsumexp(-1)
    return chosen - others, where
