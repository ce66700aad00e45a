"""Exercises: ``check`` an answer, ``reveal`` the package's own.

An exercise is declared, not programmed: the textbook function of
:mod:`ewc_tutorial.course.reference` that answers it, cases to try, and the mistakes
that people make, each a small wrong function with a sentence about it. :func:`check` runs the
reader's function on the cases, compares it with the answer and, where it differs, with every known
mistake. A prediction is declared by what it may miss the measured number by.
"""

from __future__ import annotations

import html
from collections import Counter
from typing import Any

from ewc_tutorial.course import progress
from ewc_tutorial.course.exercises.core import Exercise, Prediction, Question, Result
from ewc_tutorial.course.exercises.registry import EXERCISES

__all__ = ["EXERCISES", "Exercise", "Prediction", "check", "reveal"]

#: How often each exercise was checked: each time other cases are drawn, the same in every session.
_checked: Counter[str] = Counter()


def check(name: str, *given: Any) -> Result:
    """Try the reader's answer on the exercise's cases and return the verdict.

    A notebook shows the verdict as a sentence; it is true if the answer is right. A function
    whose body is empty or returns ``...`` counts as not attempted: nothing is raised, so that
    an untouched notebook runs from top to bottom. Each call draws fresh cases, by a seed that is
    counted up, so that the n-th call tries the same in every session.

    Args:
        name: of the exercise.
        given: the reader's function; for a prediction, the number that was said and the one that
            was measured, or how to measure it.

    Raises:
        KeyError: there is no exercise of that name.
    """
    exercise = _find(name)
    verdict = exercise.judge(*given, seed=_checked[name])
    _checked[name] += 1
    progress.note(name, verdict)
    return verdict


def reveal(name: str) -> Any:
    """Show the answer, folded: the source of the package's own function, or how to know a number.

    Raises:
        KeyError: there is no exercise of that name.
    """
    from IPython.display import HTML

    return HTML(
        f"<details><summary>Answer: <code>{html.escape(name)}</code></summary>"
        f"<pre>{html.escape(_find(name).answered())}</pre></details>"
    )


def _find(name: str) -> Question:
    if name not in EXERCISES:
        raise KeyError(f"There is no exercise {name!r}; there are {', '.join(EXERCISES)}.")
    return EXERCISES[name]
