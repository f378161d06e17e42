"""DPO: the loss by hand, the three references, chats, and questions that are no pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conftest import llama as small_llama
from reference.task_models import PAIRS, encoded, preference
from tasks.conftest import byte_level, row
from whence.errors import TaskError
from whence.tasks.base import RowProblem, Setup
from whence.tasks.preference import Preference
from whence.tasks.rows import read_rows
from whence.tasks.shapes import detect_shape

PAIR = {"prompt": "the cat sat", "chosen": " on the mat", "rejected": " on the log and"}


def log_probability(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Sum over the answer's tokens, by hand: the prompt's tokens are those before the first of the answer's."""
    ids = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
    skip = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(table[t - 1, ids[t]]) for t in range(skip, len(ids)))


def losses(task: Preference, model: Any, examples: list[Any]) -> list[float]:
    batch = task.collate(examples)
    with torch.no_grad():
        return task.losses(task.outputs(model, batch), batch).tolist()


def test_the_loss_by_hand_and_the_adapter_switched_off_as_reference() -> None:
    model, task, examples, _ = preference()
    tokenizer = task.tokenizer
    wanted = []
    for prompt, chosen in PAIRS:
        answers = (f" {chosen}", " the log sat")
        policy = [log_probability(model, tokenizer, prompt, a) for a in answers]
        with model.disable_adapter():
            base = [log_probability(model, tokenizer, prompt, a) for a in answers]
        margin = task.beta * ((policy[0] - base[0]) - (policy[1] - base[1]))
        wanted.append(float(np.log1p(np.exp(-margin))))
    assert losses(task, model, examples) == pytest.approx(wanted, rel=1e-9)
    assert all(abs(value - np.log(2)) > 1e-3 for value in wanted)


def test_a_model_or_columns_or_nothing_as_reference() -> None:
    model, with_adapter, examples, _ = preference()
    rows = [{"prompt": a, "chosen": f" {b}", "rejected": " the log sat"} for a, b in PAIRS]
    known = [e.inputs["reference"] for e in examples]
    names = ("ref_chosen_logps", "ref_rejected_logps")
    columns = [{**r, **dict(zip(names, k.tolist(), strict=True))} for r, k in zip(rows, known, strict=True)]
    task = Preference(byte_level(), beta=0.7)
    assert losses(task, model, encoded(task, columns)) == pytest.approx(losses(with_adapter, model, examples))
    base = preference()[0].unload()
    given = Preference(byte_level(), beta=0.7, reference=base)
    prepared = given.prepare(model, encoded(given, rows), token_budget=40)
    assert losses(given, model, prepared) == pytest.approx(losses(with_adapter, model, examples), rel=1e-9)
    free = Preference(byte_level(), reference="none")
    assert all((e.inputs["reference"] == 0).all() for e in encoded(free, rows))
    with pytest.raises(TaskError, match="no reference model"):
        task.prepare(base, encoded(task, rows))
    with pytest.raises(TaskError, match="prepare"):
        task.collate(encoded(task, rows))


def test_smoothing_and_the_margin_as_measurement() -> None:
    model, plain, examples, _ = preference()
    batch = plain.collate(examples)
    with torch.no_grad():
        outputs = plain.outputs(model, batch)
    margins = plain.margins(outputs)
    smooth = Preference(byte_level(), beta=0.7, smoothing=0.2)
    rows = [{"prompt": a, "chosen": f" {b}", "rejected": " the log sat"} for a, b in PAIRS]
    soft = smooth.collate(smooth.prepare(model, encoded(smooth, rows)))
    wanted = -(0.8 * margins.sigmoid().log() + 0.2 * (-margins).sigmoid().log())
    torch.testing.assert_close(smooth.losses(outputs, soft), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        Preference(byte_level(), 0.7, measurement="margin").measurements(outputs, batch), -margins
    )


def test_drawn_preferences_have_the_models_odds() -> None:
    task = Preference(byte_level(), beta=1.0)
    batch = preference()[1].collate(preference()[2][:1])
    count = 4000
    outputs = torch.tensor([[1.0, 0.2]], dtype=torch.float64).expand(count, 2)
    many = type(batch)(tuple(map(str, range(count))), {"pair": torch.ones(count, dtype=torch.bool)}, batch.labels)
    drawn = task.sample(outputs, many, 0).labels
    assert abs(float(drawn.mean()) - 1 / (1 + np.exp(-0.8))) < 0.03


def test_a_question_may_be_a_text() -> None:
    model, task, examples, _ = preference()
    question = encoded(task, [{"id": "q", "prompt": "the cat sat", "completion": " on the mat"}])
    together = task.collate([*examples, *question])
    with torch.no_grad():
        values = task.losses(task.outputs(model, together), together)
    wanted = -log_probability(model, task.tokenizer, "the cat sat", " on the mat")
    assert float(values[-1]) == pytest.approx(wanted, rel=1e-9)
    assert values[:-1].tolist() == pytest.approx(losses(task, model, examples), rel=1e-9)
    with pytest.raises(TaskError, match="no pair"):
        task.sample(torch.zeros(len(together), 2), together, 0)


def test_chats_with_and_without_a_prompt(chat: Any) -> None:
    task = Preference(chat, reference="none")
    asked = {"role": "user", "content": "Say hello."}
    good, bad = ({"role": "assistant", "content": text} for text in ("hello!", "It is two."))
    forms = [
        {"prompt": [asked], "chosen": [good], "rejected": [bad]},
        {"prompt": "Say hello.", "chosen": [good], "rejected": [bad]},
        {"chosen": [asked, good], "rejected": [asked, bad]},
    ]
    found = [task.encode(row(**fields)) for fields in forms]
    for name in ("chosen", "rejected"):
        for example in found:
            np.testing.assert_array_equal(example.inputs[name], found[0].inputs[name])
            np.testing.assert_array_equal(example.inputs[f"{name}_labels"], found[0].inputs[f"{name}_labels"])
    trained = found[0].inputs["chosen_labels"]
    assert chat.decode(trained[trained != -100]).startswith("hello!")
    with pytest.raises(RowProblem, match="share no first turns"):
        task.encode(row(chosen=[good], rejected=[bad]))


def test_shapes_and_faults(tmp_path: Any) -> None:
    assert detect_shape(PAIR) == detect_shape({"chosen": "a", "rejected": "b"}) == "preference"
    read = read_rows(
        [{**PAIR, "id": "a"}, {**PAIR, "rejected": None, "id": "b"}] + [{**PAIR, "id": f"c{n}"} for n in range(200)]
    )
    assert read.shape == "preference"
    assert [(q.id, q.code) for q in read.quarantine] == [("b", "null_text")]
    task = Preference(byte_level(), reference="none", max_length=6)
    with pytest.raises(RowProblem) as caught:
        task.encode(row(**{**PAIR, "prompt": "the cat sat on the mat and the dog sat on the log " * 3}))
    assert caught.value.code == "all_masked"
    with pytest.raises(RowProblem, match="one text and one list"):
        task.encode(row(prompt="x", chosen="a", rejected=[{"role": "assistant", "content": "b"}]))


def test_made_by_name() -> None:
    asked = []

    def load(spec: str) -> torch.nn.Module:
        asked.append(spec)
        return small_llama()

    task = Preference.of(Setup(small_llama(), byte_level(), 20, load), beta=0.3, reference="./base")
    assert (asked, task.beta, task.max_length) == (["./base"], 0.3, 20)
    assert task.fingerprint()["reference"] == "LlamaForCausalLM given"
    assert Preference.of(Setup(small_llama(), byte_level()), reference="none").reference == "none"
