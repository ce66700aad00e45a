"""All exercises by name, in the order of the course. One module per notebook declares them."""

from __future__ import annotations

from importlib import import_module

from ewc_tutorial.course.exercises.core import Question

#: The modules of this package that declare exercises, each in a dict ``EXERCISES``.
CHAPTERS = (
    "start",
    "bayes",
    "fisher",
    "penalty",
    "curves",
    "lab",
    "many",
    "scenarios",
    "bugs",
    "language",
    "speech",
    "unlearning",
    "reproduction",
    "beyond",
    "referee",
)

EXERCISES: dict[str, Question] = {}
#: The number of the lesson that sets each exercise.
LESSON_OF: dict[str, int] = {}
for _lesson, _chapter in enumerate(CHAPTERS):
    _found = import_module(f"ewc_tutorial.course.exercises.{_chapter}").EXERCISES
    EXERCISES.update(_found)
    LESSON_OF.update(dict.fromkeys(_found, _lesson))
