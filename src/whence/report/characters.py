"""Characters that must not act: terminal controls, bidi overrides, invisible marks. One table for all outputs.

The HTML page keeps every character and draws a visible mark over it (``marks()`` goes into the page); the terminal
replaces the character by its mark; CSV keeps text but disarms formulas.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

# Ranges that are invisible or that steer the terminal or the text direction. Newline and tab are handled by callers.
RANGES = (
    (0x00, 0x08),  # C0 controls before tab
    (0x0B, 0x1F),  # C0 controls after newline: carriage return, escape ...
    (0x7F, 0x9F),  # delete and the C1 controls
    (0xAD, 0xAD),  # soft hyphen
    (0x034F, 0x034F),  # combining grapheme joiner
    (0x061C, 0x061C),  # Arabic letter mark
    (0x115F, 0x1160),  # Hangul fillers
    (0x180B, 0x180E),  # Mongolian selectors
    (0x200B, 0x200C),  # zero-width space and non-joiner
    (0x200E, 0x200F),  # direction marks
    (0x2028, 0x202E),  # line and paragraph separators, bidi embeddings and overrides
    (0x2060, 0x206F),  # invisible operators, bidi isolates
    (0xFEFF, 0xFEFF),  # byte order mark
    (0xFFF9, 0xFFFB),  # interlinear annotation
    (0xD800, 0xDFFF),  # lone surrogates
    (0xE0000, 0xE007F),  # tags: invisible copies of ASCII
)
# U+200D (zero-width joiner) and U+FE0F (emoji style) stay: they glue emoji and Indic letters, and steer nothing.

_CLASS = "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in RANGES)
UNSEEN = re.compile(f"[{_CLASS}]")
# What a spreadsheet may run, also behind leading blanks and in full-width form; the page uses the same pattern.
FORMULA = r"^[\s\x00]*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20|%]"


@cache
def mark(character: str) -> str:
    """The visible stand-in of one character of the table: ``␛`` for escape, ``⟨202E⟩`` for an override."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨{code:04X}⟩"


def visible(text: str, *, one_line: bool = False) -> str:
    r"""Text that is safe to send to a terminal: every steering or invisible character replaced by its mark.

    Args:
        text: anything.
        one_line: also turn newlines into ``↵`` and tabs into spaces.

    >>> visible("a\x1b[31mb")
    'a␛[31mb'
    """
    if one_line:
        text = text.replace("\r\n", "\n").replace("\n", " ↵ ").replace("\t", " ")
    return UNSEEN.sub(lambda match: mark(match[0]), text)


def calm(text: str, most: int = 4) -> str:
    """At most ``most`` combining marks in a row, so that a flood cannot paint over its neighbours."""
    if text.isascii():
        return text
    kept, run = [], 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= most:
            kept.append(character)
    return "".join(kept)


def csv_cell(text: str) -> str:
    """Text that a spreadsheet will not run: a leading ``'`` where it would start a formula.

    >>> csv_cell("=1+1"), csv_cell("fine")
    ("'=1+1", 'fine')
    """
    return f"'{text}" if re.match(FORMULA, text) else text
