"""A model is loaded whole, safe and finite, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from folders import edit_weights, model_folder, tiny_llama, word_tokenizer
from whence.errors import ModelError, OptionError
from whence.loading import PICKLE_WEIGHTS, load_model
from whence.loading.places import resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "model")


def test_a_folder(folder: Path) -> None:
    loaded = load_model(folder)
    ids = torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(loaded.model(ids).logits, tiny_llama().eval()(ids).logits)
    assert loaded.task == "causal_lm"
    assert not loaded.model.training
    about = loaded.about
    assert about["model"]["attention"] == "sdpa"
    assert about["model"]["dtype"] == "float32"
    assert set(about["model"]["files"]) >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert about["tokenizer"]["checksum"].startswith("xxh3:")
    assert about["remote_code"] is False


def test_dtype_and_attention(folder: Path) -> None:
    loaded = load_model(folder, dtype="float64", attention="eager")
    assert next(loaded.model.parameters()).dtype == torch.float64
    assert loaded.about["model"]["attention"] == "eager"
    with pytest.raises(OptionError, match="float23"):
        load_model(folder, dtype="float23")
    with pytest.raises(OptionError, match="quantum"):
        load_model(folder, device="quantum")


def test_hashes_tell_models_apart(folder: Path, tmp_path: Path) -> None:
    other = model_folder(tmp_path / "other", seed=1)
    one, two = (load_model(place).about for place in (folder, other))
    assert one["model"]["files"]["model.safetensors"] != two["model"]["files"]["model.safetensors"]
    assert one["tokenizer"]["checksum"] == two["tokenizer"]["checksum"]


def test_a_live_pair() -> None:
    model = tiny_llama().train()
    loaded = load_model((model, word_tokenizer()))
    assert loaded.model is model
    assert not model.training
    same, other = load_model((tiny_llama(), None)), load_model((tiny_llama(seed=1), None))
    assert loaded.about["model"]["digest"] == same.about["model"]["digest"] != other.about["model"]["digest"]


def test_a_plain_module() -> None:
    assert load_model(torch.nn.Linear(2, 1)).task == "regression"


def test_a_classifier(tmp_path: Path) -> None:
    assert load_model(model_folder(tmp_path / "m", classes=2)).task == "classification"


@pytest.mark.parametrize(
    "spec", ["./nowhere", "/no/such/place", "~/no-such-model-folder", "a/b/c", "models\\tiny", "not a model!"]
)
def test_a_path_that_is_not_there_is_never_a_hub_request(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match="no model folder") as caught:
        load_model(spec)
    assert caught.value.exit_code == 6
    assert spec in str(caught.value)


def test_a_misspelt_folder_names_its_neighbour(folder: Path) -> None:
    with pytest.raises(ModelError, match="did you mean model"):
        load_model(folder.parent / "modle")


def test_revisions() -> None:
    assert resolve("org/name@v1.0") == ("org/name", "v1.0")
    assert resolve("gpt2") == ("gpt2", "")


def test_a_folder_with_an_at_sign(tmp_path: Path) -> None:
    place = tmp_path / "step@100"
    place.mkdir()
    assert resolve(str(place)) == (str(place), "")


def test_a_hub_id_that_cannot_be_reached() -> None:
    with pytest.raises(ModelError, match="cannot load whence-test/no-such-model"):
        load_model("whence-test/no-such-model")


def test_a_file_is_not_a_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        load_model(folder / "model.safetensors")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, 0] = value
        return tensor

    edit_weights(folder, model__layers__0__mlp__up_proj__weight=spoil)
    with pytest.raises(ModelError, match=r"tensor model\.layers\.0\.mlp\.up_proj\.weight holds 1 values that are NaN"):
        load_model(folder)


def test_a_missing_tensor_is_never_random(folder: Path) -> None:
    edit_weights(folder, model__layers__0__mlp__up_proj__weight=None)
    with pytest.raises(ModelError, match=r"does not hold 1 of the weights .*up_proj"):
        load_model(folder)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    edit_weights(folder, model__layers__0__mlp__up_proj__weight=lambda t: t[:4].contiguous())
    with pytest.raises(ModelError, match="up_proj"):
        load_model(folder)


def test_a_language_model_is_no_classifier(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"score\.weight"):
        load_model(folder, task="classification")


def test_a_damaged_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match="cannot load"):
        load_model(folder)


def test_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="lacks model-00002-of-00002"):
        load_model(folder)


def test_pickled_weights_are_refused_unless_allowed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"it has pytorch_model\.bin, a pickle.*\n.*\n.*--allow-pickle-weights"):
        load_model(folder)
    assert load_model(folder, allow=[PICKLE_WEIGHTS]).task == "causal_lm"
    with pytest.raises(OptionError, match="allow="):
        load_model(folder, allow=["everything"])


class _Canary:
    def __reduce__(self):
        return Path.touch, (Path("canary"),)


@pytest.mark.parametrize("allow", [[], [PICKLE_WEIGHTS]])
def test_a_malicious_pickle_never_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"x": _Canary()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load_model(folder, allow=allow)
    assert not Path("canary").exists()


def test_remote_code_never_runs_by_itself(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("from pathlib import Path\nPath('canary').touch()\n")
    with pytest.raises(ModelError, match="cannot load"):
        load_model(folder)
    assert not Path("canary").exists()


def adapter_folder(place: Path, base: Path) -> Path:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(3)
    base_model = tiny_llama()
    base_model.config._name_or_path = base_model.name_or_path = str(base)
    peft.get_peft_model(base_model, config, adapter_name="default").save_pretrained(place)
    settings = json.loads((place / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(base)
    (place / "adapter_config.json").write_text(json.dumps(settings))
    return place


def test_an_adapter_folder(folder: Path, tmp_path: Path) -> None:
    place = adapter_folder(tmp_path / "adapter", folder)
    loaded = load_model(place)
    trained = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    ids = torch.tensor([[4, 5, 6]])
    assert not torch.allclose(loaded.model(ids).logits, tiny_llama().eval()(ids).logits)
    assert loaded.tokenizer is not None
    assert "adapter_model.safetensors" in loaded.about["adapter"]["files"]


def test_an_adapter_without_its_config_is_not_a_model(folder: Path, tmp_path: Path) -> None:
    """TRAPS 21: loaded as a full model it would be random numbers that look like an answer."""
    place = adapter_folder(tmp_path / "adapter", folder)
    (place / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="adapter weights but no adapter_config"):
        load_model(place)
    shutil.copy(folder / "config.json", place)
    (place / "adapter_model.safetensors").rename(place / "model.safetensors")
    with pytest.raises(ModelError, match="these would have been random numbers"):
        load_model(place)


def test_an_adapter_of_another_model(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    place = adapter_folder(tmp_path / "adapter", folder)
    tensors = load_file(place / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    tensors[first.replace("layers.0", "layers.7")] = tensors.pop(first)
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 adapter tensors are missing, 1 have no place"):
        load_model(place)


def test_an_adapter_whose_base_is_gone(folder: Path, tmp_path: Path) -> None:
    place = adapter_folder(tmp_path / "adapter", folder)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="no model folder"):
        load_model(place)


def test_something_else() -> None:
    with pytest.raises(ModelError, match="given as int"):
        load_model(3)


def test_no_network_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(*_: object) -> None:
        raise OSError("no such host")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", no_address)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match=r"nor in the cache, and huggingface\.co cannot be reached"):
        load_model("whence-test/no-such-model")
