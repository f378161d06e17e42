"""Hooks on the followed layers: as the backward pass reaches a layer, its ``Outer`` is handed on and freed.

Peculiarities, each of them a bug in some other library:

* The gradient hook sits on the layer's *output tensor* and closes over that call's input, so a recomputation under
  gradient checkpointing cannot pair an input with another call's gradient.
* A layer used several times (or tied to others) is shown **once**, after its last use, with its token sums joined.
* Padding rows are zeroed in inputs *and* gradients before the ones column of a bias is appended.
* Modules that share one input tensor (q, k, v; gate, up) get the very same ``a`` object, so that whoever computes with
  ``a`` can reuse the result by identity.
* Rows of an expert are the tokens routed to it: they are sorted by example, as many for each as any has.
* Parameters do not require grad during attribution, so autograd forms no weight gradients that nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from whence.errors import LayerError
from whence.gradients.experts import grouped, unfused
from whence.gradients.layers import Layer, Layers
from whence.gradients.shelf import Shelf
from whence.linalg.matrix_batch import Outer, concat_tokens

See = Callable[[str, Outer], None]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside, fused experts one by one; everything as it was afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    wanted = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in wanted:
        p.requires_grad_(False)
    try:
        with unfused(model):
            yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
        for module, training in modes:
            module.training = training


@dataclass
class _Pending:
    """What is known of one layer during one batch."""

    expected: int = 0  # calls whose gradient will arrive
    deferred: int = 0  # calls made without grad: reentrant checkpointing will repeat them inside backward
    parts: list[Outer] = field(default_factory=list)


@dataclass
class Capture:
    """One batch's worth of hooks. Use ``with capture.attached(): forward; capture.backward(...)``.

    Attributes:
        layers: what to follow.
        examples: B.
        tokens: T of the batch, for modules that flatten B x T into one axis; None when there is no token axis.
        mask: B x T real tokens, or None when nothing is padded.
        others: masks of further token axes of other lengths (an encoder's beside a decoder's).
        views: how many neighbours on the model's batch axis make one example; their tokens become its tokens.
        see: called once per layer with its ``Outer``.
        scale: the backward pass starts from this times the losses; gradients are divided by it in float32 at least.
        shelve: whether what the backward pass needs waits for it in main memory.
        finite: B booleans, False for examples that sent a non-finite gradient (their rows are zeroed before ``see``).
    """

    layers: Layers
    examples: int
    tokens: int | None
    mask: Tensor | None
    see: See
    others: tuple[Tensor, ...] = ()
    views: int = 1
    scale: float = 1.0
    shelve: bool = False
    finite: Tensor | None = None
    _pending: dict[str, _Pending] = field(default_factory=dict)
    _shelf: Shelf | None = None
    _in_backward: bool = False
    _last_input: tuple[Tensor, bool, Tensor] | None = None
    _last_cast: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = []
        for layer in self.layers:
            self._pending[layer.name] = _Pending()
            for module in layer.modules:
                handles.append(module.register_forward_hook(self._forward_hook(layer)))
            for embedding in layer.embeddings:
                handles.append(embedding.register_forward_hook(self._embedding_hook(layer)))
        self._shelf = Shelf() if self.shelve else None
        try:
            with nullcontext() if self._shelf is None else self._shelf.saving():
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._last_input = self._last_cast = self._shelf = None

    def backward(self, losses: Tensor) -> None:
        """Backward of the summed losses; afterwards every layer has been seen exactly once.

        Raises:
            LayerError: no gradient reached any layer.
        """
        if not losses.requires_grad:
            raise LayerError(
                "the loss does not depend on any followed layer",
                wanted="layers on the path from the input to the loss",
                try_="other --layers, or activation checkpointing off in the model",
            )
        self._in_backward = True
        (losses.sum() * self.scale).backward()
        for layer in self.layers:
            self._show_unreached(layer, losses)

    def _show_unreached(self, layer: Layer, losses: Tensor) -> None:
        """A layer that no gradient reached (an expert that was not chosen) has gradient 0, and is still shown."""
        pending = self._pending[layer.name]
        if pending.parts:  # some calls received gradient, others are off the path to the loss
            self.see(layer.name, concat_tokens(pending.parts))
        elif pending.expected != -1:
            shape = (self.examples, 0)
            self.see(
                layer.name, Outer(losses.new_zeros(*shape, layer.outputs), losses.new_zeros(*shape, layer.inputs), 0)
            )

    def _forward_hook(self, layer: Layer) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            replaced = self._make_differentiable(output)
            output = output if replaced is None else replaced
            if not self._wanted(layer, output):
                return replaced
            if layer.kind.routed:
                self._follow_routed(layer, args, output)
            else:
                a = self._kept(self._input_rows(layer, module, args[0]))
                output.register_hook(lambda g: self._arrived(layer, self._gradient_rows(layer, module, g), a()))
            return replaced

        return hook

    def _follow_routed(self, layer: Layer, args: tuple[Tensor, ...], output: Tensor) -> None:
        """An expert is fed some of the batch's tokens; its second argument says which."""
        rows, tokens = args[0].detach(), args[1]
        if layer.bias:
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=-1)
        rows, count = self._grouped(layer, rows, tokens)
        a = self._kept(rows)
        output.register_hook(
            lambda g: self._arrived(
                layer, self._grouped(layer, self._wide(g.detach()), tokens)[0], a(), positions=count
            )
        )

    def _kept(self, a: Tensor) -> Callable[[], Tensor]:
        """The inputs of a layer until its gradient arrives; the same object again for modules that share it."""
        return (lambda: a) if self._shelf is None else self._shelf.put(a)

    def _grouped(self, layer: Layer, rows: Tensor, tokens: Tensor) -> tuple[Tensor, int]:
        if self.tokens is None or self.others:
            raise _unsorted(layer, rows, self.examples)
        return grouped(rows, tokens, examples=self.examples, length=self.tokens, mask=self.mask)

    def _embedding_hook(self, layer: Layer) -> Callable[..., Tensor | None]:
        """A tied embedding's gradient is Σ_t onehot(id_t) · gradᵀ: the same sum of outer products, g and a swapped."""

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            replaced = self._make_differentiable(output)
            output = output if replaced is None else replaced
            if self._wanted(layer, output):
                ids, silent = args[0], getattr(module, "padding_idx", None)  # autograd gives that token no gradient
                output.register_hook(
                    lambda g: self._arrived(
                        layer,
                        self._one_hot(ids if silent is None else ids.where(ids != silent, -1), layer, g),
                        self._masked(self._token_rows(layer, self._wide(g))),
                    )
                )
            return replaced

        return hook

    @staticmethod
    def _make_differentiable(output: Tensor) -> Tensor | None:
        """The first layers of a frozen model produce constants: start the graph there, as cheaply as possible."""
        if output.requires_grad or not torch.is_grad_enabled():
            return None
        return output.detach().requires_grad_(True).clone()  # clone: in-place arithmetic on a leaf is an error

    def _wanted(self, layer: Layer, output: Tensor) -> bool:
        pending = self._pending[layer.name]
        if not torch.is_grad_enabled():
            pending.deferred += 1
            return False
        if not output.requires_grad:
            return False
        if not self._in_backward:
            pending.expected += 1
            return True
        if pending.deferred == 0:
            return False  # non-reentrant checkpointing recomputes a call whose own hook will still fire
        pending.deferred -= 1
        pending.expected += 1
        return True

    def _wide(self, g: Tensor) -> Tensor:
        """A gradient of the losses themselves, in float32 at least."""
        return _wide(g) if self.scale == 1.0 else _wide(g) / self.scale

    def _input_rows(self, layer: Layer, module: nn.Module, x: Tensor) -> Tensor:
        """B x T x I inputs, masked, with the ones column; shared by identity among modules fed the same tensor."""
        last = self._last_input
        if last is not None and last[0] is x and last[1] == layer.bias and layer.kind.shares_inputs:
            return last[2]
        rows = self._masked(self._token_rows(layer, layer.kind.inputs(module, x.detach())))
        if layer.bias:
            rows = torch.cat([rows, self._masked(torch.ones_like(rows[..., :1]))], dim=-1)
        self._last_input = (x, layer.bias, rows)
        return rows

    def _gradient_rows(self, layer: Layer, module: nn.Module, g: Tensor) -> Tensor:
        return self._masked(self._token_rows(layer, layer.kind.outputs(module, self._wide(g.detach()))))

    def _token_rows(self, layer: Layer, tensor: Tensor) -> Tensor:
        """Any shape that starts with the batch as B x T x features; flattened B*T rows are unflattened.

        Raises:
            LayerError: rows that cannot be assigned to examples (a mixture of experts routes tokens, for example).
        """
        if tensor.dim() >= 2 and tensor.shape[0] == self.examples * self.views:
            return tensor.reshape(self.examples, -1, tensor.shape[-1])
        if tensor.dim() == 2 and self.tokens is not None and tensor.shape[0] == self.examples * self.tokens:
            return tensor.view(self.examples, self.tokens, -1)
        raise _unsorted(layer, tensor, self.examples)

    def _masked(self, rows: Tensor) -> Tensor:
        """Zero the padding rows. Layers without the token axis (a pooled head) have no padding."""
        mask = self._mask_of(rows)
        return rows if mask is None else rows * mask[..., None]

    def _mask_of(self, rows: Tensor) -> Tensor | None:
        """The mask of these rows' token axis; several axes are told apart by their lengths."""
        masks = self.others if self.mask is None else (self.mask, *self.others)
        return next((mask for mask in masks if rows.shape[:2] == mask.shape), None)

    def _one_hot(self, ids: Tensor, layer: Layer, g: Tensor) -> Tensor:
        """One-hot rows of the ids; -1 gives a row of zeros."""
        rows = nn.functional.one_hot(ids.clamp(min=0), layer.outputs).to(_wide(g).dtype) * (ids >= 0)[..., None]
        return self._masked(self._token_rows(layer, rows))

    def _arrived(self, layer: Layer, g: Tensor, a: Tensor, *, positions: int | None = None) -> None:
        pending = self._pending[layer.name]
        g, a = self._drop_non_finite(g, self._wide_input(a))
        pending.parts.append(Outer(g, a, self._positions(g) if positions is None else positions))
        if len(pending.parts) == pending.expected and pending.deferred == 0:
            parts, pending.parts, pending.expected = pending.parts, [], -1
            self.see(layer.name, concat_tokens(parts))

    def _positions(self, g: Tensor) -> int | None:
        mask = self._mask_of(g)
        if mask is None:
            return None
        return self.real_tokens if mask is self.mask else int(mask.sum())

    @cached_property
    def real_tokens(self) -> int:
        """Real token rows of the batch (counted once: on a GPU the sum is a synchronisation)."""
        assert self.mask is not None
        return int(self.mask.sum())

    def _wide_input(self, a: Tensor) -> Tensor:
        """float32 at least, still one object for modules that share an input."""
        if a.dtype in (torch.float32, torch.float64):
            return a
        if self._last_cast is None or self._last_cast[0] is not a:
            self._last_cast = (a, a.float())
        return self._last_cast[1]

    def _drop_non_finite(self, g: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Zero the rows of examples whose gradient overflowed and remember them; others are not touched."""
        good = torch.isfinite(g.sum((1, 2)))
        self.finite = good if self.finite is None else self.finite & good
        if bool(good.all()):
            return g, a
        return torch.where(good[:, None, None], g, 0.0), torch.where(good[:, None, None], a, 0.0)


def _unsorted(layer: Layer, rows: Tensor, examples: int) -> LayerError:
    return LayerError(
        f"layer {layer.name} works on rows of shape {tuple(rows.shape)} that cannot be told apart by example "
        f"(batch of {examples})",
        wanted="inputs of shape batch x ... x features",
        try_=f"leave it out: --layers '!{layer.name}'",
    )


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: statistics are never summed in half precision."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
