"""Labels of words and of character spans: on which tokens they stand, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reference.task_models import TAGS, tagger
from tasks.conftest import byte_level, row
from whence.errors import TaskError
from whence.tasks.base import RowProblem, Setup
from whence.tasks.rows import read_rows, row_view
from whence.tasks.token_classification import TokenClassification

PIECES = ("[PAD]", "[UNK]", "ken", "##ya", "##ta", "san", "went", "home", "x")


def word_pieces(**options: Any) -> PreTrainedTokenizerFast:
    """Pieces of words, as BERT's."""
    core = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", **options)


def test_a_words_label_stands_on_its_first_piece() -> None:
    fields = {"tokens": ["kenyata", "san", "went", "home"], "tags": ["B-PET", "I-PET", "O", "O"]}
    first = TokenClassification(word_pieces(), TAGS).encode(row(**fields))
    assert first.labels.tolist() == [1, -100, -100, 2, 0, 0]
    assert first.loss_tokens == 4
    every = TokenClassification(word_pieces(), TAGS, label="all").encode(row(**fields))
    assert every.labels.tolist() == [1, 1, 1, 2, 0, 0]


def test_labels_of_character_spans() -> None:
    fields = {"text": "kenyata san went", "entities": [{"start": 0, "end": 11, "label": "PET"}]}
    task = TokenClassification(word_pieces(), TAGS)
    assert task.encode(row(**fields)).labels.tolist() == [1, 2, 2, 2, 0]
    plain = TokenClassification(word_pieces(), {"O": 0, "PET": 1})
    assert plain.encode(row(**fields)).labels.tolist() == [1, 1, 1, 1, 0]
    two = {
        "text": "san san",
        "entities": [{"start": 0, "end": 3, "label": "PET"}, {"start": 4, "end": 7, "label": "PET"}],
    }
    assert task.encode(row(**two)).labels.tolist() == [1, 1]


def test_the_loss_is_the_sum_over_labelled_tokens() -> None:
    model, task, examples, _ = tagger()
    model.eval()
    for example in examples:
        batch = task.collate([example])
        with torch.no_grad():
            logits = task.outputs(model, batch)
            table = logits[0].log_softmax(-1)
            wanted = -sum(float(table[t, y]) for t, y in enumerate(example.labels) if y != -100)
            assert float(task.losses(logits, batch)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "length_mismatch"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "wrong_type"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "wrong_type"),
        ({"tokens": [], "tags": []}, "no_loss_tokens"),
        ({"tokens": ["a"], "tags": ["B-CAR"]}, "unknown_label"),
        ({"text": "abc", "entities": [{"start": 1, "end": 9, "label": "PET"}]}, "bad_span"),
        ({"text": "abc", "entities": [{"start": "1", "end": 2, "label": "PET"}]}, "wrong_type"),
        ({"text": "abc", "entities": [{"start": 0, "end": 1}]}, "bad_span"),
        ({"text": "abc", "entities": "PET"}, "wrong_type"),
        ({"text": "the cat", "entities": [{"start": 0, "end": 3, "label": "CAR"}]}, "unknown_label"),
        ({"label": 1}, "missing_column"),
    ],
)
def test_faults(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(RowProblem) as caught:
        TokenClassification(byte_level(), TAGS).encode(row(**fields))
    assert caught.value.code == code


def test_cutting_keeps_what_is_labelled() -> None:
    task = TokenClassification(word_pieces(), TAGS, max_length=3)
    example = task.encode(row(tokens=["kenyata", "san"], tags=["B-PET", "O"]))
    assert (example.labels.tolist(), example.truncated) == ([1, -100, -100], 1)
    with pytest.raises(RowProblem, match="at most 3"):
        TokenClassification(word_pieces(), TAGS, max_length=3, overlong="skip").encode(
            row(tokens=["kenyata", "san"], tags=["B-PET", "O"])
        )


def test_shapes_and_what_people_read() -> None:
    rows = [{"tokens": ["san", "went"], "ner_tags": [1, 0]}, {"words": ["home"], "tags": ["O"]}]
    rows += [{"text": "san went", "entities": [{"start": 0, "end": 3, "label": "PET"}]}]
    read = read_rows(rows)
    assert (read.shape, len(read.rows)) == ("tagged", 3)
    assert [row_view(r).text for r in read.rows] == ["san went\nsan/1", "home", "san went\nsan/PET"]
    assert read_rows([{"text": "a", "tokens": 5}]).shape == "text"


def test_made_by_name() -> None:
    model = tagger()[0]
    task = TokenClassification.of(Setup(model, byte_level(), 30), label="all")
    assert (dict(task.label2id), task.limit, task.label) == (TAGS, 30, "all")

    class Slow:
        is_fast = False

    with pytest.raises(TaskError, match="words of its tokens"):
        TokenClassification(Slow(), TAGS).encode(row(tokens=["a"], tags=["O"]))
