"""The course's terms in four languages: ``docs/glossary.toml``, and the page that is made of it.

    python -m ewc_tutorial.course.glossary

makes ``docs/glossary.md`` and says which translations are of an older English text.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ewc_tutorial.course.publish import NOTEBOOKS, ROOT

SOURCE = ROOT / "docs" / "glossary.toml"
PAGE = ROOT / "docs" / "glossary.md"
#: Code of a language → its name in itself. English comes first; the others are translations of it.
LANGUAGES = {"en": "English", "de": "Deutsch", "zh": "中文", "ko": "한국어"}
#: Comes after a translation whose English has changed since.
STALE = {
    "de": "(Übersetzung eines älteren Textes)",
    "zh": "（译自较早的英文文本）",
    "ko": "(이전 영어 문장의 번역)",
}


@dataclass(frozen=True)
class Text:
    """A term in one language, with the sentence that says what it means."""

    term: str
    meaning: str

    @property
    def revision(self) -> str:
        """Eight digits that change with the text."""
        return hashlib.sha256(f"{self.term}\n{self.meaning}".encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Entry:
    """A term in all languages.

    Attributes:
        key: its name in the source, and its anchor on the page.
        lesson: two digits of the lesson where it first matters.
        texts: language → text.
        made_from: language → revision of the English that the translation was made from.
    """

    key: str
    lesson: str
    texts: dict[str, Text]
    made_from: dict[str, str]

    @property
    def stale(self) -> list[str]:
        """The languages whose translation is of another English text than today's."""
        now = self.texts["en"].revision
        return [code for code, revision in self.made_from.items() if revision != now]


def read(path: Path = SOURCE) -> list[Entry]:
    """Return the entries in the order of the file.

    Raises:
        ValueError: an entry lacks a language or has one too many, or a text is not as it must be.
    """
    entries = []
    for key, raw in tomllib.loads(path.read_text(encoding="utf-8")).items():
        lesson, texts, made_from = raw.pop("lesson", ""), {}, {}
        if not re.fullmatch(r"\d\d", lesson):
            raise ValueError(f"lesson of {key} must be two digits, not {lesson!r}.")
        if list(raw) != list(LANGUAGES):
            wanted = ", ".join(LANGUAGES)
            raise ValueError(f"{key} must have {wanted} in this order, not {', '.join(raw)}.")
        for code, words in raw.items():
            n = 2 if code == "en" else 3
            if len(words) != n:
                raise ValueError(f"{code} of {key} must be {n} strings, not {len(words)}.")
            texts[code] = Text(*words[:2])
            if code != "en":
                made_from[code] = words[2]
        entries.append(Entry(key, lesson, texts, made_from))
    return entries


def page(entries: list[Entry]) -> str:
    """Return the page in Markdown: a table of all terms, then each with its sentences."""
    lessons = {path.name[:2]: path.name for path in NOTEBOOKS.glob("*.ipynb")}
    lines = [
        "# Glossary",
        "",
        "The course's terms in four languages, and what each means. Symbols are in the "
        "[notation](../notebooks/notation.md). This page is made from `glossary.toml` by "
        "`python -m ewc_tutorial.course.glossary`.",
        "",
        f"| {' | '.join(LANGUAGES.values())} |",
        f"|{' --- |' * len(LANGUAGES)}",
    ]
    entries = sorted(entries, key=lambda entry: entry.texts["en"].term.casefold())
    for entry in entries:
        first, *others = (entry.texts[code].term for code in LANGUAGES)
        spoken = [in_language(*pair) for pair in zip(STALE, others, strict=True)]
        lines.append(f"| [{first}](#{anchor(first)}) | {' | '.join(spoken)} |")
    for entry in entries:
        english = entry.texts["en"]
        lines += ["", f"## {english.term}", ""]
        lesson = lessons[entry.lesson]
        lines += [f"{english.meaning} Lesson [{entry.lesson}](../notebooks/{lesson}).", ""]
        for code in STALE:
            text, note = entry.texts[code], STALE[code] if code in entry.stale else ""
            words = f"{LANGUAGES[code]}: **{text.term}** · {text.meaning} {note}".rstrip()
            lines.append(f"- {in_language(code, words)}")
    return "\n".join(lines) + "\n"


def in_language(code: str, words: str) -> str:
    """Return words marked as of a language, for screen readers and for the choice of glyphs."""
    return f'<span lang="{code}">{words}</span>'


def anchor(heading: str) -> str:
    """Return the name that a heading has in links, on GitHub and in MyST alike."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def main() -> None:
    entries = read()
    PAGE.write_text(page(entries), encoding="utf-8")
    for entry in entries:
        if entry.stale:
            languages, revision = ", ".join(entry.stale), entry.texts["en"].revision
            print(f"{entry.key}: {languages} must be revised, and then have {revision!r}")


if __name__ == "__main__":
    main()
