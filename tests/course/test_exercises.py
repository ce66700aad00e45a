"""Every exercise accepts the package's answer, names each known mistake, and lets stubs pass."""

from __future__ import annotations

import ast
import inspect
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ewc_tutorial.course import check, exercises, reference, reveal
from ewc_tutorial.course.exercises import EXERCISES
from ewc_tutorial.course.exercises.core import Exercise, Prediction

FUNCTIONS = {name: e for name, e in EXERCISES.items() if isinstance(e, Exercise)}
PREDICTIONS = {name: e for name, e in EXERCISES.items() if isinstance(e, Prediction)}
MISTAKES = [
    pytest.param(name, sentence, seed, marks=[pytest.mark.slow] if seed > 1 else [])
    for name, e in FUNCTIONS.items()
    for sentence in e.mistakes
    for seed in (range(4) if e.draws else (0,))
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_answer_passes_its_own_check(name):
    verdict = check(name, FUNCTIONS[name].answer)
    assert verdict
    assert repr(verdict).startswith("✓ Right")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sentence", "seed"), MISTAKES)
def test_each_known_mistake_is_rejected_and_named(name, sentence, seed):
    result = FUNCTIONS[name].judge(FUNCTIONS[name].mistakes[sentence], seed=seed)
    assert not result.correct
    assert sentence in result.text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_untouched_stub_is_no_error(name):
    assert "Not attempted yet" in FUNCTIONS[name].judge(lambda *_args, **_kwargs: ...).text


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_unknown_mistake_shows_the_first_difference(name):
    result = FUNCTIONS[name].judge(lambda *_args, **_kwargs: torch.tensor(12345.678))
    assert not result.correct
    assert "Case 1 of" in result.text


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, e in FUNCTIONS.items() if e.draws])
def test_an_answer_that_was_typed_in_for_one_draw_fails_in_the_next(name):
    exercise = FUNCTIONS[name]

    def typed(seed):
        answers = iter([exercise.answer(*case) for case in exercise.drawn(seed)])
        return lambda *_: next(answers)

    assert exercise.judge(typed(0), seed=0)
    assert exercise.judge(exercise.answer, seed=7)
    assert not exercise.judge(typed(0), seed=1)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_prediction_names_its_mistakes_and_says_why(name):
    prediction = PREDICTIONS[name]
    assert prediction.why
    assert prediction.within > 0 or prediction.factor > 1
    assert "Not attempted yet" in prediction.judge(..., 1.0).text


@pytest.mark.parametrize("name", FUNCTIONS)
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
    assert not {exercise.answer.__name__ for exercise in FUNCTIONS.values()} - named


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
    assert words in EXAMPLE.judge(fn).text


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
        (lambda x: pair(x) | {"w": torch.ones(2)}, "index (0,).\n  yours | target\n  1 1   | 2 2"),
    ],
)
def test_verdicts_on_results_with_parts(fn, words):
    nested = Exercise(answer=pair, cases=lambda: [(2.0,), (3.0,)])
    assert words in nested.judge(fn).text


def outer(x: np.ndarray) -> np.ndarray:
    return np.outer(x, x)


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (
            lambda x: x,
            "it returned an array of shape (2,), not an array of shape (2, 2).\n"
            "  yours | target\n"
            "  1 2   | 1 2\n"
            "        | 2 4",
        ),
        (
            lambda x: x @ x,
            "it returned a number, not an array of shape (2, 2).\n  yours | target\n",
        ),
        (
            lambda x: torch.ones(2, 2, requires_grad=True),
            "\n  yours | target\n  1 1   | 1 2\n  1 1 ",
        ),
        (lambda x: np.ones((40, 40)), "not an array of shape (2, 2)."),
        (lambda x: "1", "it returned a str, not an array of shape (2, 2)."),
    ],
)
def test_small_arrays_are_drawn_beside_each_other(fn, words):
    text = Exercise(answer=outer, cases=lambda: [(np.array([1.0, 2.0]),)]).judge(fn).text
    assert text.endswith(words) if words.endswith(".") else words in text


def test_each_check_draws_other_cases_in_the_same_order_in_every_session(monkeypatch):
    seen = []

    def look(x):
        seen.append(x)
        return x * x

    drawing = Exercise(answer=square, cases=lambda seed: [(float(seed),)])
    for _ in range(2):
        monkeypatch.setitem(exercises.EXERCISES, "drawing", drawing)
        monkeypatch.setattr(exercises, "_checked", Counter())
        assert [bool(check("drawing", look)) for _ in range(3)] == [True] * 3
    assert seen == [0.0, 1.0, 2.0] * 2


def slope(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def by_backward(x):
    x = x.clone().requires_grad_()
    (x**2).sum().backward()
    return x.grad


def by_imported_grad(x, grad=torch.autograd.grad):
    x = x.clone().requires_grad_()
    return grad((x**2).sum(), x)[0]


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (slope, "✓ Right"),
        (by_backward, "✗ Your function calls `backward`: this exercise asks for the formula."),
        (by_imported_grad, "✗ Your function calls `autograd.grad`"),
        (
            lambda x: 2 * x + 0 * x.std(),
            "✗ Your function calls `std`: this exercise is to do without.",
        ),
        (lambda x: 2 * x + 0 * torch.std(x), "✗ Your function calls `std`"),
    ],
)
def test_forbidden_calls_are_seen(fn, words):
    by_hand = Exercise(
        answer=slope,
        cases=lambda: [(torch.tensor([1.0, 2.0]),)],
        forbidden=("backward", "autograd.grad", "std"),
    )
    assert words in by_hand.judge(fn).text
    assert sys.getprofile() is None
    assert replace(by_hand, forbidden=()).judge(fn)


def test_only_what_pytorch_has_can_be_forbidden():
    wrong = Exercise(answer=square, cases=lambda: [(2.0,)], forbidden=("nothing",))
    with pytest.raises(ValueError, match="'nothing', but PyTorch has no such function"):
        wrong.judge(square)


POINTS = Prediction(
    "see section 1", within=2.0, unit=" points", mistakes={"Twice.": lambda v: 2 * v}
)
TIMES = Prediction("see section 1", factor=2.0)


def test_a_run_that_is_made_for_a_prediction_waits_for_it_and_has_another_seed_each_time():
    seeds = []
    prediction = Prediction("see section 1", within=0.1)
    assert "Not attempted" in repr(prediction.judge(..., seeds.append))
    assert "one number" in repr(prediction.judge("much", seeds.append))
    assert not seeds
    for seed in range(3):
        assert prediction.judge(0.55, lambda s: seeds.append(s) or 0.6, seed=seed)
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("prediction", "said", "found", "words"),
    [
        (POINTS, 11, 12.5, "✓ You said 11 points, the run gave 12.5 points: 1.5 points off."),
        (POINTS, 9, 12.5, "✗ You said 9 points, the run gave 12.5 points: 3.5 points off. Why?"),
        (POINTS, 24, 12.5, "12 points off. Twice."),
        (POINTS, torch.tensor(12.0), 12.5, "✓"),
        (POINTS, ..., 12.5, "○ Not attempted yet"),
        (POINTS, "much", 12.5, "✗ A prediction is one number, not 'much'."),
        (POINTS, torch.ones(2), 12.5, "✗ A prediction is one number, not tensor([1., 1.])."),
        (POINTS, 10**400, 12.5, "✗ A prediction is a finite number; this one is too large."),
        (POINTS, float("nan"), 12.5, "✗ A prediction is a finite number, not nan."),
        (TIMES, 150, 100, "✓ You said 150, the run gave 100: 1.5 times too large."),
        (TIMES, 3, 100, "✗ You said 3, the run gave 100: 33 times too small. Why?"),
        (TIMES, -90, 100, "✗ You said -90, the run gave 100: not even the sign is the same."),
        (TIMES, 0, 0, "✓ You said 0, the run gave 0"),
    ],
)
def test_verdicts_on_predictions(prediction, said, found, words):
    result = prediction.judge(said, found)
    assert words in result.text
    assert bool(result) == words.startswith("✓")


def test_a_number_that_no_array_holds_is_a_wrong_answer():
    result = Exercise(answer=square, cases=lambda: [(2.0,)]).judge(lambda x: 10**400)
    assert "Case 1 of 1 differs: is not a finite number." in result.text


def documented_stub(x):
    """Say what is wanted."""
    ...


def empty_stub(x):
    pass


@pytest.mark.parametrize("stub", [documented_stub, empty_stub, lambda x: ..., lambda x: None])
def test_a_stub_is_not_attempted(stub):
    assert EXAMPLE.judge(stub).text.startswith("○ Not attempted yet")


def test_what_ends_in_dots_is_not_attempted():
    assert EXAMPLE.judge(lambda x: (x**2, ...)[1]).text.startswith("○ Not attempted yet")


def test_a_mistake_that_leaves_rounding_errors_is_recognised_from_other_rounding_errors():
    cancels = Exercise(
        answer=square, cases=lambda: [(2.0,), (3.0,)], mistakes={"it cancels": lambda x: 1e-16 * x}
    )
    assert "it cancels" in cancels.judge(lambda x: -3e-16).text


def test_an_unknown_name_lists_the_exercises():
    with pytest.raises(KeyError, match="There is no exercise 'nothing'"):
        check("nothing", square)
