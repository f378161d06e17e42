"""``whence check``: the laws that attribution stands on, measured on the user's own model and rows.

A law is *held*, *broken* or only *noted* (a fact the user should know, such as coverage). Each finding carries the
number that was measured and the largest that would be acceptable in the model's own number type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from whence.gradients.layers import Layer, Layers, find_layers, matrix_of, parameters_of
from whence.gradients.precision import HALVES, OutputGradients, in_full, lost
from whence.gradients.source import LiveGradients
from whence.scores.score import collect
from whence.tasks.base import Batch, Example, Task, device_of, move
from whence.tasks.batches import plan_batches

Verdict = Literal["held", "broken", "noted"]
# Relative error of a gradient that rounding alone explains.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
ROWS = 3
LARGEST_COPY = 4_000_000_000  # parameters of a model that is copied in float32
MOST_LOST = 0.01  # share of a layer's output gradients that half precision may lose
GROUPS = 16  # a row's tokens are taken in at most this many parts: each costs a backward pass


@dataclass(frozen=True)
class Finding:
    """One law and what came of it.

    Attributes:
        law: short stable name.
        verdict: held, broken or noted.
        sentence: in words, for people.
        value / limit: what was measured and what is acceptable, where that makes sense.
    """

    law: str
    verdict: Verdict
    sentence: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Checked:
    """Everything a check needs: a model, its task, a few encoded rows, and the layers followed."""

    model: nn.Module
    task: Task
    examples: Sequence[Example]
    layers: Layers
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def limit(self) -> float:
        return TOLERANCES.get(self.dtype, 1e-3)


def examine(checked: Checked, *, step: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Run every law; ``step`` hears (done, total)."""
    laws = (
        autograd,
        precision,
        tokens,
        composition,
        padding,
        repeat,
        drawn_labels,
        coverage,
        evaluation,
        start_token,
        trained,
    )
    chosen = replace(checked, examples=_pick(checked.examples))
    findings = []
    for done, law in enumerate(laws):
        if step is not None:
            step(done, len(laws))
        findings.append(law(chosen if law not in (start_token, trained) else checked))
    if step is not None:
        step(len(laws), len(laws))
    return findings


def autograd(checked: Checked) -> Finding:
    """Captured per-example gradients equal what autograd gives for one example at a time."""
    worst, where = 0.0, ""
    for example in checked.examples:
        captured = _gradients(checked, [example])
        for layer in checked.layers:
            truth = _autograd(checked, layer, example)
            error = _distance(captured[layer.name], truth)
            if error >= worst:
                worst, where = error, f"{layer.name}, row {example.id}"
    return _judged(
        "gradients",
        checked,
        worst,
        held=f"captured gradients equal autograd's on {len(checked.examples)} rows x {len(checked.layers)} layers",
        broken=f"captured gradients differ from autograd's at {where}: scores of this layer cannot be trusted",
    )


def precision(checked: Checked) -> Finding:
    """In half precision: how many numbers of the output gradients are lost that float32 has."""
    count = sum(p.numel() for p in checked.model.parameters())
    if checked.dtype not in HALVES:
        return Finding("precision", "noted", f"the model computes in {_name(checked.dtype)}: nothing is lost to it")
    if count > LARGEST_COPY:
        return Finding("precision", "noted", f"{count:,} parameters are too many for a copy in float32 to compare with")
    half, full = (_output_gradients(checked, model) for model in (checked.model, in_full(checked.model)))
    name, worst = max(lost(half, full).items(), key=lambda item: item[1].share)
    said = (
        f"{_name(checked.dtype)}: of the output gradients that float32 has, {worst.share:.2%} are 0 in {name} "
        f"({worst.zeros:,} of {worst.entries:,}); no layer loses more"
    )
    if worst.share > MOST_LOST:
        return Finding("precision", "broken", f"{said}. Try dtype float32 or bfloat16", worst.share, MOST_LOST)
    return Finding("precision", "held", said, worst.share, MOST_LOST)


def _output_gradients(checked: Checked, model: nn.Module) -> OutputGradients:
    found = OutputGradients()
    plan = plan_batches([e.length for e in checked.examples], token_budget=1)
    layers = find_layers(model, checked.layers.names)
    LiveGradients(model, checked.task, checked.examples, plan, layers).visit(found)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tokens(checked: Checked) -> Finding:
    """The gradients of the single tokens' losses add up to the captured gradient of the sequence."""
    if not hasattr(checked.task, "token_losses"):
        return Finding("tokens", "noted", "this task has one loss per row: there are no tokens to add up")
    example = min(checked.examples, key=lambda e: e.loss_tokens)
    layer = list(checked.layers)[-1]
    batch = _batch(checked, [example])
    with _trainable(layer):
        losses_T = cast("Any", checked.task).token_losses(checked.task.outputs(checked.model, batch), batch)[0]
        places = losses_T.nonzero().flatten()
        groups = [g for g in places.tensor_split(min(GROUPS, len(places))) if len(g)]
        weights = parameters_of(layer)
        parts = [matrix_of(layer, torch.autograd.grad(losses_T[g].sum(), weights, retain_graph=True)) for g in groups]
    error = _distance(_gradients(checked, [example])[layer.name], torch.stack(parts).sum(0))
    what = f"the gradients of {len(places)} tokens, taken in {len(groups)} parts,"
    return _judged(
        "tokens",
        checked,
        error,
        held=f"{what} add up to their row's ({layer.name})",
        broken=f"{what} do not add up to their row's ({layer.name})",
    )


def composition(checked: Checked) -> Finding:
    """A row's gradient does not depend on which rows of the same length are beside it."""
    alone = _gradients(checked, checked.examples[:1])
    others = [replace(checked.examples[0], id=f"{checked.examples[0].id}#{n}") for n in range(2)]
    error = _error(alone, _gradients(checked, [checked.examples[0], *others]))
    return _judged(
        "batch",
        checked,
        error,
        held="a row's gradient is the same alone and in a batch",
        broken="a row's gradient depends on the batch it is in",
    )


def padding(checked: Checked) -> Finding:
    """A row's gradient does not depend on how far its batch is padded."""
    short, long = (f(checked.examples, key=lambda e: e.length) for f in (min, max))
    if short.length == long.length:
        return Finding("padding", "noted", "all rows tried have one length: nothing is padded")
    error = _error(_gradients(checked, [short]), _gradients(checked, [short, long]))
    return _judged(
        "padding",
        checked,
        error,
        held=f"a row of {short.length} tokens has the same gradient padded to {long.length}",
        broken=f"a row of {short.length} tokens has another gradient when padded to {long.length}: "
        "try attention: eager, or a larger dtype",
    )


def repeat(checked: Checked) -> Finding:
    """The same batch twice gives the same bits."""
    first, second = (_gradients(checked, checked.examples) for _ in range(2))
    same = all(torch.equal(first[name], second[name]) for name in first)
    if same:
        return Finding("repeat", "held", "the same batch twice gives the same numbers to the bit", 0.0, 0.0)
    error = _error(first, second)
    said = "the same batch twice gives slightly other numbers (within rounding; GPU kernels do that)"
    return replace(
        _judged("repeat", checked, error, held=said, broken="the same batch twice gives other numbers"),
        limit=checked.limit,
    )


def drawn_labels(checked: Checked) -> Finding:
    """Labels drawn from the model: only where a loss is taken, and the same in any batch."""
    task, model = checked.task, checked.model
    together = _batch(checked, checked.examples)
    with torch.no_grad():
        drawn = task.sample(task.outputs(model, together), together, 0).labels
        single = _batch(checked, checked.examples[:1])
        alone = task.sample(task.outputs(model, single), single, 0).labels
    if drawn.dim() > 1 and not drawn.is_floating_point():
        kept = bool(((drawn == -100) == (together.labels == -100)).all())
        if not kept:
            return Finding("labels", "broken", "labels were drawn at positions that carry no loss")
        same = torch.equal(drawn[0, : alone.shape[1]], alone[0])
    else:
        same = bool(torch.allclose(drawn[0], alone[0]))
    if same:
        return Finding("labels", "held", "labels drawn from the model depend on the row alone")
    said = "labels drawn from the model changed with the batch (a draw on the edge of two tokens; harmless if rare)"
    return Finding("labels", "noted", said)


def coverage(checked: Checked) -> Finding:
    """How much of the model takes part."""
    share, rest = checked.layers.covered, checked.layers.uncovered
    said = f"{len(checked.layers)} linear maps hold {share:.1%} of the parameters"
    if rest:
        said += "; not attributed: " + ", ".join(f"{name} ({count:,})" for name, count in rest[:3])
        said += f" and {len(rest) - 3} more" if len(rest) > 3 else ""
    if share < 0.5:
        said += ". Most of the model is out of sight"
    return Finding("coverage", "noted", said, share)


def evaluation(checked: Checked) -> Finding:
    """Dropout is off: gradients are of the model that answers."""
    training = sum(module.training for module in checked.model.modules())
    if training:
        return Finding("dropout", "broken", f"{training} modules are in training mode: dropout would blur every score")
    return Finding("dropout", "held", "the model is in evaluation mode (dropout off)")


def start_token(checked: Checked) -> Finding:
    """No row starts with two start tokens (a template that writes one, and a tokenizer that adds another)."""
    doubled = sum("double_bos" in example.notes for example in checked.examples)
    if not doubled:
        return Finding("start token", "held", f"no row of {len(checked.examples):,} starts twice", 0.0)
    said = f"{doubled:,} of {len(checked.examples):,} rows start with two start tokens; whence leaves one out. "
    return Finding(
        "start token", "noted", said + "If your trainer did not, the model was trained on both", float(doubled)
    )


def trained(checked: Checked) -> Finding:
    """How many tokens carry a loss."""
    loss, every = (sum(getattr(e, name) for e in checked.examples) for name in ("loss_tokens", "length"))
    cut = sum(e.truncated > 0 for e in checked.examples)
    said = f"{loss:,} of {every:,} tokens carry a loss ({loss / max(1, every):.1%})"
    if cut:
        said += f"; {cut:,} of {len(checked.examples):,} rows are cut at the length limit"
    return Finding("loss mask", "noted", said, loss / max(1, every))


def _pick(examples: Sequence[Example]) -> list[Example]:
    """A few rows of different lengths, the shorter ones: what holds there holds, and costs little."""
    ordered = sorted(examples, key=lambda e: (e.length, e.id))
    by_length = {e.length: e for e in reversed(ordered)}  # the first row of each length
    lengths = sorted(by_length)
    half = lengths[: max(2, len(lengths) // 2)]
    chosen = {length: by_length[length] for length in (half[0], half[len(half) // 2], half[-1])}
    rest = [e for e in ordered if e not in chosen.values()]
    return [*chosen.values(), *rest][:ROWS]


def _gradients(checked: Checked, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Layer -> B x O x I gradients of these examples as one batch."""
    widest = max(e.length for e in examples)
    plan = plan_batches([e.length for e in examples], token_budget=widest * len(examples))
    source = LiveGradients(checked.model, checked.task, examples, plan, checked.layers)
    return {name: grads.full() for name, grads in collect(source, labels="true").grads.items()}


def _autograd(checked: Checked, layer: Layer, example: Example) -> Tensor:
    batch = _batch(checked, [example])
    with _trainable(layer):
        loss = checked.task.losses(checked.task.outputs(checked.model, batch), batch).sum()
        return matrix_of(layer, torch.autograd.grad(loss, parameters_of(layer)))


class _trainable:  # noqa: N801 - used as a context manager only
    """The layer's parameters take gradients inside the block, whatever the user had set."""

    def __init__(self, layer: Layer) -> None:
        self.before = [(p, p.requires_grad) for p in parameters_of(layer)]

    def __enter__(self) -> None:
        for parameter, _ in self.before:
            parameter.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for parameter, state in self.before:
            parameter.requires_grad_(state)


def _batch(checked: Checked, examples: Sequence[Example]) -> Batch:
    return move(checked.task.collate(examples), device_of(checked.model))


def _error(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Relative distance of the first rows, the worst layer."""
    return max(_distance(one[name][:1], other[name][:1]) for name in one)


def _distance(found: Tensor, truth: Tensor) -> float:
    found, truth = found.reshape(-1).double(), truth.reshape(-1).double()
    size = float(truth.norm())
    return float((found - truth).norm()) / size if size > 0 else float(found.norm())


def _judged(law: str, checked: Checked, error: float, *, held: str, broken: str) -> Finding:
    good = error <= checked.limit
    said = f"{held if good else broken} (largest relative difference {error:.1e}, acceptable {checked.limit:.0e})"
    return Finding(law, "held" if good else "broken", said, error, checked.limit)
