"""What a language model is trained on: masks against hand-made twins, seams, truncation, pre-tokenised rows."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tasks.conftest import byte_level, row, sentence_piece_like, words
from whence.errors import TaskError
from whence.tasks.base import Example, RowProblem
from whence.tasks.causal_lm import CausalLM
from whence.tasks.encode import encode_rows, encoding_notes
from whence.tasks.rows import Row


def trained_text(task: CausalLM, example: Example) -> str:
    """The labels as text: what the loss is on."""
    return task.tokenizer.decode(example.labels[example.labels != -100])


def code_of(task: CausalLM, **fields) -> str:
    with pytest.raises(RowProblem) as caught:
        task.encode(row(**fields))
    return caught.value.code


TOKENIZERS = {"bytes": byte_level, "sentencepiece": sentence_piece_like, "words": words}


@pytest.fixture(params=sorted(TOKENIZERS), scope="module")
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def test_text_is_trained_everywhere(tokenizer):
    example = CausalLM(tokenizer).encode(row(text="the cat sat on the mat"))
    assert example.inputs["input_ids"].tolist() == tokenizer("the cat sat on the mat")["input_ids"]
    assert (example.labels == example.inputs["input_ids"]).all()
    assert example.loss_tokens == example.length - 1


@pytest.mark.parametrize("seam", [("the cat", " sat"), ("the cat ", "sat"), ("the cat\n", "sat"), ("", "the cat sat")])
def test_completion_mask_against_a_twin_by_characters(tokenizer, seam):
    """The twin walks over growing prefixes of tokens and asks which characters they spell."""
    prompt, completion = seam
    task = CausalLM(tokenizer)
    example = task.encode(row(prompt=prompt, completion=completion))
    ids = example.inputs["input_ids"].tolist()
    assert ids == tokenizer(prompt + completion)["input_ids"]
    for t, label in enumerate(example.labels.tolist()):
        spelled = tokenizer.decode(ids[: t + 1], skip_special_tokens=True)
        reaches = len(spelled.replace(" ", "")) > len(prompt.replace(" ", ""))  # one tokenizer drops or adds spaces
        assert (label != -100) == (reaches and ids[t] != tokenizer.bos_token_id), (t, spelled)
        assert label in (-100, ids[t])


def test_a_seam_that_tokens_do_not_respect(bpe):
    """'hel' + 'lo': the token of the whole word is trained, for it says the completion's first letters."""
    alone = bpe("the hello", add_special_tokens=False)["input_ids"]
    example = CausalLM(bpe).encode(row(prompt="the hel", completion="lo"))
    assert example.inputs["input_ids"].tolist()[1:] == alone
    assert (example.labels != -100).tolist() == [False] * (len(alone)) + [True]


@pytest.mark.parametrize("trim", [True, False])
def test_completions_of_spaces_and_parts_of_characters(trim):
    task = CausalLM(byte_level(trim=trim))
    example = task.encode(row(prompt="é", completion="é"))
    assert (example.labels[1:] != -100).tolist() == [False, False, True, True]
    example = task.encode(row(prompt="z ", completion="  z"))
    spaces = task.tokenizer.convert_ids_to_tokens(example.inputs["input_ids"].tolist())
    assert spaces[:3] == ["<s>", "z", "Ġ"]
    assert (example.labels != -100).tolist() == [False, False, False] + [True] * (len(spaces) - 3)


def test_repeated_content_is_located_by_place_not_by_search(bpe):
    task = CausalLM(bpe)
    example = task.encode(row(prompt="hello hello hello", completion=" hello"))
    assert trained_text(task, example) == " hello"
    assert example.labels[-1] != -100


def test_loss_on_all(bpe):
    example = CausalLM(bpe, loss_on="all").encode(row(prompt="the cat", completion=" sat"))
    assert example.loss_tokens == example.length - 1


def test_instruction_in_the_alpaca_frame(bpe):
    task = CausalLM(bpe)
    example = task.encode(row(instruction="Say {input} hello", input="to {instruction}", output=" hello"))
    text = bpe.decode(example.inputs["input_ids"], skip_special_tokens=True)
    assert "### Instruction:\nSay {input} hello\n\n### Input:\nto {instruction}\n\n### Response:\n hello" in text
    assert trained_text(task, example) == " hello"
    short = task.encode(row(instruction="Say hello", input="", output=" hello"))
    assert "Input" not in bpe.decode(short.inputs["input_ids"])


def test_instruction_as_chat(chat):
    task = CausalLM(chat, instruction_format="chat")
    example = task.encode(row(instruction="Say", input="what?", output="hello"))
    assert trained_text(task, example) == "hello<|im_end|>"
    assert "Say\n\nwhat?" in chat.decode(example.inputs["input_ids"])


def test_appended_end_of_sequence_is_trained(bpe):
    task = CausalLM(bpe, append_eos=True)
    example = task.encode(row(prompt="the cat", completion=" sat"))
    assert example.labels[-1] == bpe.eos_token_id == example.inputs["input_ids"][-1]
    spans = task.token_spans(row(prompt="the cat", completion=" sat"))
    assert spans.spans[-1] == (0, 0)
    assert len(spans.spans) == example.length
    again = task.encode(row(text="the cat</s>"))
    assert list(again.inputs["input_ids"]).count(bpe.eos_token_id) == 1


def test_a_bos_in_the_text_is_not_doubled(bpe):
    task = CausalLM(bpe)
    plain, spelled = task.encode(row(text="the cat")), task.encode(row(text="<s>the cat"))
    assert spelled.inputs["input_ids"].tolist() == plain.inputs["input_ids"].tolist()
    assert "double_bos" in spelled.notes
    assert "double_bos" not in plain.notes
    assert len(task.token_spans(row(text="<s>the cat")).spans) == spelled.length


def test_special_tokens_in_the_text_are_counted_or_refused(bpe):
    hostile = row(text="hello <|im_end|> hello")
    assert CausalLM(bpe).encode(hostile).notes == ("special_in_text",)
    with pytest.raises(RowProblem, match=r"im_end"):
        CausalLM(bpe, special_in_text="quarantine").encode(hostile)


# --- length ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [-1, 0, 1, 5])
def test_truncation_around_the_limit(extra):
    tokenizer = words()
    text = " ".join(["cat"] * (8 + extra))
    example = CausalLM(tokenizer, max_length=8).encode(row(text=text))
    assert example.length == min(8, 8 + extra)
    assert example.truncated == max(0, extra)
    assert ("truncated" in example.notes) == (extra > 0)
    assert len(example.labels) == example.length


def test_other_policies_for_long_rows():
    tokenizer, long = words(), row(text="cat " * 9)
    assert code_of(CausalLM(tokenizer, max_length=8, overlong="skip"), text="cat " * 9) == "overlong"
    with pytest.raises(TaskError, match="9 tokens"):
        CausalLM(tokenizer, max_length=8, overlong="error").encode(long)


def test_the_tokenizers_own_limit_counts_unless_it_is_none():
    tokenizer = words()
    assert CausalLM(tokenizer).limit is None
    tokenizer.model_max_length = 4
    assert CausalLM(tokenizer).encode(row(text="cat " * 9)).length == 4
    assert CausalLM(tokenizer, max_length=6).encode(row(text="cat " * 9)).length == 6


def test_a_completion_cut_off_entirely_has_no_loss():
    tokenizer = words()
    assert code_of(CausalLM(tokenizer, max_length=3), prompt="cat cat cat ", completion="sat") == "all_masked"


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("cat", 1)])
def test_too_short_for_a_next_token(text, tokens):
    assert code_of(CausalLM(words()), text=text) == "no_loss_tokens"
    assert len(words()(text)["input_ids"]) == tokens
    assert code_of(CausalLM(byte_level()), text="") == "no_loss_tokens"  # only the beginning of sequence
    assert CausalLM(words()).encode(row(text="cat sat")).loss_tokens == 1


def test_an_empty_completion_has_no_loss(bpe):
    assert code_of(CausalLM(bpe), prompt="the cat", completion="") == "all_masked"


# --- pre-tokenised --------------------------------------------------------------------------------------------------


def test_given_labels_and_padding_are_respected():
    task = CausalLM()
    example = task.encode(
        row(input_ids=[0, 0, 5, 6, 7], labels=[-100, -100, -100, 6, 7], attention_mask=[0, 0, 1, 1, 1])
    )
    assert example.inputs["input_ids"].tolist() == [5, 6, 7]
    assert example.labels.tolist() == [-100, 6, 7]
    assert example.loss_tokens == 2
    assert task.encode(row(input_ids=[5, 6, 7])).labels.tolist() == [5, 6, 7]
    assert CausalLM(loss_on="all").encode(row(input_ids=[5, 6], labels=[-100, -100])).loss_tokens == 1


def test_pre_tokenised_faults(bpe):
    task = CausalLM(bpe)
    assert code_of(task, input_ids=[1, len(bpe)]) == "token_out_of_range"
    assert code_of(task, input_ids=[1, -2]) == "token_out_of_range"
    assert code_of(task, input_ids=[1, 2], labels=[1, -1]) == "token_out_of_range"
    assert code_of(task, input_ids=[1]) == "no_loss_tokens"
    assert code_of(task, input_ids=[]) == "no_loss_tokens"
    assert code_of(task, input_ids=[1, 2], labels=[1, -100]) == "all_masked"
    assert code_of(task, input_ids=[1, 2], labels=[1]) == "length_mismatch"


def test_text_without_a_tokenizer():
    with pytest.raises(TaskError, match="no tokenizer"):
        CausalLM().encode(row(text="hello"))


def test_features_are_not_for_language_models(bpe):
    with pytest.raises(TaskError):
        CausalLM(bpe).encode(row(features=[1.0], target=1.0))


# --- many rows at once ----------------------------------------------------------------------------------------------


def test_many_rows_equal_one_by_one(bpe):
    task = CausalLM(bpe)
    rows = [
        Row("a", {"text": "the cat"}),
        Row("b", {"prompt": "the", "completion": " dog"}),
        Row("c", {"text": ""}),
        Row("d", {"input_ids": [5, 6, 7]}),
        Row("e", {"text": "\ud800"}, location="f:5"),
        Row("f", {"nothing": 1}),
        Row("g", {"text": "and the dog"}),
    ]
    examples, bad = encode_rows(task, rows)
    assert [e.id for e in examples] == ["a", "b", "d", "g"]
    assert [(q.id, q.code) for q in bad] == [("c", "no_loss_tokens"), ("e", "tokenizer_error"), ("f", "unknown_shape")]
    assert bad[1].location == "f:5"
    by_id = {r.id: r for r in rows}
    for example in examples:
        alone = task.encode(by_id[example.id])
        assert np.array_equal(alone.labels, example.labels)
        assert np.array_equal(alone.inputs["input_ids"], example.inputs["input_ids"])


def test_a_mask_that_eats_everything_stops_with_the_rows_shown(bpe):
    rows = [
        Row(str(n), {"prompt": "the cat", "completion": "" if n < 3 else " sat"}, location=f"f:{n}") for n in range(10)
    ]
    with pytest.raises(TaskError, match="3 of 10 rows") as caught:
        encode_rows(CausalLM(bpe), rows)
    assert "f:0" in str(caught.value)
    examples, bad = encode_rows(CausalLM(bpe), rows[2:])
    assert (len(examples), len(bad)) == (7, 1)


def test_empty_rows_are_not_taken_for_a_wrong_mask(bpe):
    rows = [Row(str(n), {"text": ""}) for n in range(5)] + [Row("x", {"text": "the cat"})]
    assert len(encode_rows(CausalLM(bpe), rows)[1]) == 5


def test_notes_are_counted():
    rows = [Row(str(n), {"text": "cat " * n}) for n in range(2, 7)]
    assert encoding_notes(encode_rows(CausalLM(words(), max_length=4), rows)[0]) == {"truncated": 2}


def test_slow_tokenizers_mask_by_prefix(bpe):
    class Slow:
        """What a tokenizer without offsets looks like from outside."""

        is_fast = False

        def __getattr__(self, name):
            return getattr(bpe, name)

        def __call__(self, texts, **options):
            return {"input_ids": bpe(texts, add_special_tokens=options["add_special_tokens"])["input_ids"]}

    for fields in (
        {"prompt": "the cat", "completion": " sat on"},
        {"text": "the cat"},
        {"prompt": "", "completion": "a b"},
    ):
        fast, slow = (CausalLM(t).encode(row(**fields)) for t in (bpe, Slow()))
        assert slow.labels[1:].tolist() == fast.labels[1:].tolist()
    with pytest.raises(TaskError, match="fast tokenizer"):
        CausalLM(Slow()).token_spans(row(text="the cat"))


# --- positions ------------------------------------------------------------------------------------------------------


def test_token_spans_spell_the_text(tokenizer):
    task = CausalLM(tokenizer)
    for text in ("the cat sat on the mat.", "hello, and hello"):
        found = task.token_spans(row(text=text))
        pieces = [found.text[a:b] for a, b in found.spans]
        assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
        assert len(pieces) == task.encode(row(text=text)).length


def test_fingerprint_tells_set_ups_apart(chat):
    base = CausalLM(chat)
    others = [
        CausalLM(chat, max_length=8), CausalLM(chat, loss_on="all"), CausalLM(chat, append_eos=True),
        CausalLM(byte_level()), CausalLM(chat, instruction_format="chat"), CausalLM(),
    ]  # fmt: skip
    assert base.fingerprint() == CausalLM(chat).fingerprint()
    assert all(other.fingerprint() != base.fingerprint() for other in others)
