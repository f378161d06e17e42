"""Multi-stage influence: what pre-training rows did to a model that was fine-tuned afterwards.

Fine-tuning is taken as the minimum of L_ft(θ) + (alpha / 2) |θ - θ_pt|²: it starts at the pre-trained weights and is
held near them by its finite length, alpha = 1 / (sum of learning rates). Differentiating both minima,

    d f / d ε = - alpha ∇f(θ_ft)ᵀ (H_ft + alpha)⁻¹ H_pt⁻¹ ∇l_m(θ_pt)

for a measurement f and a pre-training row m with weight ε in the mean pre-training loss ("Multi-stage influence",
arXiv 2505.05017, IJCAI 2025, which drops the factor alpha; here it stays, so that the result is in nats). A score is
minus this derivative: positive = proponent, and score / N_pt is the predicted rise of f without the row.

Both inverses act on the *query*, one after the other: their eigenbases differ and are never averaged. Only layers that
both stages share pass from one to the other, so the heads and even the tasks may differ. Alpha -> infinity is ordinary
influence on θ_pt of the fine-tuned query gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from whence.errors import LayerError, OptionError, did_you_mean
from whence.gradients.layers import Layer, Layers
from whence.linalg.damping import absolute
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import Gradients, Operator


@dataclass(frozen=True)
class Staged:
    """The two inverses in sequence.

    Attributes:
        tuned: (H_ft + alpha)⁻¹ over the fine-tuned model's layers.
        pretrained: (H_pt + damping)⁻¹ over the shared layers, under their pre-trained names.
        alpha: strength of the pull towards the pre-trained weights, in units of the mean summed loss.
        shared: fine-tuned layer name -> pre-trained layer name.
    """

    tuned: Operator
    pretrained: Operator
    alpha: float
    shared: Mapping[str, str]

    def to_tuning_rows(self, query: Gradients) -> dict[str, MatrixBatch]:
        """What fine-tuning rows' gradients are dotted with: (H_ft + alpha)⁻¹ ∇f."""
        return self.tuned.apply(query)

    def to_pretraining_rows(self, query: Gradients) -> dict[str, MatrixBatch]:
        """What pre-training rows' gradients are dotted with: H_pt⁻¹ alpha (H_ft + alpha)⁻¹ ∇f, on the shared layers."""
        return self.pretrained.apply(through_tuning(self.tuned.apply(query), self.alpha, self.shared))


def tuned_inverse(operator: Operator, alpha: float) -> Operator:
    """(H_ft + alpha)⁻¹: the pull towards θ_pt is the damping of this stage, and there is no other.

    Raises:
        OptionError: an alpha that is not above 0.
    """
    return operator.power(-1, absolute(checked_alpha(alpha)))


def checked_alpha(alpha: float) -> float:
    """Itself.

    Raises:
        OptionError: not above 0.
    """
    if not 0 < alpha < float("inf"):
        raise OptionError(f"alpha = {alpha}", wanted="a finite number above 0", try_="1 / (learning rate x steps)")
    return alpha


def through_tuning(solved: Gradients, alpha: float, shared: Mapping[str, str]) -> dict[str, MatrixBatch]:
    """The derivative d f / d θ_pt = alpha (H_ft + alpha)⁻¹ ∇f on the shared layers, under pre-trained names."""
    found = {}
    for name, theirs in shared.items():
        grads = solved[name]
        found[theirs] = grads.times(torch.full((len(grads),), alpha, dtype=grads.dtype, device=grads.device))
    return found


def implied_alpha(learning_rates: Sequence[float], *, loss_tokens: float = 1.0) -> float:
    """The pull that K steps of gradient descent amount to: 1 / (sum of their learning rates).

    Args:
        learning_rates: one per step.
        loss_tokens: mean supervised tokens per row, where the trainer averaged its loss over tokens; ours sums it.

    Raises:
        OptionError: no step with a learning rate above 0.
    """
    total = sum(learning_rates)
    if not total > 0:
        raise OptionError("learning rates that sum to 0", wanted="at least one step that moved the weights")
    return loss_tokens / total


def shared_layers(tuned: Layers, pretrained: Layers) -> dict[str, str]:
    """Layers that are the same weights in both models, fine-tuned name -> pre-trained name, in the model's order.

    Layers pair when their names are equal, or when one name is the other's ending and no second one is (a backbone
    wrapped under another prefix), and their sizes are.

    Raises:
        LayerError: none pair.
    """
    pairs = {}
    for layer in tuned:
        theirs = pretrained.layers.get(layer.name) or _by_ending(layer.name, pretrained)
        if theirs is not None and _same_size(layer, theirs):
            pairs[layer.name] = theirs.name
    if not pairs:
        first = next(iter(tuned.layers))
        raise LayerError(
            f"none of the {len(tuned)} layers of the fine-tuned model is a layer of the pre-trained one",
            wanted="the model that fine-tuning started from",
            try_=f"for {first}: {did_you_mean(first, pretrained.layers)}",
        )
    return pairs


def _by_ending(name: str, layers: Layers) -> Layer | None:
    found = [layer for layer in layers if layer.name.endswith("." + name) or name.endswith("." + layer.name)]
    return found[0] if len(found) == 1 else None


def _same_size(one: Layer, other: Layer) -> bool:
    return (one.outputs, one.inputs, one.bias) == (other.outputs, other.inputs, other.bias)
