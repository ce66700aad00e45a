"""What of the lessons becomes a slide. The page itself is opened in tests/browser."""

from __future__ import annotations

import nbformat
import pytest

from ewc_tutorial.course import slides
from ewc_tutorial.course.classroom.questions import LESSONS


def test_a_slide_shows_what_fits_and_the_notes_hold_the_rest():
    text = "## 1 · Springs\n\nLong prose.\n\n$$ x^2 $$\n\nMore.\n\n> **Predict.** Which?\n\n- one"
    assert slides.shown(text) == "## 1 · Springs\n\n$$ x^2 $$\n\n> **Predict.** Which?\n\n- one"


def test_every_tagged_cell_is_a_slide_that_shows_something():
    tagged = [
        cell
        for path in sorted(LESSONS.glob("*.ipynb"))
        for cell in nbformat.read(path, as_version=4).cells
        if "slideshow" in cell.metadata
    ]
    made = list(slides.sections())
    assert len(made) == len(tagged) >= 25
    for cell, section in zip(tagged, made, strict=True):
        if cell.cell_type == "markdown":
            assert slides.shown(cell.source), cell.id
        else:
            assert "<img alt=" in section or "<pre>" in section, cell.id
            assert 'alt=""' not in section, cell.id


def test_a_cell_without_outputs_before_a_caption_is_an_empty_slide():
    new = nbformat.v4
    caption = new.new_markdown_cell("*Figure 1. Springs.*")
    assert slides._output(new.new_code_cell("draw()"), caption) == ""


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(slides, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"sphinx_revealjs: pip install .*\[slides\]"):
        slides.page()
