"""``WhenceCallback`` with TRL's trainers: order, mask and encoding as the model was given them. Skipped without TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from folders import animal_rows, tiny_llama, word_tokenizer
from whence import WhenceCallback, attribute, unroll
from whence.errors import DataError
from whence.options import trace_options
from whence.pipeline import open_subject
from whence.recorded import read_record
from whence.watch import Silent

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

QUERY = [{"prompt": "the cat sat on", "completion": " the mat ."}]
OPTIONS: dict[str, Any] = {"lexical": False, "tokens": 2, "fit_rows": "all"}
ROWS = animal_rows(10)
PARTS = [(" ".join(r["text"].split()[:3]), " " + " ".join(r["text"].split()[3:])) for r in ROWS]
SPLIT = [{"prompt": before, "completion": after} for before, after in PARTS]
PAIRS = [{"prompt": before, "chosen": after, "rejected": " ran ."} for before, after in PARTS]
TEMPLATE = "{% for m in messages %}{{ ' ' + m['role'] + ' ' + m['content'] }}{% endfor %}"


class Spy(WhenceCallback):
    """Also hears what the model is really given."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.seen: list[list[int]] = []

        def hear(module: Any, _: Any, given: dict[str, Any]) -> None:
            if module.training:
                self.seen += given["input_ids"].tolist()

        kwargs["model"].register_forward_pre_hook(hear, with_kwargs=True)


def settings(place: Path, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "output_dir": str(place), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "num_train_epochs": 2, "learning_rate": 5e-3, "save_steps": 4, "report_to": [], "seed": 7, "use_cpu": True,
        "disable_tqdm": True, "dataloader_pin_memory": False, "bf16": False, "logging_steps": 3, "max_length": 32,
        "gradient_checkpointing": False,
    }  # fmt: skip
    return {**given, **more}


def tuned(place: Path, rows: list[dict[str, Any]], tokenizer: Any = None, **more: Any) -> Spy:
    spy, tokenizer = Spy(), tokenizer or word_tokenizer()
    tiny_llama(seed=0).save_pretrained(place.parent / "base")
    tokenizer.save_pretrained(place.parent / "base")
    running = trl.SFTTrainer(
        tiny_llama(seed=0), args=trl.SFTConfig(**settings(place, **more)), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[spy],
    )  # fmt: skip
    running.train()
    return spy


@pytest.mark.parametrize(("rows", "share"), [(ROWS, "text"), (SPLIT, "completion")])
def test_sft_is_recorded_as_it_happened(tmp_path, rows, share):
    spy = tuned(tmp_path / "out", rows)
    record = read_record(tmp_path / "out")
    assert record.order == "recorded" and record.steps is not None and record.objective == "step_tokens"
    given = [[t for t in row if t != 3] for row in spy.seen]  # 3 pads
    tokenizer = word_tokenizer()
    ids = [[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id] for row in ROWS]
    assert [ids[n] for step in record.steps for n in step] == given
    prompts = [len(tokenizer(before)["input_ids"]) for before, _ in PARTS] if share == "completion" else [1] * 10
    assert [p.loss_tokens for p in record.probes] == [len(i) - n for i, n in zip(ids, prompts, strict=True)]
    assert record.row_settings() == {"append_eos": True} | ({"loss_on": "all"} if share == "text" else {})


@pytest.mark.parametrize("more", [{}, {"completion_only_loss": False}])
def test_a_trace_reads_the_rows_as_sft_did(tmp_path, more):
    tuned(tmp_path / "out", SPLIT, **more)
    checkpoint = str(tmp_path / "out" / "checkpoint-4")
    scores = attribute(checkpoint, train=SPLIT, query=QUERY, **OPTIONS)
    assert scores.about["training"]["rows_encoded_alike"] == scores.about["training"]["rows_compared"] == 10
    assert scores.tokens(scores.proponents(0, 1)[0].train_id)  # its tokens are found in its text, the added one is not
    with pytest.raises(DataError, match="tokens"):
        attribute(checkpoint, train=SPLIT, query=QUERY, task="causal_lm:append_eos=false", **OPTIONS)
    again = attribute(checkpoint, train=SPLIT, query=QUERY, record="ignore", **OPTIONS)
    assert again.about["query"]["loss_tokens"] == scores.about["query"]["loss_tokens"]  # questions stay questions


def test_a_recorded_sft_is_repeated_to_the_last_weight(tmp_path):
    tuned(tmp_path / "out", ROWS)
    base = str(tmp_path / "base")
    ran = unroll(base, train=ROWS, query=QUERY, record=tmp_path / "out", smoothness=0.0).about["unrolled"]
    assert ran["steps"] == 6 and ran["reproduced"]["off"] < 1e-5 < ran["reproduced"]["moved"]


def test_chats_with_their_template(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    chats = [
        {"messages": [{"role": "the", "content": before}, {"role": "cat", "content": after.strip()}]}
        for before, after in PARTS
    ]
    chats = [{"messages": [{**m, "role": r} for m, r in zip(c["messages"], ("user", "assistant"), strict=True)]}
             for c in chats]  # fmt: skip
    tuned(tmp_path / "out", chats, tokenizer)
    record = read_record(tmp_path / "out")
    assert record.encoding["template"] and record.row_settings()["loss_on"] == "all"
    scores = attribute(str(tmp_path / "out" / "checkpoint-4"), train=chats, query=QUERY, **OPTIONS)
    assert scores.about["training"]["rows_encoded_alike"] == 10


def test_packed_rows_say_so(tmp_path):
    tuned(tmp_path / "out", ROWS, packing=True)
    record = read_record(tmp_path / "out")
    assert record.rows.packed and record.rows.count is not None and record.rows.count < 10
    scores = attribute(str(tmp_path / "out" / "checkpoint-2"), train=ROWS, query=QUERY, **OPTIONS)
    assert scores.n_train == 10 and any("packed" in said for said in scores.about["warnings"])


def test_dpo(tmp_path):
    tiny_llama(seed=0).save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    spy = Spy()
    running = trl.DPOTrainer(
        str(tmp_path / "base"), args=trl.DPOConfig(**settings(tmp_path / "out", beta=0.2)),
        train_dataset=Dataset.from_list(PAIRS), processing_class=word_tokenizer(), callbacks=[spy],
    )  # fmt: skip
    running.train()
    record = read_record(tmp_path / "out")
    assert record.objective == "other" and record.loss == {"loss_type": "sigmoid", "beta": 0.2, "label_smoothing": 0.0}
    tokenizer = word_tokenizer()
    chosen = [[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id] for row in ROWS]
    given = [[t for t in row if t != 3] for row in spy.seen]
    assert record.steps is not None
    batches = [step[n : n + 2] for step in record.steps for n in range(0, len(step), 2)]
    at = 0
    for batch in batches:  # the model sees the chosen sides of a batch, then the rejected ones
        assert given[at : at + len(batch)] == [chosen[n] for n in batch]
        at += 2 * len(batch)
    task = f"preference:reference={tmp_path / 'base'}"
    checkpoint = str(tmp_path / "out" / "checkpoint-4")
    scores = attribute(checkpoint, train=PAIRS, query=[PAIRS[0]], task=task, **{**OPTIONS, "tokens": 0})
    assert scores.about["training"]["rows_encoded_alike"] == 10
    subject = open_subject(checkpoint, trace_options(task=task), Silent())
    assert getattr(subject.task, "beta", None) == 0.2  # as recorded; the task's own is 0.1
    other = [{**pair, "rejected": " sat ."} for pair in PAIRS]
    with pytest.raises(DataError, match="10 rows are not encoded"):
        attribute(checkpoint, train=other, query=[PAIRS[0]], task=task, **{**OPTIONS, "tokens": 0})
