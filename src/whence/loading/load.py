"""Models in: a folder, a hub id, ``id@revision``, a PEFT adapter folder, or a live model and tokenizer.

Two promises. **Nothing executes**: safetensors only, and code or pickles from a model only when allowed by name.
**Nothing is random**: a checkpoint that does not fill every weight is an error, never freshly initialised weights (an
adapter folder loaded as a full model would otherwise give plausible nonsense).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from whence.errors import ModelError, OptionError, did_you_mean
from whence.gradients.ranks import Ranks
from whence.loading.fingerprints import describe_model, describe_tokenizer, file_records
from whence.loading.guards import Weights, check_complete, check_finite, check_weight_files, explained, quiet
from whence.loading.places import (
    HOST,
    check_reachable,
    is_adapter,
    is_diffusion,
    pick_device,
    read_object,
    resolve,
)

REMOTE_CODE, PICKLE_WEIGHTS = "remote_code", "pickle_weights"
ALLOWABLE = (REMOTE_CODE, PICKLE_WEIGHTS)
AUTO_CLASSES: Mapping[str, Any] = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "preference": transformers.AutoModelForCausalLM,
    "classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
ADAPTED = {"SEQ_CLS": "classification", "TOKEN_CLS": "token_classification", "SEQ_2_SEQ_LM": "seq2seq"}
QUANTISED = ("int8", "nf4")
DTYPES = ("auto", "float64", "float32", "bfloat16", "float16", *QUANTISED)


@dataclass(frozen=True)
class Loaded:
    """A model ready for attribution: evaluation mode, finite weights, known identity.

    Attributes:
        model: the module, on its device.
        tokenizer: the Hugging Face tokenizer, or None when the model has none (feature or ``input_ids`` data only).
        task: the task the model was loaded for, one of ``AUTO_CLASSES`` or ``diffusion``.
        about: spec, paths, revision, commit, hashes of weights, tokenizer and template, dtype, device, attention.
        extra: what else came with the model and a task may want (the noise schedule of a diffusion model).
        ranks: the processes that its parameters are spread over; None when the model is whole.
    """

    model: nn.Module
    tokenizer: Any
    task: str
    about: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    ranks: Ranks | None = None


def load_model(
    spec: Any,
    *,
    dtype: str = "auto",
    device: str = "auto",
    task: str = "auto",
    attention: str = "auto",
    allow: Collection[str] = (),
) -> Loaded:
    """Load what ``spec`` names and check that every weight is there and finite.

    Args:
        spec: folder, hub id, ``id@revision``, PEFT adapter folder, a module, or ``(model, tokenizer)``.
        dtype: number type; ``auto`` keeps the checkpoint's (float16 becomes float32 on a CPU, where it has no range);
            ``int8`` and ``nf4`` quantise the weights while loading (bitsandbytes), for the base of an adapter.
        device: torch device; ``auto`` takes CUDA, then MPS, then the CPU. ``HOST`` leaves it in main memory in the
            number type that a GPU would get. A live model stays where it is.
        task: a key of ``AUTO_CLASSES``, or ``auto`` (by the architecture named in the model's config).
        attention: attention backend; ``auto`` is the model's default.
        allow: any of ``remote_code`` and ``pickle_weights``; both are refused otherwise.

    Raises:
        ModelError: missing, gated, incomplete, unsafe or non-finite.
        OptionError: an unknown dtype, device or permission.
    """
    request = _Request(
        str(spec), "", dtype, HOST if device == HOST else pick_device(device), task, attention, frozenset(allow)
    )
    request.check()
    if isinstance(spec, nn.Module) or (isinstance(spec, (tuple, list)) and len(spec) == 2):
        model, tokenizer = spec if not isinstance(spec, nn.Module) else (spec, None)
        return _live(model, tokenizer, request)
    if not isinstance(spec, (str, Path)):
        raise ModelError(
            f"a model given as {type(spec).__name__}",
            wanted="a folder, a hub id, or a pair (model, tokenizer)",
            try_="attribute((model, tokenizer), ...)",
        )
    place, revision = resolve(str(spec))
    loaded = _from_place(replace(request, place=place, revision=revision))
    check_finite(loaded.model, str(spec))
    return replace(loaded, about={"spec": str(spec), **loaded.about})


def join_ranks(device: str = "auto") -> Ranks:
    """This process among those that its launcher started; see ``sharding.join_ranks``."""
    return _sharding().join_ranks(device)


def _sharding() -> Any:
    return importlib.import_module("whence.loading.sharding")  # FSDP2 takes a second to import; few need it


def over_ranks(loaded: Loaded, device: str) -> Loaded:
    """The model in shards over the processes of the launcher, and on this one's device.

    Raises:
        OptionError, ModelError: see ``sharding.join_ranks`` and ``sharding.spread``.
    """
    ranks = join_ranks(device)
    model = _sharding().spread(loaded.model, ranks)
    record = {**loaded.about["model"], "device": str(ranks.device), "fsdp": ranks.world}
    return replace(loaded, model=model, ranks=ranks, about={**loaded.about, "model": record})


@dataclass(frozen=True)
class _Request:
    place: str
    revision: str
    dtype: str
    device: str
    task: str
    attention: str
    allow: frozenset[str]

    def check(self) -> None:
        if self.dtype not in DTYPES:
            raise OptionError(f"dtype {self.dtype!r}", wanted="a number type", try_=did_you_mean(self.dtype, DTYPES))
        for name in self.allow - set(ALLOWABLE):
            raise OptionError(f"allow={name!r}", wanted="a permission", try_=did_you_mean(name, ALLOWABLE))

    @property
    def weights(self) -> Weights:
        return "pickle" if PICKLE_WEIGHTS in self.allow else "safetensors"

    def keywords(self) -> dict[str, Any]:
        """What every ``from_pretrained`` gets."""
        words: dict[str, Any] = {"trust_remote_code": REMOTE_CODE in self.allow}
        return words | ({"revision": self.revision} if self.revision else {})


def _from_place(request: _Request) -> Loaded:
    folder = Path(request.place)
    if folder.is_dir() and is_adapter(folder):
        return _adapter(folder, request)
    if folder.is_dir() and is_diffusion(folder):
        return _diffusion(folder, request)
    if not folder.is_dir():
        check_reachable(request.place)
    with explained(request.place):
        config = transformers.AutoConfig.from_pretrained(request.place, **request.keywords())
        request = replace(request, task=_task_of(config) if request.task == "auto" else request.task)
        if folder.is_dir():
            check_weight_files(folder, request.weights)
        model = _full_model(request, config)
        tokenizer = _tokenizer(request, folder if folder.is_dir() else None)
    about = {
        "model": {"id": request.place, "revision": request.revision or None, **describe_model(model)},
        "tokenizer": describe_tokenizer(tokenizer),
        "remote_code": REMOTE_CODE in request.allow,
    }
    if folder.is_dir():
        about["model"]["files"] = file_records(folder)
    return Loaded(model, tokenizer, request.task, about)


def _adapter(folder: Path, request: _Request) -> Loaded:
    """The base model named by the adapter's config, with the adapter attached."""
    config = read_object(folder / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{folder} is an adapter that does not name its base model",
            wanted="base_model_name_or_path in adapter_config.json",
        )
    if not Path(base).is_dir() and (folder / base).is_dir():
        base = str(folder / base)
    task = ADAPTED.get(str(config.get("task_type")), "auto") if request.task == "auto" else request.task
    place, revision = resolve(base)
    loaded = _from_place(replace(request, place=place, revision=config.get("revision") or revision, task=task))
    with explained(str(folder)):
        adapters = importlib.import_module("whence.loading.adapters")  # peft takes seconds to import; few need it
        model = adapters.attach_adapter(loaded.model, folder, request.weights)
        own = _tokenizer(replace(request, place=str(folder), revision=""), folder)
    tokenizer = own or loaded.tokenizer
    about = {
        **loaded.about,
        "adapter": {"path": str(folder), "files": file_records(folder), "config": config},
        "tokenizer": describe_tokenizer(tokenizer),
    }
    return Loaded(model.eval(), tokenizer, loaded.task, about, loaded.extra)


def _diffusion(folder: Path, request: _Request) -> Loaded:
    """A denoiser of the diffusers library with its noise schedule."""
    dtype = "auto" if request.dtype == "auto" else getattr(torch, request.dtype)
    with explained(request.place):
        device = "cpu" if request.device == HOST else request.device
        model, extra = _diffusers().load_diffusion(folder, dtype=dtype, device=device)
    about = {"model": {"id": request.place, "revision": None, **describe_model(model)}, "tokenizer": None}
    about["model"]["files"] = file_records(folder)
    return Loaded(model, None, "diffusion", about, extra)


def _diffusers() -> Any:
    """The part of loading that needs the diffusers library, which few have.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return importlib.import_module("whence.loading.diffusion")
    except ModuleNotFoundError as error:
        said = "pip install 'whence[diffusion]'"
        raise ModelError("this is a diffusion model", wanted="the extra for them", try_=said) from error


def _live(model: nn.Module, tokenizer: Any, request: _Request) -> Loaded:
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model given as {type(model).__name__}", wanted="a torch module")
    config = getattr(model, "config", None)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if type(base).__module__.startswith("diffusers.") or hasattr(tokenizer, "alphas_cumprod"):
        check_finite(model, type(model).__name__)
        about = {"spec": f"live {type(base).__name__}", "model": describe_model(model.eval(), digest=True)}
        return Loaded(model, None, "diffusion", about | {"tokenizer": None}, _diffusers().describe(model, tokenizer))
    task = request.task
    if task == "auto":
        task = _task_of(config, type(model).__name__) if config is not None else "regression"
    check_finite(model, type(model).__name__)
    about = {
        "spec": f"live {type(model).__name__}",
        "model": describe_model(model.eval(), digest=True),
        "tokenizer": describe_tokenizer(tokenizer),
    }
    return Loaded(model, tokenizer, task, about)


def _task_of(config: Any, name: str = "") -> str:
    """By the class of the model (a live one that was never saved has no ``architectures``)."""
    names = " ".join([name, *(getattr(config, "architectures", None) or ())])
    for word, task in (("SequenceClassification", "classification"), ("TokenClassification", "token_classification")):
        if word in names:
            return task
    return "seq2seq" if getattr(config, "is_encoder_decoder", False) is True else "causal_lm"


def _full_model(request: _Request, config: Any) -> nn.Module:
    auto = AUTO_CLASSES.get(request.task)
    if auto is None:
        raise OptionError(
            f"task {request.task!r} cannot load a model by name",
            wanted="a live model, or a task with a Hugging Face model class",
            try_=did_you_mean(request.task, AUTO_CLASSES),
        )
    words = request.keywords() | {"dtype": _dtype(request, config), "output_loading_info": True}
    words["ignore_mismatched_sizes"] = True  # they come back in the info, and are then an error that names them
    if request.dtype in QUANTISED:
        place = "cpu" if request.device == HOST else request.device
        words |= {"quantization_config": _quantisation(request.dtype, place), "device_map": {"": place}}
    if request.weights == "safetensors":
        words["use_safetensors"] = True
    if request.attention != "auto":
        words["attn_implementation"] = request.attention
    with quiet():
        model, info = auto.from_pretrained(request.place, config=config, **words)
    check_complete(request.place, type(model).__name__, info)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # a cache of keys and values is for generation; here it only costs memory
    if getattr(model, "is_quantized", False):
        return model.eval()  # where it was quantised; 8-bit weights cannot be moved
    return model.to("cpu" if request.device == HOST else request.device).eval()


def _quantisation(dtype: str, place: str) -> Any:
    """Transformers' own settings for weights in 8 or 4 bits.

    Raises:
        OptionError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        said = "pip install 'whence[quantised]'"
        raise OptionError(f"dtype {dtype} without bitsandbytes", wanted="the library that quantises", try_=said)
    if dtype == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.float32 if place == "cpu" else torch.bfloat16
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _dtype(request: _Request, config: Any) -> Any:
    if request.dtype in QUANTISED:
        return torch.float32 if request.device == "cpu" else "auto"
    if request.dtype != "auto":
        return getattr(torch, request.dtype)
    stored = getattr(config, "dtype", None)
    return torch.float32 if stored == torch.float16 and request.device == "cpu" else "auto"


def _tokenizer(request: _Request, folder: Path | None) -> Any:
    """The tokenizer; None when a local folder simply has none."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    if folder is not None and not any((folder / name).is_file() for name in names):
        return None
    with quiet():
        return transformers.AutoTokenizer.from_pretrained(request.place, **request.keywords())
