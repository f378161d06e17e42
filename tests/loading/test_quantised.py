"""Adapters on a quantised base: scores are those on the dequantised base, and the base is said to be left out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn

import whence
from folders import animal_rows, model_folder, tiny_llama, word_tokenizer
from whence.errors import LayerError, OptionError
from whence.gradients.layers import find_layers, numbers_in
from whence.loading import load_model

QUESTION = [{"prompt": "the cat sat on", "completion": " the mat ."}]
HAVE_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


def lora() -> peft.LoraConfig:
    maps = ["q_proj", "down_proj"]
    return peft.LoraConfig(r=2, target_modules=maps, init_lora_weights=False, task_type="CAUSAL_LM")


class Int8Linear(nn.Linear):
    """A linear layer whose weight is stored in 8 bits: what quantising libraries put in place of ``nn.Linear``."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.scale = float(plain.weight.detach().abs().max()) / 127
        self.weight = nn.Parameter((plain.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    @property
    def restored(self) -> Tensor:
        return self.weight.double() * self.scale

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.restored.to(input.dtype))


def adapted(*, quantised: bool) -> Any:
    """A LoRA on every map of the block, whose base is in 8 bits or holds what 8 bits stand for."""
    model: Any = tiny_llama().double()
    for parent in list(model.model.layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                packed = Int8Linear(child)
                setattr(parent, name, packed if quantised else child)
                child.weight.data = packed.restored
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, config).double()
    for module in model.modules():  # .double() above does not reach integers; peft chose float32 for them
        if isinstance(module, Int8Linear):
            assert module.weight.dtype == torch.int8
    return model


def scores(model: Any, **given: Any) -> whence.Scores:
    options = {"tokens": 0, "batch_tokens": 32, "fit_rows": "all", **given}
    return whence.attribute((model, word_tokenizer()), train=animal_rows(), query=QUESTION, **options)


def test_scores_are_those_on_the_dequantised_base() -> None:
    found, truth = scores(adapted(quantised=True)), scores(adapted(quantised=False))
    np.testing.assert_allclose(found.values, truth.values, rtol=0, atol=1e-10 * np.abs(truth.values).max())
    assert np.abs(truth.values).max() > 0


def test_the_base_is_said_to_be_left_out() -> None:
    model = adapted(quantised=True)
    layers = find_layers(model)
    assert layers.covered == 1.0 and len(layers) == 4
    base = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    (note,) = layers.notes
    assert f"{base:,} frozen parameters, some of it stored as int8" in note and "not attributed" in note
    assert note in scores(model).about["warnings"]


def test_curvature_products_by_quantised_weights_are_refused() -> None:
    model = adapted(quantised=True)
    with pytest.raises(LayerError, match=r"stores its weight as torch\.int8"):
        scores(model, method="cg", layers=("*.base_layer",))
    assert np.isfinite(scores(model, layers=("*.base_layer",)).values).all()  # ekfac needs no weights


def test_packed_weights_count_for_what_they_stand_for() -> None:
    class State:
        shape = (6, 10)

    packed = torch.zeros(30, 1, dtype=torch.uint8)
    assert numbers_in(packed) == 30
    packed.quant_state = State()  # type: ignore[attr-defined]
    assert numbers_in(packed) == 60


@pytest.mark.skipif(HAVE_BITSANDBYTES, reason="bitsandbytes is installed")
def test_without_the_library_the_flag_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"dtype nf4 without bitsandbytes(.|\n)*whence\[quantised\]"):
        load_model(model_folder(tmp_path / "m"), dtype="nf4", device="cpu")


@pytest.mark.skipif(not HAVE_BITSANDBYTES, reason="needs bitsandbytes")
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_an_adapter_on_a_base_that_bitsandbytes_quantised(tmp_path: Path, dtype: str) -> None:
    place = model_folder(tmp_path / "m")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    tuned = peft.get_peft_model(load_model(place).model, config)  # type: ignore[arg-type]
    tuned.peft_config["default"].base_model_name_or_path = str(place)
    tuned.save_pretrained(str(tmp_path / "a"))
    options = {"tokens": 0, "batch_tokens": 32, "fit_rows": "all", "device": "cpu"}
    found = whence.attribute(tmp_path / "a", train=animal_rows(), query=QUESTION, dtype=dtype, **options)
    truth = whence.attribute(tmp_path / "a", train=animal_rows(), query=QUESTION, **options)
    assert np.isfinite(found.values).all() and np.corrcoef(found.values[0], truth.values[0])[0, 1] > 0.9
    assert any("stored as" in warning for warning in found.about["warnings"])
