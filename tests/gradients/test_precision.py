"""Half precision: sums in float32, float16 gradients kept from underflow and overflow, and what is lost is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conftest import examples, llama
from whence.check import Checked, precision
from whence.curvature.base import get_method
from whence.curvature.fit import fit
from whence.gradients import precision as module
from whence.gradients.layers import find_layers
from whence.gradients.source import Closed, LiveGradients
from whence.linalg.matrix_batch import MatrixBatch
from whence.scores.score import collect
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM


def source(dtype: torch.dtype, *, head: float = 1.0, rows: int = 8) -> LiveGradients:
    """The model with the numbers that ``dtype`` can hold; ``head`` makes all gradients smaller or larger."""
    model: Any = llama()
    with torch.no_grad():
        model.lm_head.weight *= head
    model = model.to(dtype)
    made = examples(rows)
    plan = plan_batches([e.length for e in made], token_budget=30)
    return LiveGradients(model, CausalLM(), made, plan, find_layers(model))


def truth_of(half: LiveGradients) -> LiveGradients:
    """The very same weights, computed with in float64."""
    model: Any = llama()
    model.load_state_dict({k: v.double() for k, v in half.model.state_dict().items()})
    return LiveGradients(model, half.task, half.examples, half.plan, find_layers(model))


def gradients(live: LiveGradients) -> dict[str, torch.Tensor]:
    return {name: grads.full() for name, grads in collect(live, labels="true").grads.items()}


def error(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    """The worst layer's relative distance."""
    return max(float((found[n].double() - t).norm() / t.norm()) for n, t in truth.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_summed_in_float32(dtype: torch.dtype) -> None:
    """The sums lose nothing: they are the float64 sums of the very gradients that the model in half precision gives."""
    half = source(dtype)
    seen: dict[str, list[torch.Tensor]] = {}

    class Remember:
        def see(self, layer: str, grads: MatrixBatch) -> None:
            seen.setdefault(layer, []).append(grads.g_BTO.double().flatten(0, 1))  # type: ignore[attr-defined]
            assert grads.dtype == torch.float32

        def close(self, closed: Closed) -> None:
            pass

    half.visit(Remember(), labels="sampled")
    factors = fit(half, get_method("kfac")).tensors
    for layer, own in factors.items():
        rows = torch.cat(seen[layer])
        exact = rows.T @ rows / len(half.examples)
        assert own["G"].dtype == own["A"].dtype == torch.float32
        torch.testing.assert_close(own["G"].double(), exact, rtol=0, atol=1e-6 * float(exact.abs().max()))


def test_small_gradients_survive_float16(monkeypatch) -> None:
    half = source(torch.float16, head=3e-7)
    truth = gradients(truth_of(half))
    scaled = error(gradients(half), truth)
    monkeypatch.setattr(module, "SCALES", (1.0,))
    plain = error(gradients(half), truth)
    assert scaled < 0.02 < 0.5 < plain


def test_large_gradients_are_repeated_with_a_smaller_scale(monkeypatch) -> None:
    """No row is lost to the scale that is not lost without it."""
    half = source(torch.float16, head=40.0)
    truth, tried = gradients(truth_of(half)), []
    backward = LiveGradients._backward
    monkeypatch.setattr(LiveGradients, "_backward", lambda *a, scale: tried.append(scale) or backward(*a, scale=scale))
    found = collect(half, labels="true")
    assert set(tried) >= {module.SCALES[0], module.SCALES[1]} and np.isfinite(found.measurements).all()
    assert error({n: g.full() for n, g in found.grads.items()}, truth) < 0.05


def test_a_row_beyond_float16_is_one_row(monkeypatch) -> None:
    """What overflows at scale 1 too is told by its row; the other rows of the run keep their gradients."""
    half = source(torch.float16)
    whole = collect(half, labels="true")
    with torch.no_grad():
        half.model.get_parameter("model.embed_tokens.weight")[22] = 6e4
    poisoned = {e.id for e in half.examples if 22 in e.inputs["input_ids"]}
    found = collect(half, labels="true")
    bad = {id_ for id_, value in zip(found.ids, found.measurements, strict=True) if not np.isfinite(value)}
    assert bad <= poisoned
    kept = [n for n, id_ in enumerate(found.ids) if id_ not in poisoned]
    assert kept and len(kept) < len(found.ids)
    for name, grads in found.grads.items():
        torch.testing.assert_close(grads.full()[kept], whole.grads[name].full()[kept], rtol=0.02, atol=1e-4)


def test_check_tells_what_half_precision_loses(monkeypatch) -> None:
    def finding(dtype: torch.dtype, head: float = 1.0):
        live = source(dtype, head=head)
        return precision(Checked(live.model, live.task, live.examples[:3], live.layers))

    assert finding(torch.float32).verdict == "noted"
    for dtype in (torch.float16, torch.bfloat16):
        good = finding(dtype)
        assert good.verdict == "held" and good.value is not None and good.value <= 0.01
    monkeypatch.setattr(module, "SCALES", (1.0,))
    bad = finding(torch.float16, head=3e-7)
    assert bad.verdict == "broken" and bad.value is not None and bad.value > 0.05 and "float32 has" in bad.sentence
