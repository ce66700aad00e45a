"""A quiz per lesson: one TOML file each, shown in the lesson's last cell.

    python -m ewc_tutorial.course.quizzes          # writes them into the notebooks

An option is folded away behind its text; opened, it says whether it is right, and why. That needs
no kernel. On a page ``quiz.js`` counts what was right at the first try.
"""

from __future__ import annotations

import html
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
#: Of the cell with the quiz.
CELL = "quiz"
SCRIPT = HERE / "quiz.js"
_INTRODUCTION = "Open the option that you think is right. It says whether it is, and why."


@dataclass(frozen=True)
class Option:
    """One thing to choose."""

    text: str
    why: str
    right: bool = False


@dataclass(frozen=True)
class Item:
    """One question of a quiz, of whose options one is right."""

    ask: str
    options: tuple[Option, ...]


def load(number: str) -> list[Item]:
    """Return the quiz of a lesson, ``"02"``.

    Raises:
        ValueError: a question has not exactly one right option.
    """
    stored = tomllib.loads((HERE / f"{number}.toml").read_text(encoding="utf-8"))
    items = [Item(q["ask"], tuple(Option(**o) for o in q["option"])) for q in stored["question"]]
    for item in items:
        if sum(option.right for option in item.options) != 1:
            raise ValueError(f"Of the options of {item.ask!r} exactly one must be right.")
    return items


def render(items: list[Item]) -> str:
    """Return a quiz as Markdown."""
    parts = ["## Quiz", _INTRODUCTION]
    for number, item in enumerate(items, start=1):
        parts.append(f"**{number}.** {item.ask}")
        for option in item.options:
            verdict = "✓ Right." if option.right else "✗ No."
            parts.append(
                f'<details class="quiz"><summary>{_inline(option.text)}</summary>\n\n'
                f"{verdict} {option.why}\n</details>"
            )
    return "\n\n".join(parts)


def put(notebook: nbformat.NotebookNode, items: list[Item]) -> None:
    """Make a quiz the last cell of a notebook, in place of the one that is there."""
    notebook.cells = [cell for cell in notebook.cells if cell.id != CELL]
    notebook.cells.append(nbformat.v4.new_markdown_cell(render(items), id=CELL))


def _inline(text: str) -> str:
    """Return Markdown's code and emphasis as HTML: in a summary Markdown is not read."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)
