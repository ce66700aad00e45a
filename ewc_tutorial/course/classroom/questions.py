"""The exercises of a lesson, found in its cells."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat

from ewc_tutorial.course.exercises import EXERCISES, Exercise, Prediction
from ewc_tutorial.course.exercises.core import Question
from ewc_tutorial.course.exercises.written import WrittenTest

LESSONS = Path(__file__).resolve().parents[3] / "notebooks"
_HEADING = re.compile(r"^### Exercise (\d\d\.\d+) · (.+?) (●[●○]{2}) ", flags=re.M)

#: Magics above a cell that run it as it is; of others, such as %%html, the rest is no Python.
TIMED = re.compile(r"\A(?:\s*%%(?:time|capture|prun)\b.*\n)+")


@dataclass(frozen=True)
class Asked:
    """An exercise as it stands in a lesson.

    Attributes:
        name: by which ``check`` knows it.
        number, title: of its heading: ``"02.1"``.
        points: as many as its heading has full dots; a prediction is worth one.
        names: what the reader's cell defines, in the order in which ``check`` takes it.
        answer, check: the places of the reader's cell and of the check, which may be the same.
    """

    name: str
    number: str
    title: str
    points: int
    names: tuple[str, ...]
    answer: int
    check: int

    @property
    def question(self) -> Question:
        return EXERCISES[self.name]

    @property
    def by_hand(self) -> bool:
        """Whether a person has to read the answer."""
        return not isinstance(self.question, Exercise | Prediction | WrittenTest)


def lesson(number: str) -> nbformat.NotebookNode:
    """Read a lesson by its number, ``"02"``.

    Raises:
        ValueError: there is no lesson of that number.
    """
    found = sorted(LESSONS.glob(f"{number}_*.ipynb"))
    if len(found) != 1:
        known = ", ".join(path.name[:2] for path in sorted(LESSONS.glob("*.ipynb")))
        raise ValueError(f"number must be one of {known}, not {number!r}.")
    return nbformat.read(found[0], as_version=4)


def number_of(notebook: nbformat.NotebookNode) -> str:
    """Return the number of the lesson that a notebook was made from, by its title.

    Raises:
        ValueError: the notebook has no title of a lesson.
    """
    for cell in notebook.cells:
        title = re.match(r"# (\d\d) · ", cell.source) if cell.cell_type == "markdown" else None
        if title:
            return title[1]
    raise ValueError("The notebook has no title such as '# 02 · …', so its lesson is not known.")


def key_of(number: str, key: str) -> str:
    """Return a lesson's own key: feedback on a lesson shows it, and must not tell of the others."""
    return hashlib.sha256(f"{key}/{number}".encode()).hexdigest()[:16]


def asked(notebook: nbformat.NotebookNode) -> list[Asked]:
    """Return the exercises of a lesson in their order."""
    found, heading, since = [], None, 0
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            for heading in _HEADING.finditer(cell.source):  # noqa: B007, the last one counts
                since = place
            continue
        for call in _calls(cell.source, "check"):
            assert heading is not None, f"check before the heading of its exercise: {cell.source}"
            name = ast.literal_eval(call.args[0])
            given = [a.id for a in call.args[1:] if isinstance(a, ast.Name)]
            answers = [k for k in range(since, place + 1) if given[0] in bound(notebook.cells[k])]
            points = 1 if isinstance(EXERCISES[name], Prediction) else heading[3].count("●")
            names = tuple(given)
            found.append(Asked(name, heading[1], heading[2], points, names, answers[-1], place))
    return found


def bound(cell: nbformat.NotebookNode) -> dict[str, ast.stmt]:
    """Return the names that a code cell defines or assigns, not those that it imports."""
    return _bound(statements(cell))


def _bound(nodes: list[ast.stmt]) -> dict[str, ast.stmt]:
    names: dict[str, ast.stmt] = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for part in ("body", "orelse", "finalbody"):
                names |= _bound(getattr(node, part, []))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        names[part.id] = node
    return names


def statements(cell: nbformat.NotebookNode) -> list[ast.stmt]:
    """Return the statements of a code cell; none if it is no Python, or no code."""
    if cell.cell_type != "code":
        return []
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        source = TIMED.sub("", cell.source)
        return ast.parse(TransformerManager().transform_cell(source)).body
    except SyntaxError:
        return []


def calls(node: ast.stmt, name: str) -> ast.Call | None:
    """Return the call if a statement is nothing but a call of the function of that name."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        if isinstance(called, ast.Name) and called.id == name:
            return node.value
    return None


def _calls(source: str, name: str) -> Iterator[ast.Call]:
    for node in ast.parse(source).body:
        if call := calls(node, name):
            yield call
