"""Every exercise accepts the package's answer, names each known mistake, and lets stubs pass."""

from __future__ import annotations

import inspect

import pytest
import torch

from ewc_tutorial.course import check, reference, reveal
from ewc_tutorial.course.exercises import EXERCISES
from ewc_tutorial.course.exercises.core import Exercise, judge

MISTAKES = [(name, sentence) for name, e in EXERCISES.items() for sentence in e.mistakes]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_answer_passes_its_own_check(name):
    verdict = check(name, EXERCISES[name].answer)
    assert verdict
    assert repr(verdict).startswith("✓ Right")


@pytest.mark.parametrize(("name", "sentence"), MISTAKES)
def test_each_known_mistake_is_rejected_and_named(name, sentence):
    result = judge(EXERCISES[name], EXERCISES[name].mistakes[sentence])
    assert not result.correct
    assert sentence in result.text


@pytest.mark.parametrize("name", EXERCISES)
def test_an_untouched_stub_is_no_error(name):
    assert "Not attempted yet" in judge(EXERCISES[name], lambda *_args, **_kwargs: ...).text


@pytest.mark.parametrize("name", EXERCISES)
def test_an_unknown_mistake_shows_the_first_difference(name):
    result = judge(EXERCISES[name], lambda *_args, **_kwargs: torch.tensor(12345.678))
    assert not result.correct
    assert "Case 1 of" in result.text


@pytest.mark.parametrize("name", EXERCISES)
def test_the_answer_is_a_short_documented_textbook_function(name):
    answer = EXERCISES[name].answer
    assert getattr(reference, answer.__name__) is answer
    assert inspect.getdoc(answer)
    assert len(inspect.getsource(answer).splitlines()) <= 40
    assert EXERCISES[name].mistakes, "an exercise knows at least one mistake by name"
    assert inspect.getsource(answer).splitlines()[0] in reveal(name).data.replace("&gt;", ">")


def test_the_reveal_is_folded():
    html = reveal(next(iter(EXERCISES))).data
    assert html.startswith("<details><summary>")


def square(x: float) -> float:
    return x * x


EXAMPLE = Exercise(
    answer=square,
    cases=lambda: [(2.0,), (3.0,)],
    mistakes={"this doubles": lambda x: 2 * x},
)


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: x**2, "✓ Right: 2 of 2"),
        (lambda x: 2 * x, "✗ this doubles"),
        (lambda x: x + 2, "Case 2 of 2 differs: your 5, expected 9"),
        (lambda x: [x, x], "it returned 2 arrays, not 1"),
        (lambda x: torch.zeros(3), r"shape (3,), not ()"),
        (lambda x: float("nan"), "is not a finite number"),
        (lambda x: 1 / 0, "Case 1 raised ZeroDivisionError"),
        (lambda x: "four", "is not a finite number"),
    ],
)
def test_verdicts(fn, words):
    assert words in judge(EXAMPLE, fn).text


def test_a_mistake_that_leaves_rounding_errors_is_recognised_from_other_rounding_errors():
    cancels = Exercise(
        answer=square, cases=lambda: [(2.0,), (3.0,)], mistakes={"it cancels": lambda x: 1e-16 * x}
    )
    assert "it cancels" in judge(cancels, lambda x: -3e-16).text


def test_an_unknown_name_lists_the_exercises():
    with pytest.raises(KeyError, match="There is no exercise 'nothing'"):
        check("nothing", square)
