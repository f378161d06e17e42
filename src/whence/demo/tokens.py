"""A tokenizer for the Almanac, built from its words: one piece per word, two per compound, letters for what is left.

No merges are learned, so the vocabulary is a function of the text alone. The compounds of the lexicon are kept apart
(``moon`` + ``##bell``, ``re`` + ``##paint`` + ``##eth``), so that a compound never seen before is made of known pieces.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from whence.demo.lexicon import PIECES, SUFFIXES, used_words

PAD, BOS, UNKNOWN = "<pad>", "<s>", "<unk>"
PAD_ID, BOS_ID = 0, 1  # places of the two in the vocabulary
_WORDS = re.compile(r"\w+|[^\w\s]")


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that puts ``<s>`` in front of every text; its vocabulary is in order of first use."""
    table = {piece: number for number, piece in enumerate(dict.fromkeys(_vocabulary(texts)))}
    backend = Tokenizer(models.WordPiece(table, unk_token=UNKNOWN, continuing_subword_prefix="##"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, table[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=BOS, unk_token=UNKNOWN, padding_side="right"
    )


def _vocabulary(texts: Iterable[str]) -> list[str]:
    compounds = {word for name in PIECES for word in used_words(name)}
    compounds |= {f"{verb}{suffix}" for verb in used_words("verb") for suffix in SUFFIXES}
    pieces = [PAD, BOS, UNKNOWN, *(f"##{suffix}" for suffix in SUFFIXES)]
    for first, second in PIECES.values():
        pieces += [*first, *(f"##{piece}" for piece in second)]
    pieces += [word for text in texts for word in _WORDS.findall(text) if word not in compounds]
    return pieces + [piece for letter in string.ascii_letters + string.digits for piece in (letter, f"##{letter}")]
