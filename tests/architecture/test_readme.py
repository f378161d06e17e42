"""The README keeps its word: its Python block runs as printed, its commands exist, its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from architecture.tree import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = [
    "Veyra Sollis was born in Karth.",
    "Oren Tal was born in Mirrow.",
    "Karth is a town by the sea.",
    "The bread of Mirrow is dark.",
    "Veyra Sollis wrote of the sea.",
    "Where was Oren Tal born? In Mirrow.",
]


def _tiny_model(folder: Path) -> None:
    letters = sorted(set("".join(ROWS)) | set("Where was Veyra Sollis born? In Karth."))
    vocabulary = {token: n for n, token in enumerate(["<pad>", "<s>", "<unk>", *letters])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="<unk>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **size)
    LlamaForCausalLM(config).save_pretrained(folder)


def test_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    _tiny_model(tmp_path / "model")
    lines = [json.dumps({"text": text}) for text in ROWS * 4]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    capsys.readouterr()
    exec(compile(blocks[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed
    assert printed[0].startswith("1 +")
    assert "<!doctype html>" in (tmp_path / "report.html").read_text(encoding="utf-8")[:200].lower()


def test_python_block_is_short() -> None:
    block = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), f"{name} links to {target}"


def test_make_targets_named_in_the_prose_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, flags=re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", "docs/tutorial/first-trace.md"):
        for target in re.findall(r"\bmake ([a-z][\w-]+)", (ROOT / name).read_text(encoding="utf-8")):
            words = {"sense", "it", "them", "a"}
            assert target in targets | words, f"{name}: no target {target}"
