"""Texts as people write them, made into what a recogniser can write: by rules that cannot guess.

A wrong text teaches a wrong word, so whatever can be read in two ways is left alone, and the text
is refused for it: ``3.`` may be an ordinal, ``1984`` a year, ``%`` a word.
"""

from __future__ import annotations

import re
from collections.abc import Set

import num2words

from ewc_tutorial.speech.errors import RefusedError

#: Marks that nobody speaks. Between two words they are a space.
_BREAKS = frozenset('.,;:!?…¡¿"„“”«»‹›()[]{}-‐‑–—')
#: Marks within a word. Recognisers that write one write the first.
_APOSTROPHES = frozenset("'’‘ʼ`´")
#: From here on years begin, which have a way of their own to be read.
_TOO_LARGE = 1100
_NUMBER = re.compile(r"\d[\d.,:/]*")
#: A whole number that stands alone, perhaps at the end of a sentence that ends the text.
_PLAIN = re.compile(r"(?<![\w.,:/+-])(0|[1-9]\d{0,3})(?=[,;:!?)]*(?:\s|$)|\.\s*$)")


def normalised(text: str, letters: Set[str], language: str) -> str:
    """Return a text without the marks that a model cannot write, and with its numbers as words.

    Args:
        text: in any case.
        letters: what the model can write.
        language: of the numbers, as num2words names it: ``de``, ``en``, …

    Raises:
        RefusedError: a number can be read in more than one way.
    """
    if not any(c.isdigit() for c in letters):
        text = _PLAIN.sub(lambda found: _in_words(found[1], language), text)
        if left := _NUMBER.search(text):
            raise RefusedError(
                f"text has {left[0]!a}, which can be read in several ways: write it in words."
            )
    kept = []
    for c in text:
        if c in letters or c not in _BREAKS | _APOSTROPHES:
            kept.append(c)
        elif c in _BREAKS:
            kept.append(" ")
        elif "'" in letters:
            kept.append("'")
    return " ".join("".join(kept).split())


def _in_words(number: str, language: str) -> str:
    return num2words.num2words(int(number), lang=language) if int(number) < _TOO_LARGE else number
