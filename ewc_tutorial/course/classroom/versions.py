"""A lesson as the students get it, and as an assignment of nbgrader."""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from copy import deepcopy
from types import ModuleType
from typing import Any

import nbformat
from nbformat import NotebookNode

from ewc_tutorial.course.classroom.questions import (
    Asked,
    asked,
    bound,
    calls,
    key_of,
    number_of,
    statements,
)
from ewc_tutorial.course.exercises import EXERCISES, Exercise, Prediction
from ewc_tutorial.course.exercises.written import WrittenTest

HIDDEN = "# The code of this cell would answer an exercise. Below is what it prints."
#: nbgrader 0.9 reads and writes this version of its metadata.
SCHEMA = 3


def student(lesson: NotebookNode) -> NotebookNode:
    """Return a copy of a lesson in which no cell holds an answer.

    Raises:
        ValueError: a passage that is to be replaced is not there, or more than once.
    """
    version = deepcopy(lesson)
    touched = {place for one in asked(version) for place in (one.answer, one.check)}
    for place, cell in enumerate(version.cells):
        before = cell.source
        for old, new in cell.metadata.pop("student", ()):
            if cell.source.count(old) != 1:
                raise ValueError(
                    f"Cell {cell.id} must hold the passage {old!r} once, not "
                    f"{cell.source.count(old)} times."
                )
            cell.source = cell.source.replace(old, new)
        if cell.cell_type == "code" and (cell.source != before or place in touched):
            cell.outputs, cell.execution_count = [], None
        if "answer" in cell.metadata.get("tags", ()):
            cell.source = HIDDEN
    version.cells = [cell for cell in version.cells if not _reveals(cell)]
    return version


def assignment(lesson: NotebookNode, key: str) -> NotebookNode:
    """Return a lesson as nbgrader's source: with solutions, points and hidden tests.

    The solutions and the hidden tests stand between nbgrader's marks, so that its
    ``generate_assignment`` leaves the student version, and one cell more per exercise.

    Args:
        lesson: as it is committed.
        key: decides which cases the hidden tests draw; what stands in them is the lesson's own.
    """
    version, key = student(lesson), key_of(number_of(lesson), key)
    for one in reversed(asked(version)):
        cell = version.cells[one.answer]
        cell.source = _with_solution(cell, one)
        points = {"points": one.points} if one.by_hand else {}
        _grade(cell, f"{one.name}-answer", solution=True, grade=one.by_hand, **points)
        if not one.by_hand:
            test = nbformat.v4.new_code_cell(_test(one, key), id=f"{cell.id}-marks")
            _grade(test, one.name, locked=True, grade=True, points=one.points)
            version.cells.insert(one.check + 1, test)
    return version


def solution(one: Asked) -> str:
    """Return code that answers an exercise and needs nothing but PyTorch and the package."""
    question = EXERCISES[one.name]
    if isinstance(question, Exercise | WrittenTest):
        source, name = standing(question.answer), question.answer.__name__
        return source if name == one.names[0] else f"{source}\n\n{one.names[0]} = {name}"
    if isinstance(question, Prediction):
        return f"{one.names[0]} = 1.0  # any number counts: it was said before the run"
    return "\n".join(f"# {line}".rstrip() for line in question.answered().splitlines())


def standing(function: Any) -> str:
    """Return the source of a function of the package with the imports that it needs."""
    source = inspect.getsource(function).strip()
    used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    lines = []
    for name in sorted(used & set(function.__globals__) - set(dir(builtins))):
        found = function.__globals__[name]
        if isinstance(found, ModuleType):
            parent, _, last = found.__name__.rpartition(".")
            lines.append(
                f"import {found.__name__}" if not parent else f"from {parent} import {last}"
            )
            if last != name:
                lines[-1] += f" as {name}"
        else:
            home = getattr(found, "__module__", function.__module__)
            if getattr(sys.modules[home], name, None) is not found:
                home = function.__module__
            lines.append(f"from {home} import {name}")
    return "\n".join([*lines, *([""] * 2 if lines else []), source])


def _with_solution(cell: NotebookNode, one: Asked) -> str:
    """Put the solution behind the last of the lines that the reader is to fill in."""
    nodes = bound(cell)
    end = max(nodes[name].end_lineno for name in one.names if name in nodes)
    lines = cell.source.splitlines()
    marked = ["", "### BEGIN SOLUTION", *solution(one).splitlines(), "### END SOLUTION"]
    return "\n".join(lines[:end] + marked + lines[end:])


def _test(one: Asked, key: str) -> str:
    points = f"{one.points} point{'s' * (one.points > 1)}"
    return (
        f"# Marks of exercise {one.number}, {points}: leave this cell as it is.\n"
        "### BEGIN HIDDEN TESTS\n"
        "from ewc_tutorial.course.mark import award\n\n"
        f'award("{one.name}", {", ".join(one.names)}, key="{key}")\n'
        "### END HIDDEN TESTS"
    )


def _grade(cell: NotebookNode, name: str, **roles: Any) -> None:
    roles = {"grade": False, "solution": False, "locked": False, "task": False} | roles
    cell.metadata["nbgrader"] = {"schema_version": SCHEMA, "grade_id": name, **roles}
    if roles["grade"]:
        cell.metadata["nbgrader"]["cell_type"] = cell.cell_type


def _reveals(cell: NotebookNode) -> bool:
    return any(calls(node, "reveal") for node in statements(cell))
