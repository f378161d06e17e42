"""Slow, obvious twins of what the library computes, in float64. They share no code with it.

A flat vector holds, for each named module in turn, its O x I matrix row by row, the bias (if any) as a last column;
transposed storage (GPT-2's Conv1D) is undone by class name.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Attention in the one form that is plain arithmetic. (Llama's eager attention computes its softmax in float32 whatever
# the model's precision, so it is no reference.)
plain_attention = sdpa_kernel(SDPBackend.MATH)


def modules_of(model: nn.Module, names) -> list[nn.Module]:
    return [model.get_submodule(name) for name in names]


def _orient(module: nn.Module, weight: Tensor) -> Tensor:
    return weight.T if type(module).__name__ == "Conv1D" else weight.flatten(1)


def flat_gradient(modules: list[nn.Module]) -> Tensor:
    """The .grad of these modules as one flat vector [D]."""
    parts = []
    for module in modules:
        weight = module.weight.grad if module.weight.grad is not None else torch.zeros_like(module.weight)
        matrix = _orient(module, weight)
        if getattr(module, "bias", None) is not None:
            bias = module.bias.grad if module.bias.grad is not None else torch.zeros_like(module.bias)
            matrix = torch.cat([matrix, bias[:, None]], dim=1)
        parts.append(matrix.flatten())
    return torch.cat(parts)


def single(task, example):
    """A batch of one, without padding."""
    return task.collate([example])


@plain_attention
def per_example_gradients(model, task, examples, modules, *, value=None) -> Tensor:
    """N x D, one backward pass per example, each alone in its batch. ``value`` replaces the loss."""
    rows = []
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for example in examples:
        model.zero_grad(set_to_none=True)
        batch = single(task, example)
        loss = task.losses(task.outputs(model, batch), batch) if value is None else value(model, batch)
        loss.sum().backward()
        rows.append(flat_gradient(modules))
    model.zero_grad(set_to_none=True)
    return torch.stack(rows).detach()


def _prepare(model, modules) -> list[Tensor]:
    """The modules' parameters, requiring grad."""
    parameters = [p for m in modules for p in (m.weight, getattr(m, "bias", None)) if p is not None]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def _assemble(modules, grads) -> Tensor:
    """Gradients in the order of ``_parameters`` as a flat vector."""
    grads, parts = list(grads), []
    for module in modules:
        matrix = _orient(module, grads.pop(0))
        if getattr(module, "bias", None) is not None:
            matrix = torch.cat([matrix, grads.pop(0)[:, None]], dim=1)
        parts.append(matrix.flatten())
    return torch.cat(parts)


def _gradient(value, parameters, modules, *, graph=False) -> Tensor:
    grads = torch.autograd.grad(value, parameters, create_graph=graph, retain_graph=True, allow_unused=True)
    return _assemble(modules, [torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)])


@plain_attention
def dense_hessian(model, task, examples, modules) -> Tensor:
    """D x D Hessian of the mean over examples, one coordinate after the other."""
    parameters, total = _prepare(model, modules), 0.0
    for example in examples:
        batch = single(task, example)
        loss = task.losses(task.outputs(model, batch), batch).sum()
        slope = _gradient(loss, parameters, modules, graph=True)
        total = total + torch.stack([_gradient(entry, parameters, modules) for entry in slope])
    return total.detach() / len(examples)


def softmax_hessian(logits_RV: Tensor, counted_R: Tensor) -> Tensor:
    """Hessian of summed cross-entropy at the logits of R positions: diag(p) - pp' where counted, 0 elsewhere."""
    probabilities = logits_RV.softmax(-1)
    blocks = [
        (torch.diag(p) - torch.outer(p, p)) * float(counted)
        for p, counted in zip(probabilities, counted_R, strict=True)
    ]
    return torch.block_diag(*blocks)


def language_hessian(outputs: Tensor, batch) -> Tensor:
    """Output Hessian of one example's next-token loss: position t counts when label t+1 does."""
    counted = torch.cat([batch.labels[0, 1:] != -100, torch.tensor([False])])
    return softmax_hessian(outputs[0], counted)


def square_hessian(outputs: Tensor, batch) -> Tensor:
    return torch.eye(outputs.numel(), dtype=outputs.dtype)


@plain_attention
def dense_gauss_newton(model, task, examples, modules, output_hessian) -> Tensor:
    """D x D mean of J'HJ, J row by row, H written out by hand."""
    parameters, total = _prepare(model, modules), 0.0
    for example in examples:
        batch = single(task, example)
        outputs = task.outputs(model, batch)
        jacobian = torch.stack([_gradient(entry, parameters, modules) for entry in outputs.flatten()])
        total = total + jacobian.T @ output_hessian(outputs.detach(), batch) @ jacobian
    return total.detach() / len(examples)


def empirical_fisher(gradients_ND: Tensor) -> Tensor:
    """D x D mean of outer products."""
    return gradients_ND.T @ gradients_ND / len(gradients_ND)


@plain_attention
def enumerated_fisher(model, task, examples, modules, vocabulary: int) -> Tensor:
    """The expectation of the sampled-label Fisher, by going through *every* label sequence of every example."""
    total = 0.0
    for example in examples:
        batch = single(task, example)
        places = (batch.labels[0, 1:] != -100).nonzero().flatten() + 1
        with torch.no_grad():
            logp = task.outputs(model, batch).log_softmax(-1)[0]
        for drawn in itertools.product(range(vocabulary), repeat=len(places)):
            labels = batch.labels.clone()
            labels[0, places] = torch.tensor(drawn)
            weight = torch.stack([logp[t - 1, y] for t, y in zip(places, drawn, strict=True)]).sum().exp()
            model.zero_grad(set_to_none=True)
            relabelled = batch.with_labels(labels)
            task.losses(task.outputs(model, relabelled), relabelled).sum().backward()
            gradient = flat_gradient(modules)
            total = total + weight * torch.outer(gradient, gradient)
    return total / len(examples)


def block_diagonal(matrix: Tensor, sizes) -> Tensor:
    """The matrix with everything between different layers set to 0."""
    mask = torch.block_diag(*[torch.ones(s, s, dtype=matrix.dtype) for s in sizes])
    return matrix * mask
