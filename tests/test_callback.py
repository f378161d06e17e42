"""A real (tiny) Trainer run is written down as it happens, and recognised later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from folders import animal_rows, tiny_llama, word_tokenizer, write_rows
from whence import attribute
from whence.callback import WhenceCallback
from whence.errors import DataError, OptionError, StoreError
from whence.recorded import FILE, find_record, read_record, weights_digest
from whence.unrolled.front import unroll

QUERY = [{"prompt": "where did the cat go", "completion": "the cat sat under the mat ."}]
OPTIONS: dict[str, Any] = {"lexical": False, "tokens": 0, "fit_rows": "all"}


class Spy(WhenceCallback):
    """Also hears what the model is really given."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.seen: list[list[list[int]]] = []
        self.rates: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.hook = kwargs["model"].register_forward_pre_hook(
            lambda module, _, given: self.seen.append(given["input_ids"].tolist()) if module.training else None,
            with_kwargs=True,
        )

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.rates.append(kwargs["lr_scheduler"].get_last_lr()[0])

    def on_train_end(self, args, state, control, **kwargs):
        super().on_train_end(args, state, control, **kwargs)
        self.hook.remove()


def dataset(count: int = 10, *, ids: bool = False) -> Dataset:
    tokenizer = word_tokenizer()
    rows = [{"input_ids": tokenizer(row["text"])["input_ids"]} for row in animal_rows(count)]
    return Dataset.from_list([{"id": f"r{n}", **row} if ids else row for n, row in enumerate(rows)])


def trainer(place: Path, callback: WhenceCallback, data: Dataset | None = None, **settings: Any) -> Trainer:
    given: dict[str, Any] = {
        "output_dir": str(place), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "num_train_epochs": 3, "learning_rate": 5e-3, "lr_scheduler_type": "linear", "warmup_steps": 2,
        "weight_decay": 0.1, "save_steps": 4, "save_strategy": "steps", "logging_steps": 3, "report_to": [], "seed": 7,
        "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    tokenizer = word_tokenizer()
    return Trainer(
        model=tiny_llama(seed=0),
        args=TrainingArguments(**{**given, **settings}),
        train_dataset=dataset() if data is None else data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=[callback],
    )


@pytest.fixture(scope="module")
def happened(tmp_path_factory) -> dict[str, Any]:
    """Ten rows, batches of 2 x 2, three epochs: 9 steps, the last of an epoch with a single batch."""
    place = tmp_path_factory.mktemp("callback")
    tiny_llama(seed=0).save_pretrained(place / "base")
    word_tokenizer().save_pretrained(place / "base")
    spy = Spy()
    running = trainer(place / "out", spy)
    running.train()
    running.save_model()
    rows = write_rows(place / "rows.jsonl", animal_rows(10))
    return {"place": place, "spy": spy, "rows": rows, "model": running.model}


def test_the_order_is_what_the_model_was_given(happened):
    record = read_record(happened["place"] / "out")
    assert record.steps is not None and record.order == "recorded" and record.finished
    assert [len(step) for step in record.steps] == [4, 4, 2] * 3
    assert sorted(n for step in record.steps[:3] for n in step) == list(range(10))
    ids = [row["input_ids"] for row in dataset()]
    given = [[t for t in row if t != 3] for batch in happened["spy"].seen for row in batch]  # 3 pads
    assert [ids[n] for step in record.steps for n in step] == given


def test_rates_settings_and_checkpoints(happened):
    record = read_record(happened["place"] / "out")
    assert list(record.rates) == pytest.approx(happened["spy"].rates) and len(record.rates) == 9
    assert record.checkpoints == (4, 8, 9) and record.rows.count == 10 and record.epochs == 3.0
    assert record.batch == {"rows": 2, "accumulation": 2, "world": 1} and record.seeds["seed"] == 7
    assert record.optimiser["class"] == "AdamW" and record.optimiser["weight_decay"] == 0.1
    assert any("norm" in name for name in record.optimiser["undecayed"]) and record.optimiser["clip"] == 1.0
    assert record.objective == "step_tokens" and record.dropout == {}
    assert len(record.probes) == 10 and record.probes[1].loss_tokens == record.probes[1].length - 1
    assert record.start == weights_digest(tiny_llama(seed=0)) != weights_digest(happened["model"])


def test_training_is_not_changed(happened, tmp_path):
    plain = trainer(tmp_path / "plain", WhenceCallback())
    plain.remove_callback(WhenceCallback)
    plain.train()
    for one, other in zip(plain.model.parameters(), happened["model"].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_has_one_record(happened, tmp_path):
    first = trainer(tmp_path / "out", WhenceCallback(), max_steps=4)
    first.train()
    assert read_record(tmp_path / "out").done == 4
    spy = Spy()
    second = trainer(tmp_path / "out", spy, max_steps=9)
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    record, whole = read_record(tmp_path / "out"), read_record(happened["place"] / "out")
    assert record.done == 9 and record.steps is not None and len(record.rates) == 9
    assert record.steps == whole.steps and record.checkpoints == (4, 8, 9)


def test_a_stream_says_that_its_order_is_not_known(tmp_path):
    running = trainer(tmp_path / "out", WhenceCallback(), dataset().to_iterable_dataset(), max_steps=2)
    running.train()
    record = read_record(tmp_path / "out")
    assert record.steps is None and "stream" in record.order and len(record.rates) == 2


def test_a_later_trace_finds_and_uses_it(happened):
    checkpoint = happened["place"] / "out" / "checkpoint-8"
    scores = attribute(str(checkpoint), train=str(happened["rows"]), query=QUERY, **OPTIONS)
    assert scores.about["training"]["rows_encoded_alike"] == 10 and scores.n_train == 10
    some = write_rows(happened["place"] / "some.jsonl", animal_rows(10)[:5])
    part = attribute(str(checkpoint), train=str(some), query=QUERY, **OPTIONS)
    assert part.n_train == 10 and part.about["training"]["rows_compared"] == 5
    assert any("5 of the 10 rows" in said for said in part.about["warnings"])
    alone = attribute(str(checkpoint), train=str(some), query=QUERY, record="ignore", **OPTIONS)
    assert alone.n_train == 5 and "training" not in alone.about
    np.testing.assert_allclose(part.removal_effect(0), alone.removal_effect(0) / 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_length": 5}, "max_length"),
        ({"rows": [{"prompt": " ".join(r["text"].split()[:3]), "completion": " " + " ".join(r["text"].split()[3:])}
                   for r in animal_rows(10)], "task": "causal_lm:loss_on=auto"}, "mask"),
        ({"rows": [{"text": "a " + r["text"]} for r in animal_rows(10)]}, "template or tokenizer"),
    ],
)  # fmt: skip
def test_rows_that_are_encoded_otherwise_are_refused_by_name(happened, change, said):
    rows = change.pop("rows", animal_rows(10))
    model = str(happened["place"] / "out" / "checkpoint-8")
    with pytest.raises(DataError, match=said) as caught:
        attribute(model, train=rows, query=QUERY, **OPTIONS, **change)
    assert "--record ignore" in str(caught.value)
    assert attribute(model, train=rows, query=QUERY, record="ignore", **OPTIONS, **change).n_train == 10


def test_ids_and_recorded_rates_of_checkpoints(tmp_path):
    data = dataset(ids=True)  # the Trainer takes away the columns that the model does not know
    running = trainer(tmp_path / "out", WhenceCallback(ids=data["id"]), data, logging_strategy="no")
    running.train()
    running.save_model()
    record = read_record(tmp_path / "out")
    assert record.rows.ids == tuple(f"r{n}" for n in range(10))
    rows = [{"id": f"r{n}", **row} for n, row in enumerate(animal_rows(10))]
    given = {"train": rows[::-1], "query": QUERY, "method": "identity", "checkpoints": str(tmp_path / "out")}
    scores = attribute(str(tmp_path / "out"), **given, **OPTIONS)
    weights = [c["weight"] for c in scores.about["checkpoints"]]
    rates = record.rates
    assert weights == pytest.approx([np.mean(rates[:4]), np.mean(rates[4:8]), rates[8]])
    assert scores.about["training"]["rows_encoded_alike"] == 10


def test_a_recorded_run_is_repeated_to_the_last_weight(happened):
    out, base = happened["place"] / "out", str(happened["place"] / "base")
    scores = unroll(base, train=str(happened["rows"]), query=QUERY, record=out, smoothness=0.0)
    ran = scores.about["unrolled"]
    assert ran["steps"] == 9 and ran["reproduced"]["step"] == 9
    assert ran["reproduced"]["off"] < 1e-5 < ran["reproduced"]["moved"]
    with pytest.raises(OptionError, match="other weights"):
        unroll(str(out), train=str(happened["rows"]), query=QUERY, record=out)
    with pytest.raises(OptionError, match="rows of the recorded training are not here"):
        unroll(base, train=animal_rows(4), query=QUERY, record=out)


def test_what_cannot_be_repeated_is_said(happened, tmp_path):
    body = json.loads((happened["place"] / "out" / FILE).read_text())
    base, rows = str(happened["place"] / "base"), str(happened["rows"])
    changes: list[tuple[dict[str, Any], str]] = [
        ({"steps": None, "order": "a stream"}, "a stream"),
        ({"dropout": {"Dropout": 0.1}}, "dropout"),
        ({"objective": "other"}, "objective"),
        ({"optimiser": {**body["optimiser"], "class": "Adafactor"}}, "Adafactor"),
    ]
    for change, said in changes:
        (tmp_path / FILE).write_text(json.dumps({**body, **change}))
        with pytest.raises(OptionError, match=said):
            unroll(base, train=rows, query=QUERY, record=tmp_path)


def test_a_file_that_is_no_record_is_refused(tmp_path):
    assert find_record(tmp_path) is None and find_record(("model", "tokenizer")) is None
    for text in ("{", "[]", '{"format": "x"}', '{"format": "whence training record 1", "rates": ["fast"]}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(StoreError):
            find_record(tmp_path)
