"""A tokenizer for the Almanac, built from its words: one piece per word, letters for words it has never met.

No merges are learned, so the vocabulary is a function of the text alone. Verbs of the lexicon are left as stem and
ending (``mend`` + ``##s``, ``mend`` + ``##eth``): the ending is what the old tongue changes.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from whence.demo.lexicon import CLASSES, SUFFIXES

PAD, BOS, UNKNOWN = "<pad>", "<s>", "<unk>"
_PIECES = re.compile(r"\w+|[^\w\s]")


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that puts ``<s>`` in front of every text; the vocabulary is in order of first use."""
    inflected = {f"{verb}{suffix}" for verb in CLASSES["verb"] for suffix in SUFFIXES}
    letters = string.ascii_letters + string.digits
    vocabulary = [PAD, BOS, UNKNOWN, *(f"##{s}" for s in SUFFIXES), *CLASSES["verb"]]
    vocabulary += [word for text in texts for word in _PIECES.findall(text) if word not in inflected]
    vocabulary += [piece for letter in letters for piece in (letter, f"##{letter}")]
    table = {piece: number for number, piece in enumerate(dict.fromkeys(vocabulary))}
    backend = Tokenizer(models.WordPiece(table, unk_token=UNKNOWN, continuing_subword_prefix="##"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, table[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=BOS, unk_token=UNKNOWN, padding_side="right"
    )
