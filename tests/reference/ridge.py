"""Ridge regression, where everything is known in closed form: leave-one-out, leverage, any subset.

Objective: mean over rows of 0.5 (y - x'w)^2, plus 0.5 penalty |w|^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ridge:
    x_NF: np.ndarray
    y_N: np.ndarray
    penalty: float

    def fit(self, keep: np.ndarray | None = None) -> np.ndarray:
        """Weights on the rows of ``keep``; the sums are still divided by the *full* N, as removal means."""
        n = len(self.y_N)
        x, y = (self.x_NF, self.y_N) if keep is None else (self.x_NF[keep], self.y_N[keep])
        return np.linalg.solve(x.T @ x / n + self.penalty * np.eye(x.shape[1]), x.T @ y / n)

    @property
    def hessian(self) -> np.ndarray:
        return self.x_NF.T @ self.x_NF / len(self.y_N) + self.penalty * np.eye(self.x_NF.shape[1])

    def leverage(self) -> np.ndarray:
        """h_n = x_n' H^-1 x_n / N."""
        return np.einsum("nf,fg,ng->n", self.x_NF, np.linalg.inv(self.hessian), self.x_NF) / len(self.y_N)

    def leave_one_out(self, n: int) -> np.ndarray:
        """Weights after a refit without row n."""
        keep = np.ones(len(self.y_N), dtype=bool)
        keep[n] = False
        return self.fit(keep)

    def leave_one_out_closed(self, n: int) -> np.ndarray:
        """The same without a refit: the influence step divided by 1 - leverage."""
        w = self.fit()
        gradient = (self.x_NF[n] @ w - self.y_N[n]) * self.x_NF[n]
        return w + np.linalg.solve(self.hessian, gradient) / len(self.y_N) / (1 - self.leverage()[n])


def lds(measure, scores_QN: np.ndarray, subsets: list[np.ndarray]) -> np.ndarray:
    """Brute-force linear datamodelling score, one per query: rank correlation over retrained subsets.

    ``measure(keep)`` retrains on a boolean mask and returns the Q losses; the prediction is minus the sum of the
    scores of the rows kept (positive = proponent = lowers the loss).
    """
    true = np.stack([measure(keep) for keep in subsets])
    predicted = np.stack([-scores_QN[:, keep].sum(1) for keep in subsets])
    return np.array([_spearman(predicted[:, q], true[:, q]) for q in range(scores_QN.shape[0])])


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(v)).astype(float) for v in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])
