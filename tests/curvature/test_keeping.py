"""Factors in main memory or in mapped files, activations in main memory: the same numbers, and they do move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import whence
from conftest import examples, gpt2, llama, mixtral
from folders import animal_rows, tiny_llama, word_tokenizer
from whence.curvature import keeping
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.errors import OptionError, ResourceError
from whence.gradients.layers import find_layers
from whence.gradients.shelf import Shelf
from whence.gradients.source import LiveGradients
from whence.linalg import eigen
from whence.linalg.damping import relative
from whence.linalg.matrix_batch import Full, Outer
from whence.scores.score import collect
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM

QUESTION = [{"prompt": "the cat sat on", "completion": " the mat ."}]
METHODS = ("ekfac", "ekfac:blocks=2", "kfac", "diagonal", "shampoo", "trackstar:size=3")


def source(make: Callable[[], torch.nn.Module] = llama, *, shelve: bool = False) -> LiveGradients:
    model, rows = make(), examples(8)
    plan = plan_batches([e.length for e in rows], token_budget=30)
    return LiveGradients(model, CausalLM(), rows, plan, find_layers(model), shelve=shelve)


@pytest.mark.parametrize(("method", "offload"), [("ekfac", "factors"), *((m, "disk,activations") for m in METHODS)])
def test_scores_are_the_same_to_the_bit(method: str, offload: str) -> None:
    def scores(**given):
        live = tiny_llama().double(), word_tokenizer()
        options = {"method": method, "tokens": 0, "batch_tokens": 32, "self_influence": method != "trackstar:size=3"}
        return whence.attribute(live, train=animal_rows(), query=QUESTION, **options, **given)

    plain, found = scores(), scores(offload=offload)
    np.testing.assert_array_equal(found.values, plain.values)
    if plain.self_influence is not None:
        np.testing.assert_array_equal(found.self_influence, plain.self_influence)


def test_factors_on_disk_are_mapped_files_that_share_what_layers_share(monkeypatch) -> None:
    loaded: list[Path] = []
    real = keeping.load_file
    monkeypatch.setattr(keeping, "load_file", lambda path: loaded.append(Path(path)) or real(path))
    tensors = fit(source(), get_method("ekfac"), FitOptions(keep="disk")).tensors
    assert len(loaded) == 4 and not any(path.exists() for path in loaded)  # two stages, before and after
    maps = Path("/proc/self/maps").read_text()
    assert "factors.safetensors" in maps
    block = "model.layers.0.self_attn"
    assert tensors[f"{block}.q_proj"]["QA"] is tensors[f"{block}.k_proj"]["QA"]


def test_no_room_on_disk_is_said(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping, "save_file", full)
    with pytest.raises(ResourceError, match="No space left"):
        fit(source(), get_method("kfac"), FitOptions(keep="disk"))


@pytest.mark.parametrize("method", ["ekfac", "ekfac:blocks=2", "ekfac:largest=5", "kfac", "diagonal"])
def test_factors_in_main_memory_work_with_gradients_elsewhere(method: str) -> None:
    """The meta device stands for a GPU: an operation that mixes it with tensors of the CPU is an error."""
    live = source()
    chosen = get_method(method)
    factors = fit(live, chosen, FitOptions(keep="memory"))
    operator = chosen.operator(factors, Problem(live)).power(-1, relative(0.1))
    for name, (outputs, inputs) in live.layers.sizes.items():
        g, a, x = (
            torch.empty(*shape, device="meta", dtype=torch.float64)
            for shape in ((2, 5, outputs), (2, 5, inputs), (2, outputs, inputs))
        )
        for grads in (Outer(g, a), Full(x)):
            layer = operator.layers[name]  # type: ignore[attr-defined]
            assert layer.apply(grads).full().device.type == "meta" and layer.whiten(grads).squared_norm().is_meta


def test_sums_leave_the_device_and_decompositions_go_there(monkeypatch) -> None:
    places: list[torch.device | None] = []
    real = eigen.eigh_all
    monkeypatch.setattr(
        "whence.curvature.ekfac.eigh_all", lambda *given: places.append(eigen._device.get()) or real(*given)
    )
    live = source()
    moved: list[str] = []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: moved.append(str(a[0]) if a else "") or to(t, *a, **k))
    fit(live, get_method("ekfac"), FitOptions(keep="memory"))
    assert places == [torch.device("cpu")] and "cpu" in moved
    fit(live, get_method("ekfac"))
    assert places[1] is None


@pytest.mark.parametrize("make", [llama, gpt2, mixtral])
def test_activations_in_main_memory_change_nothing(make, monkeypatch) -> None:
    plain = collect(source(make), labels="true").grads
    moved: list[int] = []
    copied = Shelf._copied
    monkeypatch.setattr(
        Shelf, "_copied", lambda self, t: moved.append(t.untyped_storage().data_ptr()) or copied(self, t)
    )
    live = source(make, shelve=True)
    found = collect(live, labels="true").grads
    for name, grads in plain.items():
        exact = 1e-13 * float(grads.full().abs().max())  # products pick their kernels by how memory is aligned
        torch.testing.assert_close(found[name].full(), grads.full(), rtol=0, atol=exact)
    weights = {p.untyped_storage().data_ptr() for p in live.model.parameters()}
    assert len(moved) > 10 * live.n_batches and not weights & set(moved)  # activations move, weights do not


def test_a_tensor_put_twice_is_one_object() -> None:
    shelf, a, b = Shelf(), torch.ones(3, 2), torch.zeros(3, 2)
    first, again, other = shelf.put(a), shelf.put(a), shelf.put(b)
    assert first() is again() and torch.equal(other(), b) and torch.equal(first(), a) and shelf.moved == 48


def test_an_unknown_thing_to_offload_is_an_option_error() -> None:
    with pytest.raises(OptionError, match="offload"):
        whence.attribute("m", train=[], query=[], offload="everything")
