"""Small tokenizers made on the spot, and chat templates of the kinds that people use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from whence.tasks.rows import Row

CORPUS = [
    "The cat sat on the mat and the dog sat on the log.",
    "user says hello and the assistant says hello back to the user",
    "Say hello. hello hello! What is one and one? It is two.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction: ### Input: ### Response:",
]
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Ignores add_generation_prompt, trims, and drops an earlier turn's thoughts once later turns follow.
AWKWARD = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}A: {% if loop.last %}{{ m['content'] | trim }}"
    "{% else %}{{ m['content'].split('</think>')[-1] | trim }}{% endif %}{{ eos_token }}"
    "{% else %}Q: {{ m['content'] | trim }}\n{% endif %}{% endfor %}"
)


def _wrap(core: Tokenizer, *, bos: bool) -> PreTrainedTokenizerFast:
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )


def byte_level(*, bos: bool = True, vocabulary: int = 400, trim: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's or Llama 3's, trained on a few lines."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS * 20, trainer)
    if trim:
        core.post_processor = processors.ByteLevel(trim_offsets=True)
    return _wrap(core, bos=bos)


def sentence_piece_like() -> PreTrainedTokenizerFast:
    """A BPE with spaces turned into a mark at the front of words, like Llama 2's."""
    core = Tokenizer(models.BPE(unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=["\n"], show_progress=False)
    core.train_from_iterator(CORPUS * 20, trainer)
    return _wrap(core, bos=True)


def words() -> PreTrainedTokenizerFast:
    """One token per word or mark."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=[*SPECIAL, "<unk>"], show_progress=False))
    return _wrap(core, bos=False)


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture
def chat() -> PreTrainedTokenizerFast:
    """A tokenizer of one's own to put a template on."""
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write bytes, text, or dictionaries as JSON lines; gives the path."""

    def put(name: str, content: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(item) + "\n" for item in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return put


def row(**fields: Any) -> Row:
    return Row(str(fields.pop("id", "r")), fields, "test", "test:1")
