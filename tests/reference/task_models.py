"""One small model in float64 with a few rows for every task, for the laws that all tasks keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from conftest import examples, llama
from reference.models import in_double, mlp, number_rows
from tasks.conftest import byte_level
from whence.tasks.base import Example, Task
from whence.tasks.causal_lm import CausalLM
from whence.tasks.classification import SequenceClassification
from whence.tasks.diffusion import Diffusion
from whence.tasks.preference import Preference
from whence.tasks.records import Row
from whence.tasks.regression import Regression
from whence.tasks.seq2seq import Seq2Seq
from whence.tasks.token_classification import TokenClassification

Case = tuple[nn.Module, Task, list[Example], tuple[str, ...]]
TAGS = {"O": 0, "B-PET": 1, "I-PET": 2}
PAIRS = [
    ("the cat sat", "le chat"),
    ("hello", "hello back to the user"),
    ("and the dog sat on the log", "two"),
    ("one and one", "is it two and the mat and the log"),
]


def encoded(task: Task, rows: Sequence[dict[str, Any]]) -> list[Example]:
    return [task.encode(Row(str(fields.get("id", f"r{n}")), fields)) for n, fields in enumerate(rows)]


def words_of_bert(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=400, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=3, initializer_range=0.3, **more,
    )  # fmt: skip


def causal() -> Case:
    return llama(), CausalLM(), examples(5), ()


def classifier() -> Case:
    torch.manual_seed(0)
    task = SequenceClassification(byte_level(), {"bad": 0, "good": 1, "odd": 2})
    rows = [{"text": a, "label": n % 3} for n, (a, _) in enumerate(PAIRS)]
    return BertForSequenceClassification(words_of_bert()).double(), task, encoded(task, rows), ()


def regression() -> Case:
    return mlp(), Regression(), number_rows(5), ()


def tagger() -> Case:
    torch.manual_seed(0)
    task = TokenClassification(byte_level(), TAGS)
    rows: list[dict[str, Any]] = [
        {"tokens": ["the", "cat", "sat"], "tags": ["O", "B-PET", "O"]},
        {"tokens": ["dog"], "tags": [1]},
        {"text": "hello the cat and the dog", "entities": [{"start": 6, "end": 13, "label": "PET"}]},
    ]
    model = BertForTokenClassification(words_of_bert(id2label={i: n for n, i in TAGS.items()}, label2id=TAGS))
    return model.double(), task, encoded(task, rows), ("*",)


def t5() -> Case:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=400, d_model=12, d_kv=6, d_ff=16, num_layers=2, num_heads=2, initializer_factor=2.0,
        decoder_start_token_id=2, pad_token_id=2, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    return in_double(T5ForConditionalGeneration(config)), *pairs(2), ("*",)


def bart() -> Case:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=400, d_model=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, init_std=0.3,
        decoder_start_token_id=2, pad_token_id=2, bos_token_id=0, eos_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    # the head is tied to an embedding that gives padding no gradient, and the decoder begins with padding
    return BartForConditionalGeneration(config).double(), *pairs(2), ("*",)


def preference() -> Case:
    """LoRA on a Llama: the reference is the adapter switched off."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    adapter = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(in_double(LlamaForCausalLM(config)), adapter).double().eval()  # type: ignore[arg-type]
    task = Preference(byte_level(), beta=0.7)
    rows = [{"prompt": a, "chosen": f" {b}", "rejected": " the log sat"} for a, b in PAIRS]
    return model, task, task.prepare(model, encoded(task, rows)), ()


def pairs(start: int) -> tuple[Task, list[Example]]:
    task = Seq2Seq(byte_level(), start=start)
    rows = [{"input": a, "target": b} for a, b in PAIRS[:3]]
    rows += [{"input": "the cat", "target": "the cat"}, {"input": PAIRS[0][0], "target": PAIRS[0][0]}]
    return task, encoded(task, rows)


def pictures(task: Diffusion, count: int = 3, **more: Any) -> list[Example]:
    shape, rng = task.shape, np.random.default_rng(0)
    rows = [{"image": rng.integers(0, 256, (*shape[1:], shape[0])).tolist(), **more} for _ in range(count)]
    return encoded(task, rows)


def unet() -> Case:
    """Convolutions, attention and time embeddings, all followed."""
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=4, in_channels=2, out_channels=2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    task = Diffusion(alphas(), (2, 4, 4), times=3)
    return awake(model), task, pictures(task), ("*",)


def unet_with_captions() -> Case:
    """LoRA on the attention of a UNet that reads captions."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=4, in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6, attention_head_dim=2,
    )  # fmt: skip
    adapter = LoraConfig(r=2, target_modules=["to_k", "to_v", "conv1"], init_lora_weights=False)
    tuned = get_peft_model(awake(model), adapter).double().eval()  # type: ignore[arg-type]
    words = np.random.default_rng(1).standard_normal((3, 6))
    task = Diffusion(alphas(), (1, 4, 4), "v_prediction", times=2, condition="caption", describe=lambda _: words)
    return tuned, task, pictures(task, text="a square"), ()


def transformer() -> Case:
    """A diffusion transformer that is told the class."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, out_channels=2, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=5, norm_num_groups=1,
    )  # fmt: skip
    task = Diffusion(alphas(), (1, 4, 4), "sample", times=2, condition="class")
    return awake(model), task, pictures(task, label=3), ()


def alphas() -> tuple[float, ...]:
    return tuple(DDPMScheduler(num_train_timesteps=40).alphas_cumprod.double().tolist())


def awake(model: nn.Module) -> nn.Module:
    """In float64, without the zeros that such models begin with: their gradients would say nothing."""
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


CASES: dict[str, Callable[[], Case]] = {
    "causal_lm": causal,
    "classification": classifier,
    "regression": regression,
    "token_classification": tagger,
    "preference": preference,
    "diffusion-unet": unet,
    "diffusion-captions-lora": unet_with_captions,
    "diffusion-transformer": transformer,
    "seq2seq-t5": t5,
    "seq2seq-bart": bart,
}
