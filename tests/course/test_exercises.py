"""Every exercise accepts the package's answer, names each known mistake, and lets stubs pass."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import numpy as np
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


def test_every_textbook_function_is_named_in_a_test_with_an_oracle_of_its_own():
    """By name only: `python tests/mutation.py` shows whether those tests also hold it."""
    named = {
        node.attr
        for path in Path(__file__).parent.glob("test_reference_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "reference"
    }
    public = {
        name
        for name, function in vars(reference).items()
        if inspect.isfunction(function) and function.__module__ == reference.__name__
    }
    assert not public - named
    assert not {exercise.answer.__name__ for exercise in EXERCISES.values()} - named


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
        (lambda x: [x, x], "Case 1 of 2 differs: it returned a list of 2, not a number."),
        (lambda x: {"x": x}, "it returned a dict with the keys 'x', not a number."),
        (lambda x: torch.zeros(3), "it returned an array of shape (3,), not a number."),
        (print, "✗ Your function returned nothing (None). End it with `return`"),
        (lambda x: print(x) or None, "✗ Your function returned nothing (None)."),
        (lambda x: None if x > 2 else x * x, "Case 2 of 2 differs: it returned nothing (None)"),
        (lambda x: torch.tensor(x * x), "✓ Right: 2 of 2"),
        (lambda x: (x * y for y in [x]), "it returned a generator, not a number."),
        (lambda x: float("nan"), "is not a finite number"),
        (lambda x: 1 / 0, "Case 1 raised ZeroDivisionError"),
        (lambda x: "four", "it returned a str, not a number."),
    ],
)
def test_verdicts(fn, words):
    assert words in judge(EXAMPLE, fn).text


def pair(x: float) -> dict[str, torch.Tensor | tuple[torch.Tensor, float]]:
    return {"w": torch.tensor([x, x]), "b": (torch.zeros(2, 2), x)}


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: pair(x) | {"w": np.array([x, x])}, "✓ Right: 2 of 2"),
        (lambda x: pair(x) | {"b": [torch.zeros(2, 2), x]}, "✓ Right: 2 of 2"),
        (lambda x: pair(x) | {"w": [x, x]}, "entry ['w'] is a list of 2, not an array of shape"),
        (lambda x: {"w": x}, "it returned a dict with the keys 'w', not a dict with the keys 'b'"),
        (lambda x: pair(x) | {"b": (x, x)}, "entry ['b'][0] is a number, not an array of shape (2"),
        (lambda x: pair(x) | {"b": (torch.ones(2, 2), x)}, "entry ['b'][0] your 1, expected 0 at"),
        (lambda x: pair(x)["w"], "it returned an array of shape (2,), not a dict with the keys"),
    ],
)
def test_verdicts_on_results_with_parts(fn, words):
    nested = Exercise(answer=pair, cases=lambda: [(2.0,), (3.0,)])
    assert words in judge(nested, fn).text


def documented_stub(x):
    """Say what is wanted."""
    ...


def empty_stub(x):
    pass


@pytest.mark.parametrize("stub", [documented_stub, empty_stub, lambda x: ..., lambda x: None])
def test_a_stub_is_not_attempted(stub):
    assert judge(EXAMPLE, stub).text.startswith("○ Not attempted yet")


def test_what_ends_in_dots_is_not_attempted():
    assert judge(EXAMPLE, lambda x: (x**2, ...)[1]).text.startswith("○ Not attempted yet")


def test_a_mistake_that_leaves_rounding_errors_is_recognised_from_other_rounding_errors():
    cancels = Exercise(
        answer=square, cases=lambda: [(2.0,), (3.0,)], mistakes={"it cancels": lambda x: 1e-16 * x}
    )
    assert "it cancels" in judge(cancels, lambda x: -3e-16).text


def test_an_unknown_name_lists_the_exercises():
    with pytest.raises(KeyError, match="There is no exercise 'nothing'"):
        check("nothing", square)
