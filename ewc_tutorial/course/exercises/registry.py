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
for _chapter in CHAPTERS:
    EXERCISES.update(import_module(f"ewc_tutorial.course.exercises.{_chapter}").EXERCISES)
