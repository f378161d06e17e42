"""Products with the Hessian or the Gauss-Newton matrix of fixed rows, through any model that a task can run.

Nothing here forms a matrix. For one micro-batch the graph is built once and then serves every vector of the block:

- Hessian: the gradient is taken with its own graph, and differentiated once more (Pearlmutter 1994).
- Gauss-Newton J'HJ: J v by the double-backward trick (the derivative of J'u in u, applied to v), the Hessian H of the
  task's own ``losses`` at the outputs, then J' by an ordinary backward pass (Schraudolph 2002). Positive semi-definite
  whenever the loss is convex in the outputs; for the summed log-loss it equals the true Fisher.

Both need second derivatives of the forward pass. The fused attention kernels have none, so attention is switched to a
form that does (``twice_differentiable``), and the switch is said aloud in ``Products.note``.

The matrix is of the **mean over rows** of the summed loss, over the followed layers only, without damping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whence.errors import CurvatureError, LayerError
from whence.gradients.attention import attention_note, twice_differentiable
from whence.gradients.capture import frozen
from whence.gradients.layers import Conv1D, Layer, Layers
from whence.gradients.source import LiveGradients
from whence.linalg.packing import Layout
from whence.tasks.base import Batch, move

Curvature = Literal["gauss_newton", "hessian"]

# Output numbers (vectors x rows x tokens x vocabulary) differentiated at once: 32M floats = 128 MB.
BLOCK_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Products:
    """A fixed symmetric matrix, known by its products.

    Attributes:
        source: the rows, their model and task.
        kind: which matrix.
        batches: numbers of the plan's batches it runs over; None = every row.
    """

    source: LiveGradients
    kind: Curvature = "gauss_newton"
    batches: tuple[int, ...] | None = None

    @property
    def layout(self) -> Layout:
        """The order of the layers in a flat vector."""
        return Layout.of(self.source.layers.sizes)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The batch numbers it runs over."""
        return tuple(range(self.source.n_batches)) if self.batches is None else self.batches

    @property
    def rows(self) -> int:
        """How many training rows the matrix averages over."""
        return sum(self.source.batch_size(number) for number in self.numbers)

    @property
    def note(self) -> str:
        """What was done to the attention of this model, for people."""
        return attention_note(self.source.model)

    def apply(self, x_KD: Tensor) -> Tensor:
        """The matrix times each row of ``x_KD`` (flat, in ``layout`` order; float32 at least comes back).

        Raises:
            CurvatureError: a product that is not finite.
            LayerError: weights that cannot be differentiated (quantised, or spread over ranks), or a model without
                second derivatives.
        """
        if self.source.ranks is not None:
            raise LayerError(
                "second derivatives of a model that is spread over processes",
                wanted="whole weights on one device",
                try_="--method ekfac, or without --fsdp",
            )
        total_KD = torch.zeros_like(x_KD)
        if len(x_KD) == 0:
            return total_KD
        model, layers = self.source.model, self.source.layers
        with frozen(model), following(layers), twice_differentiable(model):
            for number in self.numbers:
                chosen = [self.source.examples[i] for i in self.source.plan.batches[number]]
                batch = move(self.source.task.collate(chosen), x_KD.device)
                total_KD += self._one_batch(batch, x_KD, verify=number == self.numbers[0])
        if not bool(torch.isfinite(total_KD).all()):
            raise CurvatureError(
                f"a {self.kind.replace('_', '-')} product is not finite",
                wanted="finite losses and derivatives on every row of the fixed batch",
                try_="float32 weights, or whence check to find the row",
            )
        return total_KD / self.rows

    def on(self, batches: Sequence[int]) -> Products:
        """The same matrix over other batches of the plan (a mini-batch for LiSSA)."""
        return Products(self.source, self.kind, tuple(batches))

    def _one_batch(self, batch: Batch, x_KD: Tensor, *, verify: bool) -> Tensor:
        """The *sum* over the rows of one batch; ``verify`` looks for operations without a second derivative."""
        layers, task = self.source.layers, self.source.task
        weights = [w for layer in layers for w in _weights(layer)]
        with torch.enable_grad():
            outputs = task.outputs(self.source.model, batch)
            step = max(1, BLOCK_ELEMENTS // max(1, outputs.numel()))
            if self.kind == "hessian":
                slopes = vector_jacobian([task.losses(outputs, batch).sum()], weights, how="graph")
                if verify:
                    check_twice_differentiable(slopes)
                parts = [_hessian(slopes, weights, layers, x) for x in x_KD.split(step)]
            else:
                dual = torch.zeros_like(outputs, requires_grad=True)
                pulled = vector_jacobian([outputs], weights, [dual], how="graph")
                if verify:
                    check_twice_differentiable(pulled)
                parts = []
                for x in x_KD.split(step):
                    pushed = _push(pulled, dual, _tangents(layers, x))
                    bent = _bend(outputs.detach(), pushed, lambda out: task.losses(out, batch).sum())
                    parts.append(
                        _flat(vector_jacobian([outputs], weights, [bent], how="block"), layers, weights, len(x))
                    )
        return torch.cat(parts).to(x_KD.dtype)


def _hessian(slopes: list[Tensor], weights: list[Tensor], layers: Layers, x_KD: Tensor) -> Tensor:
    """Derivative of the gradient along each row of x."""
    tangents = _tangents(layers, x_KD)
    live = [(s, t) for s, t in zip(slopes, tangents, strict=True) if s.requires_grad]
    if not live:
        return torch.zeros_like(x_KD)
    found = vector_jacobian([s for s, _ in live], weights, [t.to(s.dtype) for s, t in live], how="block")
    return _flat(found, layers, weights, len(x_KD))


def _push(pulled: list[Tensor], dual: Tensor, tangents: list[Tensor]) -> Tensor:
    """J v for each of the K tangents: ``[K, *outputs]``. ``pulled`` is J'u, linear in ``dual`` = u."""
    live = [(p, t) for p, t in zip(pulled, tangents, strict=True) if p.requires_grad]
    if not live:
        return dual.new_zeros(len(tangents[0]), *dual.shape)
    return vector_jacobian([p for p, _ in live], [dual], [t.to(p.dtype) for p, t in live], how="block")[0]


def _bend(outputs: Tensor, pushed: Tensor, loss) -> Tensor:
    """The Hessian of the loss at the outputs times each ``pushed[k]``: ``[K, *outputs]``, in at least float32."""
    leaf = outputs.requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    if not slope.requires_grad:  # a loss linear in the outputs has no curvature
        return torch.zeros_like(pushed)
    rows = [torch.autograd.grad(slope, leaf, row.to(slope.dtype), retain_graph=True)[0] for row in pushed]
    return torch.stack(rows).to(pushed.dtype)


def vector_jacobian(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    along: Sequence[Tensor] | None = None,
    *,
    how: Literal["graph", "block"],
) -> list[Tensor]:
    """``torch.autograd.grad`` that keeps the graph, gives zeros for unused inputs and explains a missing derivative.

    Args:
        outputs: as there.
        inputs: as there.
        along: the directions, ``grad_outputs``.
        how: ``graph``: the result can be differentiated again. ``block``: every ``along`` has a leading K axis, and one
            vectorised backward pass serves all K.
    """
    block = how == "block"
    try:
        found = torch.autograd.grad(
            outputs,
            inputs,
            along,
            retain_graph=True,
            create_graph=not block,
            allow_unused=True,
            is_grads_batched=block,
        )
    except (RuntimeError, NotImplementedError) as error:
        if "derivative" not in str(error) and "not implemented" not in str(error):
            raise
        raise _no_second_derivative(str(error).splitlines()[0]) from error
    size = (len(along[0]),) if block and along else ()
    return [i.new_zeros(*size, *i.shape) if f is None else f for f, i in zip(found, inputs, strict=True)]


def check_twice_differentiable(slopes: list[Tensor]) -> None:
    """Refuse a graph with a once-differentiable operation in it: autograd would *silently* leave its part out."""
    stack = [s.grad_fn for s in slopes if s.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.name() == "torch::autograd::Error":
            raise _no_second_derivative("an operation marked once_differentiable")
        for following_node, _ in node.next_functions:
            if following_node is not None and following_node not in seen:
                seen.add(following_node)
                stack.append(following_node)


def _no_second_derivative(what: str) -> LayerError:
    return LayerError(
        f"this model has no second derivatives: {what}",
        wanted="operations that can be differentiated twice",
        try_="attn_implementation='eager', or a method without curvature products (ekfac)",
    )


# --- between a layer's O x I matrix and its parameters -------------------------------------------------------------


def _weights(layer: Layer) -> list[Tensor]:
    """The parameters that make up the layer's matrix: the weight, and the bias where there is one."""
    module = layer.modules[0]
    if layer.kind.routed:
        raise LayerError(
            f"layer {layer.name} is one expert of a fused mixture",
            wanted="whole parameters: curvature products differentiate by them",
            try_=f"--layers '!{layer.name.rpartition('.')[0]}.*', or a method without curvature products (ekfac)",
        )
    found = [module.weight, module.bias] if layer.bias else [module.weight]
    return [p for p in found if isinstance(p, Tensor)]


def _tangents(layers: Layers, x_KD: Tensor) -> list[Tensor]:
    """A flat block as directions of the parameters: ``[K, *parameter shape]`` each."""
    tangents: list[Tensor] = []
    for name, part_KOI in Layout.of(layers.sizes).unpack(x_KD).items():
        layer = layers.layers[name]
        weight = _weights(layer)[0]
        matrix_KOI = part_KOI[..., : layer.inputs - layer.bias]
        if isinstance(layer.modules[0], Conv1D):  # stored [in, out]
            matrix_KOI = matrix_KOI.transpose(1, 2)
        tangents.append(matrix_KOI.reshape(-1, *weight.shape))
        if layer.bias:
            tangents.append(part_KOI[..., -1])
    return tangents


def _flat(found: list[Tensor], layers: Layers, weights: list[Tensor], count: int) -> Tensor:
    """Blocks of parameter-shaped results as a flat block, in the layers' order."""
    by_weight = {id(w): f for w, f in zip(weights, found, strict=True)}
    rows: list[Tensor] = []
    for layer in layers:
        weight, *bias = _weights(layer)
        matrix = by_weight[id(weight)]
        if isinstance(layer.modules[0], Conv1D):
            matrix = matrix.transpose(1, 2)
        matrix = matrix.reshape(count, layer.outputs, layer.inputs - layer.bias)
        if bias:
            matrix = torch.cat([matrix, by_weight[id(bias[0])][..., None]], dim=2)
        rows.append(matrix.reshape(count, -1))
    return torch.cat(rows, dim=1)


@contextmanager
def following(layers: Layers) -> Iterator[None]:
    """Parameters of the followed layers require grad inside, and not afterwards; use within ``frozen``.

    Raises:
        LayerError: a weight that is not a floating point tensor (a quantised base).
    """
    weights = [(layer.name, w) for layer in layers for w in _weights(layer)]
    for name, weight in weights:
        if not weight.is_floating_point():
            raise LayerError(
                f"layer {name} stores its weight as {weight.dtype}",
                wanted="floating point weights: curvature products differentiate by them",
                try_="the adapter's layers only, or a method without curvature products (ekfac)",
            )
    try:
        for _, weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for _, weight in weights:
            weight.requires_grad_(False)
