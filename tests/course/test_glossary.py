"""The glossary: complete, in the languages it says, of today's English, and used by the lessons."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

import nbformat
import pytest

from ewc_tutorial.course import glossary

ENTRIES = glossary.read()
#: The letters that a sentence of each language has, by their names in Unicode.
SCRIPTS = {"en": "LATIN", "de": "LATIN", "zh": "CJK UNIFIED IDEOGRAPH", "ko": "HANGUL SYLLABLE"}
ENDS = {"en": ".", "de": ".", "zh": "。", "ko": "다."}


def test_no_english_has_moved_on_without_its_translations():
    behind = {
        entry.key: (entry.stale, entry.texts["en"].revision) for entry in ENTRIES if entry.stale
    }
    assert not behind, f"revise these translations, then give them the revision: {behind}"


def test_the_page_is_made_of_the_source():
    assert glossary.PAGE.read_text(encoding="utf-8") == glossary.page(ENTRIES)


@pytest.mark.parametrize("code", glossary.LANGUAGES)
def test_every_text_is_a_sentence_in_its_language_and_every_term_its_own(code):
    texts = [entry.texts[code] for entry in ENTRIES]
    assert len({text.term for text in texts}) == len(texts)
    for text in texts:
        assert text.meaning.endswith(ENDS[code]), text
        assert text.meaning[0] == text.meaning[0].upper()
        letters = [unicodedata.name(c) for c in text.term + text.meaning if c.isalpha()]
        own = sum(name.startswith(SCRIPTS[code]) for name in letters)
        assert own > 0.6 * len(letters), text


@cache
def prose_of(lesson: str) -> str:
    (path,) = glossary.NOTEBOOKS.glob(f"{lesson}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.key)
def test_a_lesson_uses_the_term(entry):
    prose = prose_of(entry.lesson)
    word = entry.texts["en"].term.partition(" (")[0]
    shorter = {"paired comparison": "paired", "low-rank adaptation": "LoRA"}.get(word, word)
    assert re.search(rf"\b{re.escape(shorter)}", prose, flags=re.I)


SOURCE = """
[anchor]
lesson = "03"
en = ["anchor", "{meaning}"]
de = ["Anker", "Die alten Gewichte.", "{revision}"]
zh = ["锚点", "旧权重。", "{revision}"]
ko = ["앵커", "이전 가중치이다.", "00000000"]
"""


def written(folder: Path, text: str) -> Path:
    (folder / "glossary.toml").write_text(text, encoding="utf-8")
    return folder / "glossary.toml"


def test_a_change_of_the_english_is_told_and_shown_on_the_page(tmp_path):
    now = glossary.Text("anchor", "The old weights.").revision
    same = SOURCE.format(meaning="The old weights.", revision=now)
    (entry,) = glossary.read(written(tmp_path, same))
    assert entry.stale == ["ko"]
    (entry,) = glossary.read(written(tmp_path, same.replace("old weights.", "weights of task A.")))
    assert entry.stale == ["de", "zh", "ko"]
    assert "älteren Textes" in glossary.page([entry])
    assert "älteren Textes" not in glossary.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('lesson = "03"', "", "lesson of anchor must be two digits, not ''"),
        (
            'ko = ["앵커"',
            'fr = ["ancre"',
            "must have en, de, zh, ko in this order, not en, de, zh, fr",
        ),
        (', "00000000"]', "]", "ko of anchor must be 3 strings, not 2"),
    ],
)
def test_what_is_missing_is_named(tmp_path, old, new, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        glossary.read(written(tmp_path, SOURCE.replace(old, new)))


def test_links_of_the_page_lead_somewhere():
    text = glossary.PAGE.read_text(encoding="utf-8")
    headings = {glossary.anchor(found) for found in re.findall(r"^## (.+)$", text, re.M)}
    targets = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert targets == headings
    assert len(headings) == len(ENTRIES)
    for target in re.findall(r"\]\(([^#)]+)\)", text):
        assert (glossary.PAGE.parent / target).exists(), target
