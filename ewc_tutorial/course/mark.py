"""Points for submissions, for whoever has no nbgrader.

    python -m ewc_tutorial.course.mark anna.ipynb ben.ipynb              # a table as CSV
    python -m ewc_tutorial.course.mark --format json --key KEY *.ipynb

A submission is a lesson or its student version, filled in. Of its cells those are run that the
reader fills in, and of all others the imports, the functions and the constants, so that nothing is
trained and a submission takes seconds. Each answer is tried on cases that nobody has seen: they are
drawn by seeds that the key decides, and are the same for all submissions. What was right in one
cell stays right. Predictions count if they were made, not if they were right.

Marking runs the students' code with your rights: use an account or a container that has no others.
"""

from __future__ import annotations

import argparse
import ast
import csv
import glob
import hashlib
import json
import multiprocessing
import os
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import nbformat

from ewc_tutorial.course.classroom.questions import (
    Asked,
    asked,
    bound,
    calls,
    key_of,
    lesson,
    number_of,
    statements,
)
from ewc_tutorial.course.exercises import EXERCISES, Exercise, Prediction
from ewc_tutorial.course.exercises.core import Cases, Result, number_said
from ewc_tutorial.course.exercises.written import WrittenTest

#: How many draws of cases an answer must pass.
DRAWS = 3
_MISSING = Result(False, "○ Nothing was handed in for this exercise.")


@dataclass(frozen=True)
class Mark:
    """Points of one exercise; None where a person has to read the answer."""

    number: str
    exercise: str
    points: int | None
    of: int
    verdict: str


def seeds(name: str, key: str) -> list[int]:
    """Return the seeds that draw an exercise's cases: the same for a key, others for another."""
    words = (hashlib.sha256(f"{key}/{name}/{draw}".encode()).digest() for draw in range(DRAWS))
    return [1000 + int.from_bytes(word[:4], "big") % 1_000_000 for word in words]


def judge(name: str, *given: Any, key: str) -> Result:
    """Return the verdict on an answer after several draws of cases.

    Args:
        name: of the exercise.
        given: what the reader's cell defines.
        key: the lesson's own; decides which cases are drawn.
    """
    question = EXERCISES[name]
    if isinstance(question, Prediction):
        said = number_said(given[0])
        return said if isinstance(said, Result) else Result(True, f"✓ {said:g} was said.")
    verdict = _MISSING
    for seed in seeds(name, key):
        verdict = question.judge(*given, seed=seed)
        if not verdict:
            return verdict
    if isinstance(question, Exercise | WrittenTest) and _borrows(question, given[0], seed):
        return Result(False, "✗ The answer calls the package's own answer to an exercise.")
    return verdict


def award(name: str, *given: Any, key: str) -> None:
    """Raise if an answer is not right; the hidden tests of the nbgrader course call this.

    Raises:
        AssertionError: with the verdict.
    """
    verdict = judge(name, *given, key=key)
    if not verdict:
        raise AssertionError(verdict.text)


def mark(submission: nbformat.NotebookNode, key: str) -> list[Mark]:
    """Run what a submission's exercises need, in this process, and return their marks.

    Raises:
        ValueError: the notebook is no lesson.
    """
    number = number_of(submission)
    questions, key = asked(lesson(number)), key_of(number, key)
    verdicts: dict[str, Result] = {}
    namespace: dict[str, Any] = {"__name__": "submission"}
    for cell in submission.cells:
        names = set(bound(cell))
        mine = [one for one in questions if one.names[0] in names]
        for one in mine:
            if one.name not in verdicts:  # what a lesson imports under this name is no answer
                namespace.pop(one.names[0], None)
        error = _run(cell, namespace, whole=bool(mine))
        for one in mine:
            if not verdicts.get(one.name):  # a later cell may use the name for something else
                verdicts[one.name] = _verdict(one, namespace, error, key)
    return [
        Mark(
            one.number,
            one.name,
            None if one.by_hand else one.points * bool(verdicts.get(one.name)),
            one.points,
            "To be read by a person." if one.by_hand else verdicts.get(one.name, _MISSING).text,
        )
        for one in questions
    ]


def _verdict(
    one: Asked, namespace: dict[str, Any], error: BaseException | None, key: str
) -> Result:
    if one.by_hand:
        return _MISSING
    if not all(name in namespace for name in one.names):
        return _raised("The cell", error) if error else _MISSING
    try:
        return judge(one.name, *(namespace[name] for name in one.names), key=key)
    except KeyboardInterrupt:
        raise
    except BaseException as odd:  # one answer must not take the points of all others along
        return _raised("The answer", odd)


def _raised(what: str, error: BaseException) -> Result:
    return Result(False, f"✗ {what} raised {type(error).__name__}: {error}")


def _run(
    cell: nbformat.NotebookNode, namespace: dict[str, Any], whole: bool
) -> BaseException | None:
    """Run a cell's checks never, what it defines always, and the rest if it is an answer.

    What raises does not keep the rest from being run: the line behind a right function may try it
    on data that marking does not have. The first error is returned.
    """
    first = None
    for node in statements(cell):
        if calls(node, "check") or calls(node, "reveal") or not (whole or _defines(node)):
            continue
        try:
            exec(
                compile(ast.Module([node], []), f"<cell {cell.get('id', '?')}>", "exec"), namespace
            )
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also of exit(): the rest of the submission counts
            first = first or error
    return first


def _defines(node: ast.stmt) -> bool:
    """Return whether a statement imports, defines, or assigns without a call, as constants are."""
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
        called = any(isinstance(part, ast.Call) for part in ast.walk(node.value))
        return isinstance(node.value, ast.Lambda) or not called
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def _borrows(question: Exercise | WrittenTest, fn: Any, seed: int) -> bool:
    """Return whether an answer runs the package's own, or a textbook function that that needs not.

    What the package's own answer calls, such as the score, any answer may call.
    """
    own = question.answer.__code__
    if isinstance(question, WrittenTest):
        return own in _ran(fn, [(question.made(question.correct[0], seed),)])
    allowed = _ran(question.answer, question.drawn(seed)) - {own}
    borrowed = _ran(fn, question.drawn(seed)) - allowed
    return any(code.co_filename == own.co_filename for code in borrowed)


def _ran(fn: Any, cases: Cases) -> set[CodeType]:
    """Return all code of Python that a function runs."""
    found = set()

    def look(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            found.add(frame.f_code)

    before = sys.getprofile()
    for arguments in cases:
        sys.setprofile(look)
        try:
            with suppress(Exception):
                fn(*arguments)
        finally:
            sys.setprofile(before)
    return found


# --- the command ----------------------------------------------------------------------------


def mark_file(path: Path, key: str, timeout: float) -> list[Mark]:
    """Mark a submission in a process of its own, which a fault in it cannot outlive.

    Raises:
        ValueError: the file is no notebook of a lesson.
    """
    submission = nbformat.read(path, as_version=4)
    questions = asked(lesson(number_of(submission)))
    context = _context()
    here, there = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(str(path), key, there), daemon=True)
    worker.start()
    there.close()
    try:
        if here.poll(timeout):
            return here.recv()
        why = f"✗ Not done after {timeout:g} s."
    except EOFError:
        why = "✗ The submission ended the program."
    finally:
        worker.kill()
        worker.join()
    return [Mark(q.number, q.name, None if q.by_hand else 0, q.points, why) for q in questions]


def _context() -> Any:
    """Return how processes are started: where it can be, from one that has PyTorch loaded."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ewc_tutorial.course.classroom.questions"])
    return context


def _work(path: str, key: str, results: Any) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        results.send(mark(nbformat.read(path, as_version=4), key))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ewc_tutorial.course.mark", description=__doc__.splitlines()[0]
    )
    parser.add_argument("submissions", nargs="+", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--key", help="what build/classroom/key.txt holds")
    parser.add_argument("--format", choices=("csv", "json"), default="csv")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each submission")
    ours = parser.parse_args(arguments)
    if ours.key is not None and not ours.key.strip():
        parser.error("--key must be what build/classroom/key.txt holds, not empty.")
    if hasattr(sys.stdout, "reconfigure"):  # a file on Windows would take no ✓, nor some names
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    # No window for figures, and no note of the teacher's own progress.
    os.environ.update(MPLBACKEND="Agg", EWC_TUTORIAL_PROGRESS="off")
    marks, failed = {}, False
    for path in _expanded(ours.submissions):
        try:
            marks[path] = mark_file(path, (ours.key or "").strip(), ours.timeout)
        except Exception as error:  # whatever is wrong with a file, the others have their marks
            failed = True
            print(f"{path}: {error}", file=sys.stderr)
            marks[path] = [Mark("", "", None, 0, f"✗ Not marked: {error}")]
    if ours.format == "json":
        found = [
            {
                "submission": str(path),
                "points": sum(m.points or 0 for m in some),
                "of": sum(m.of for m in some if m.points is not None),
                "exercises": [asdict(m) for m in some],
            }
            for path, some in marks.items()
        ]
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return int(failed)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["submission", "number", "exercise", "points", "of", "verdict"])
    for path, some in marks.items():
        for m in some:
            points = "" if m.points is None else m.points
            table.writerow([path, m.number, m.exercise, points, m.of, " ".join(m.verdict.split())])
    return int(failed)


def _expanded(paths: list[Path]) -> list[Path]:
    """Return the paths with patterns replaced by the files that match: on Windows no shell does."""
    found = []
    for path in paths:
        matching = [] if path.exists() else sorted(glob.glob(str(path)))
        found += [Path(match) for match in matching] or [path]
    return found


if __name__ == "__main__":
    sys.exit(main())
