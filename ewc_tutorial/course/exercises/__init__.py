"""Exercises: ``check`` an answer, ``reveal`` the package's own.

An exercise is declared, not programmed: the textbook function of
:mod:`ewc_tutorial.course.reference` that answers it, cases to try, and the mistakes
that people make, each a small wrong function with a sentence about it. :func:`check` runs the
reader's function on the cases, compares it with the answer and, where it differs, with every known
mistake.
"""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable
from typing import Any

from ewc_tutorial.course.exercises.core import Exercise, Result, judge
from ewc_tutorial.course.exercises.prediction import graded
from ewc_tutorial.course.exercises.registry import EXERCISES

__all__ = ["EXERCISES", "Exercise", "check", "graded", "reveal"]


def check(name: str, fn: Callable[..., Any]) -> Result:
    """Try the reader's function on the exercise's cases and return the verdict.

    A notebook shows the verdict as a sentence; it is true if the function is right. A function
    whose body is empty or returns ``...`` counts as not attempted: nothing is raised, so that
    an untouched notebook runs from top to bottom.

    Raises:
        KeyError: there is no exercise of that name.
    """
    return judge(_find(name), fn)


def reveal(name: str) -> Any:
    """Show the answer, folded: the source of the package's own textbook function.

    Raises:
        KeyError: there is no exercise of that name.
    """
    from IPython.display import HTML

    source = inspect.getsource(_find(name).answer)
    return HTML(
        f"<details><summary>Answer: <code>{html.escape(name)}</code></summary>"
        f"<pre>{html.escape(source)}</pre></details>"
    )


def _find(name: str) -> Exercise:
    if name not in EXERCISES:
        raise KeyError(f"There is no exercise {name!r}; there are {', '.join(EXERCISES)}.")
    return EXERCISES[name]
