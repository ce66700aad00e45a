"""The quizzes: complete, in the notebooks as they are stored, and readable without a kernel."""

from __future__ import annotations

import re

import nbformat
import pytest

from ewc_tutorial.course import quizzes
from ewc_tutorial.course.classroom.questions import LESSONS, lesson
from ewc_tutorial.course.publish import times_line

NUMBERS = [path.name[:2] for path in sorted(LESSONS.glob("*.ipynb"))]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_last_cell_of_a_lesson_is_its_quiz(number):
    *others, last = lesson(number).cells
    assert (last.id, last.source) == (quizzes.CELL, quizzes.render(quizzes.load(number))), (
        "write it anew: python -m ewc_tutorial.course.quizzes"
    )
    assert quizzes.CELL not in [cell.id for cell in others]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_option_has_a_reason_and_no_place_is_always_right(number):
    items = quizzes.load(number)
    assert 3 <= len(items) <= 4
    for item in items:
        assert item.ask.endswith("?")
        assert 3 <= len(item.options) <= 4
        assert len({option.why for option in item.options}) == len(item.options)
        assert all(len(option.why.split()) >= 3 for option in item.options)
    places = {[option.right for option in item.options].index(True) for item in items}
    assert len(places) > 1


def test_a_quiz_is_put_in_place_of_the_old_one_and_folds_its_answers():
    notebook = lesson("00")
    ids = [cell.id for cell in notebook.cells]
    quizzes.put(notebook, quizzes.load("00"))
    assert [cell.id for cell in notebook.cells] == ids
    nbformat.validate(notebook)
    text = notebook.cells[-1].source
    outside = re.sub(r"(?s)</summary>.*?</details>", "", text)
    assert "✓" in text
    assert "✓" not in outside
    assert not re.search(r"<summary>[^<]*[`*]", text), "Markdown is not read in a summary"


def test_one_option_must_be_right(tmp_path, monkeypatch):
    wrong = '[[question]]\nask = "Why?"\n[[question.option]]\ntext = "So."\nwhy = "No."\n'
    (tmp_path / "00.toml").write_text(wrong)
    monkeypatch.setattr(quizzes, "HERE", tmp_path)
    with pytest.raises(ValueError, match=r"Of the options of 'Why\?' exactly one must be right"):
        quizzes.load("00")


def test_the_reading_time_is_that_of_the_lesson_without_its_quiz():
    notebook = lesson("00")
    without = nbformat.from_dict({**notebook, "cells": notebook.cells[:-1]})
    assert times_line(notebook, 10) == times_line(without, 10)
