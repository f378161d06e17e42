"""The damping that a training implies, measured where it stopped.

A training that stops early does not reach the minimum of the mean loss J; it stays near where it started. Where it
stopped is the minimum of a *pulled* objective, J(w) + 1/2 (w - start)' P (w - start), if the pull P is such that

    grad J(w) = - P (w - start),

and the response of that minimum to a row is (G + P)^-1 g: the pull is the damping (ALGORITHMS 16: 1 / (rate x steps)
in SOURCE, Bae et al. 2024; the proximal term of Bae et al. 2022 has the same place). With one number per layer, least
squares along the way that the layer went gives

    P_layer = - <grad J, w - start> / |w - start|^2.

Both sides are at hand for a fine-tuned model whose base is known: one forward and backward pass over the rows. A layer
that is being pushed further along the way that it went has P > 0; where that cannot be told (P <= 0, or a training
that converged), the customary relative damping is the floor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from whence.errors import ModelError
from whence.gradients.layers import Conv1D, Layer, Layers
from whence.gradients.source import Closed, LiveGradients
from whence.linalg.damping import Damping, implied
from whence.linalg.matrix_batch import Full, MatrixBatch


def implied_damping(source: LiveGradients, start: nn.Module) -> Damping:
    """The pull per layer of the training from ``start`` to the source's model.

    Args:
        source: the trained model with its training rows.
        start: the model that training began with, of the same shape.

    Returns:
        A damping of kind ``implied``: absolute amounts per layer, on the scale of the curvature of the mean over rows
        of the summed loss. ``value`` is the one number that fits all layers best.

    Raises:
        ModelError: a start of another shape, or the finished model itself.
    """
    ways = displacement(source.layers, start)
    total = _Mean(ways)
    source.visit(total)
    along = {name: found / max(1, total.examples) for name, found in total.along.items()}
    length = {name: float(way.double().square().sum()) for name, way in ways.items()}
    if not sum(length.values()) > 0:
        raise ModelError(
            "the model that training started from has the very weights of the trained one",
            wanted="the checkpoint before this training",
            try_="the base model, or relative:10 without one",
        )
    amounts = {name: -along[name] / length[name] if length[name] > 0 else 0.0 for name in ways}
    return implied(amounts, -sum(along.values()) / sum(length.values()))


def displacement(layers: Layers, start: nn.Module) -> dict[str, Tensor]:
    """Trained minus starting weights of each followed layer, O x I with a bias as last column.

    Raises:
        ModelError: a start without one of the layers, or with another size of it.
    """
    known = dict(start.named_modules())
    ways = {}
    for layer in layers:
        before, after = _matrix(layer, known.get(layer.name)), _matrix(layer, layer.modules[0])
        if before is None or after is None or before.shape != after.shape:
            raise ModelError(
                f"the model that training started from has no layer {layer.name} of this size",
                wanted="the base model of this very training, of the same shape",
                try_="the folder or hub id that fine-tuning was given",
            )
        ways[layer.name] = after - before.to(after)
    return ways


def _matrix(layer: Layer, module: nn.Module | None) -> Tensor | None:
    """The O x I matrix of a module's weights, in at least float32; None when it has none that could be read."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or (bias is None) is layer.bias:
        return None
    matrix = (weight.T if isinstance(module, Conv1D) else weight.flatten(1)).detach()
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    return wide if bias is None else torch.cat([wide, bias.detach().to(wide)[:, None]], dim=1)


class _Mean:
    """Adds up the rows' gradients along each layer's way."""

    def __init__(self, ways: Mapping[str, Tensor]) -> None:
        self.ways = ways
        self.along: dict[str, float] = dict.fromkeys(ways, 0.0)
        self.examples = 0

    def see(self, layer: str, grads: MatrixBatch) -> None:
        way = Full(self.ways[layer][None].to(device=grads.device, dtype=grads.dtype))
        self.along[layer] += float(grads.dot(way).double().sum())

    def close(self, closed: Closed) -> None:
        self.examples += int(closed.finite.sum())
