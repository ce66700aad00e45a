"""What is handed out holds no answer, and what comes back gets the points that it deserves."""

from __future__ import annotations

import ast
import csv
import importlib.util
import inspect
import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import forked
import nbformat
import numpy as np
import pytest
import torch
from shortened import keep_cells

from ewc_tutorial.course import classroom, mark, programs, reference
from ewc_tutorial.course.classroom.__main__ import build
from ewc_tutorial.course.classroom.questions import (
    LESSONS,
    asked,
    bound,
    key_of,
    lesson,
    number_of,
)
from ewc_tutorial.course.classroom.versions import HIDDEN, assignment, student
from ewc_tutorial.course.exercises import EXERCISES, Exercise

ROOT = Path(classroom.__file__).resolve().parents[3]
NUMBERS = [path.name[:2] for path in sorted(LESSONS.glob("*.ipynb"))]
KEY = "a word"
#: Lessons with exercises whose cases are trainings, and lessons that load Transformers.
TRAINED, TRANSFORMERS = ("04", "08"), ("09", "10")
every_lesson = pytest.mark.parametrize("number", NUMBERS)


def lessons_but(*slow: str):
    """Run a test for every lesson; `make test` alone runs it for the slow ones."""
    marked = [pytest.param(n, marks=[pytest.mark.slow] * (n in slow)) for n in NUMBERS]
    return pytest.mark.parametrize("number", marked)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_exercise_of_a_lesson_is_found_with_its_points():
    found = {one.name: one for number in NUMBERS for one in asked(lesson(number))}
    assert set(found) == set(EXERCISES)
    assert (found["gaussian_kl"].number, found["gaussian_kl"].points) == ("01.2", 2)
    assert (found["test_of_ewc"].points, found["slow_and_long"].points) == (3, 1)
    assert [one.name for one in found.values() if one.by_hand] == ["capstone"]


# --- the student version ------------------------------------------------------------------------


@pytest.mark.slow
@every_lesson
def test_the_student_version_holds_no_revealed_answer(number):
    version = student(lesson(number))
    source = "\n".join(cell.source for cell in code(version))
    assert "reveal(" not in source
    assert "<summary>Answer" not in nbformat.writes(version)
    for one in asked(version):
        assert version.cells[one.answer].outputs == version.cells[one.check].outputs == []
        answer = getattr(one.question, "answer", None)
        if answer is not None:
            assert f"def {answer.__name__}(" not in source or answer.__name__ == one.names[0]


@pytest.mark.slow
@every_lesson
def test_what_is_left_out_is_replaced_and_the_lesson_itself_is_not_touched(number):
    original = lesson(number)
    before = nbformat.writes(original)
    version = student(original)
    assert nbformat.writes(original) == before
    by_id = {cell.id: cell for cell in version.cells}
    for cell in original.cells:
        assert "student" not in by_id.get(cell.id, cell).metadata or cell.id not in by_id
        for old, new in cell.metadata.get("student", ()):
            assert old not in by_id[cell.id].source
            assert new in by_id[cell.id].source
            assert not by_id[cell.id].get("outputs")
        if "answer" in cell.metadata.get("tags", ()):
            assert by_id[cell.id].source == HIDDEN
            assert by_id[cell.id].outputs == cell.outputs
    for cell in code(version):
        ast.parse(cell.source)


def test_a_passage_that_is_not_there_is_named():
    broken = lesson("01")
    (cell,) = (c for c in broken.cells if "student" in c.metadata)
    cell.source = cell.source.replace("sigmoid", "tanh")
    with pytest.raises(ValueError, match=rf"Cell {cell.id} must hold the passage .* not 0 times"):
        student(broken)


@pytest.mark.slow
@lessons_but(*TRANSFORMERS)
def test_as_released_no_exercise_has_a_point(number):
    marks = mark.mark(student(lesson(number)), KEY)
    assert [m.points for m in marks if m.points is not None] == [0] * (
        len(marks) - any(m.exercise == "capstone" for m in marks)
    )
    assert all("Not attempted" in m.verdict for m in marks if m.points is not None)


@pytest.mark.slow
@lessons_but(*TRANSFORMERS)
def test_no_function_of_a_student_version_answers_an_exercise(number):
    """Each function that stands in an ordinary cell is tried as an answer."""
    version = student(lesson(number))
    namespace = {"__name__": "lesson"}
    for cell in code(version):
        mark._run(cell, namespace, whole=False)
    questions = [one for one in asked(version) if isinstance(one.question, Exercise)]
    names = {name for cell in code(version) for name in bound(cell)}
    mine = [f for n, f in namespace.items() if n in names and callable(f)]
    functions = [f for f in mine if not f.__module__.startswith("ewc_tutorial.")]
    for one in questions if number not in TRAINED else ():
        case = one.question.drawn(5)[0]
        for function in functions:
            with suppress(TypeError, ValueError):
                inspect.signature(function).bind(*case)
                assert not one.question.judge(function, seed=5), (one.name, function)


def test_a_tag_is_needed_where_it_stands():
    """The readers' list of answers in ordinary cells: each of these expressions is one."""
    for number, answer in {
        "01": "(p * (1 - p) * x_a.T**2).mean(1)",
        "02": "p[:, [c]] * scores(theta, x, torch.full_like(y, c)).square()",
        "03": "lam * fisher[name] * (theta - ewc.anchor[name])",
        "04": "(F1 / F1.sum()) * (F2 / F2.sum())",
        "07": "logits.exp() / logits[:, active].exp().sum(dim=1, keepdim=True)",
        "09": "g.sum(0) ** 2",
        "13": "U_g @ (U_g.T @ offset @ U_a",
    }.items():
        original = lesson(number)
        assert any(answer in cell.source for cell in code(original)), number
        assert not any(answer in cell.source for cell in student(original).cells), number


# --- the assignment -------------------------------------------------------------------------------


@pytest.mark.slow
@lessons_but(*TRAINED, *TRANSFORMERS)
def test_the_solutions_of_the_assignment_have_all_points(number):
    marks = mark.mark(assignment(lesson(number), KEY), KEY)
    assert [m.points for m in marks] == [None if m.exercise == "capstone" else m.of for m in marks]


@pytest.mark.slow
@every_lesson
def test_the_assignment_is_nbgraders_and_keeps_the_stub_outside_of_the_solution(number):
    version = assignment(lesson(number), KEY)
    nbformat.validate(version)
    graded = [c for c in version.cells if c.metadata.get("nbgrader", {}).get("grade")]
    questions = asked(lesson(number))
    assert [c.metadata.nbgrader.points for c in graded] == [one.points for one in questions]
    ids = [c.metadata.nbgrader.grade_id for c in version.cells if "nbgrader" in c.metadata]
    assert len(ids) == len(set(ids))
    for cell in version.cells:
        roles = cell.metadata.get("nbgrader", {})
        assert ("### BEGIN SOLUTION" in cell.source) == roles.get("solution", False)
        hidden = roles.get("grade", False) and not roles["solution"]
        assert ("### BEGIN HIDDEN TESTS" in cell.source) == hidden == roles.get("locked", False)
    stubs = {c.id: c.source for c in student(lesson(number)).cells}
    for cell in version.cells:
        head, mark_, rest = cell.source.partition("\n### BEGIN SOLUTION")
        if mark_:
            left = head.rstrip("\n") + rest.partition("### END SOLUTION")[2]
            assert left == stubs[cell.id]


def test_hidden_cases_are_others_for_another_key_and_the_same_for_the_same():
    assert mark.seeds("accuracy", "one") == mark.seeds("accuracy", "one")
    assert not set(mark.seeds("accuracy", "one")) & set(mark.seeds("accuracy", "two"))
    assert not set(mark.seeds("accuracy", "one")) & set(mark.seeds("forgetting", "one"))
    assert min(mark.seeds("accuracy", "one")) >= 1000  # nobody checks so often


def test_feedback_on_one_lesson_tells_nothing_of_the_cases_of_another():
    first, second = (nbformat.writes(assignment(lesson(number), KEY)) for number in ("00", "14"))
    own = key_of("00", KEY)
    assert f'key=\\"{own}\\"' in first
    assert own not in second
    assert KEY not in first + second


def test_both_ways_of_marking_draw_the_same_cases(monkeypatch):
    seen = []
    monkeypatch.setattr(
        mark, "judge", lambda name, *_, key: seen.append(key) or mark.Result(True, "✓")
    )
    handed_in(RIGHT)
    assert set(seen) == {key_of("00", KEY)}


def test_an_empty_file_gives_no_key(tmp_path):
    (tmp_path / "key.txt").write_text("\n")
    key = build(tmp_path, [])
    assert len(key) == 16
    assert build(tmp_path, []) == key


# --- four submissions -----------------------------------------------------------------------------

#: Short to run: nothing is trained for its exercises, and one of them is a prediction.
LESSON = "14"
POINTS = {"full": [2, 1, 2], "empty": [0, 0, 0], "wrong": [0, 1, 0], "hard-coded": [0, 1, 0]}


def typed_in(exercise: Exercise, name: str) -> str:
    """Return a cell that answers the shown cases with constants, one after the other."""
    torch.set_printoptions(precision=8, threshold=10_000)
    answers = [exercise.answer(*case) for case in exercise.drawn(0)]
    torch.set_printoptions(profile="default")
    shown = repr(answers).replace("tensor(", "torch.tensor(")
    return (
        f"import itertools\n\nanswers = itertools.cycle({shown})\n\n\n"
        f"def {name}(*_):\n    return next(answers)"
    )


def submissions(released: nbformat.NotebookNode) -> dict[str, nbformat.NotebookNode]:
    """Return the lesson as four students hand it in."""
    questions = asked(released)
    solved = {c.id: c.source for c in assignment(lesson(LESSON), "another key").cells}
    found = {}
    for who in POINTS:
        found[who] = nbformat.from_dict(json.loads(nbformat.writes(released)))
        for one in questions:
            cell = found[who].cells[one.answer]
            function = isinstance(one.question, Exercise)
            if who == "full":
                cell.source = solved[cell.id]
            elif who == "wrong":
                wrong = f"def {one.names[0]}(*_):\n    return 0.0"
                cell.source = wrong if function else f"{one.names[0]} = 12"
            elif who == "hard-coded":
                name = one.names[0]
                cell.source = typed_in(one.question, name) if function else f"{name} = 76.9"
    return found


@pytest.mark.slow
def test_the_command_marks_four_submissions(tmp_path, capfd):
    released = student(lesson(LESSON))
    paths = []
    for who, submission in submissions(released).items():
        paths.append(tmp_path / f"{who}.ipynb")
        nbformat.write(submission, paths[-1])
    assert mark.main([*map(str, paths), "--key", KEY]) == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    found = {who: [] for who in POINTS}
    for row in rows:
        found[Path(row["submission"]).stem].append(int(row["points"]))
    assert found == POINTS
    assert {row["of"] for row in rows if row["exercise"] == "held_against"} == {"2"}
    # The typed-in answers are right on the cases that the student has seen.
    namespace = {"torch": torch}
    exec(submissions(released)["hard-coded"].cells[asked(released)[0].answer].source, namespace)
    assert EXERCISES["path_importance"].judge(namespace["path_importance"], seed=0)


ARGMAX = "logits.argmax(1)"
RIGHT = "def accuracy(logits, y):\n    return (logits.argmax(1) == y).float().mean().item()"


def handed_in(*cells: str, name: str = "accuracy") -> list[mark.Mark]:
    """Return the marks of a lesson in which some cells stand in place of one exercise's answer."""
    submission = student(lesson("00"))
    (one,) = (one for one in asked(submission) if one.name == name)
    submission.cells[one.answer].source = cells[0]
    more = [nbformat.v4.new_code_cell(source) for source in cells[1:]]
    submission.cells[one.answer + 1 : one.answer + 1] = more
    return mark.mark(submission, KEY)


@pytest.mark.parametrize(
    "cells",
    [
        (f"{RIGHT}\n\n\nprint(accuracy(model_logits, labels))",),
        (f"{RIGHT}\n\n\n%timeit accuracy(1, 2)",),
        (f"%%time\n{RIGHT}",),
        ("if True:\n    " + RIGHT.replace("\n", "\n    "),),
        ("DIM, top = -1, torch.argmax", RIGHT.replace(ARGMAX, "top(logits, DIM)")),
        ("dim: int = 1\nbest = lambda z: z.max(dim)[1]", RIGHT.replace(ARGMAX, "best(logits)")),
        (RIGHT, "accuracy = accuracy(model(x), y)"),
        (RIGHT, "accuracy = 0.93"),
        ("raise SystemExit", RIGHT),
    ],
)  # fmt: skip
def test_what_stands_around_a_right_answer_costs_no_points(cells):
    found = {m.exercise: m for m in handed_in(*cells)}
    assert (found["accuracy"].points, found["permute_pixels"].points) == (1, 0)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("accuracy = undefined_name", "✗ The cell raised NameError"),
        ("from ewc_tutorial.course.reference import accuracy\naccuracy = nothing", "package's own"),
        ("%%html\n<b>def accuracy</b>", "○ Nothing was handed in"),
        ("def accuracy(logits, y):\n    exit()", "✗ The answer raised SystemExit"),
    ],
)
def test_what_defines_no_answer_has_no_points(source, words):
    found = {m.exercise: m for m in handed_in(source)}
    assert found["accuracy"].points == 0
    assert words in found["accuracy"].verdict


@pytest.mark.parametrize("said", ["10**400", "torch.ones(2)", "'much'"])
def test_one_odd_answer_takes_no_points_of_the_others(said):
    found = {
        m.exercise: m.points for m in handed_in(f"my_guess = {said}", RIGHT, name="slow_and_long")
    }
    assert found == {"slow_and_long": 0, "accuracy": 1, "permute_pixels": 0}


def own_test(program):
    return len(program.measure(program.old)) > 0


@pytest.mark.parametrize(
    ("name", "answer", "borrows"),
    [
        ("fisher_empirical", lambda m, x, y: reference.fisher_from_batches(m, x, y, 1), True),
        ("fisher_empirical", lambda m, x, y: reference.score(m, x, y), False),
        ("accuracy", lambda logits, y: reference.accuracy(logits, y), True),
        ("accuracy", lambda logits, y: (logits.argmax(1) == y).float().mean(), False),
        # A program is trained for each of these.
        pytest.param("test_of_ewc", programs.careful_test, True, marks=pytest.mark.slow),
        pytest.param(
            "test_of_ewc", lambda p: programs.careful_test(p), True, marks=pytest.mark.slow
        ),
        pytest.param("test_of_ewc", own_test, False, marks=pytest.mark.slow),
    ],
)
def test_an_answer_that_runs_the_packages_own_is_noticed(name, answer, borrows):
    assert mark._borrows(EXERCISES[name], answer, seed=1000) == borrows


@pytest.mark.slow
def test_a_submission_that_borrows_hangs_or_dies_harms_nobody(tmp_path, capfd):
    released = student(lesson(LESSON))
    first = asked(released)[0]
    for who, source in {
        "borrows": "from ewc_tutorial.course import reference\n\n"
        "def path_importance(*all):\n    return reference.path_importance(*all)",
        "hangs": "def path_importance(*_):\n    while True:\n        pass",
        "dies": "import os\n\ndef path_importance(*_):\n    os._exit(0)",
        "raises": "path_importance = undefined_name",
    }.items():
        released.cells[first.answer].source = source
        path = tmp_path / f"{who}.ipynb"
        nbformat.write(released, path)
        limit = "5" if who == "hangs" else "120"
        mark.main([str(path), "--format", "json", "--timeout", limit])
        (found,) = json.loads(capfd.readouterr().out)
        assert (found["points"], found["of"]) == (0, 5)
        says = {
            "borrows": "calls the package's own",
            "hangs": "Not done after 5 s",
            "dies": "ended the program",
            "raises": "NameError: name 'undefined_name'",
        }
        assert says[who] in found["exercises"][0]["verdict"]


def test_a_file_that_is_no_lesson_is_named_and_the_others_have_their_marks(
    tmp_path, capsys, monkeypatch
):
    path = tmp_path / "mine.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 2 · x")]), path)
    (tmp_path / "list.ipynb").write_text("[]")
    fine = mark.Mark("00.1", "accuracy", 1, 1, "✓ Right")
    really = mark.mark_file
    monkeypatch.setattr(
        mark, "mark_file", lambda p, *more: [fine] if p.name == "zoe.ipynb" else really(p, *more)
    )
    names = [str(tmp_path / "[lm]i*.ipynb"), str(tmp_path / "zoe.ipynb")]
    assert mark.main(names) == 1
    shown = capsys.readouterr()
    rows = {Path(row["submission"]).name: row for row in csv.DictReader(io.StringIO(shown.out))}
    assert list(rows) == ["list.ipynb", "mine.ipynb", "zoe.ipynb"]
    assert rows["zoe.ipynb"]["points"] == "1"
    assert rows["mine.ipynb"]["points"] == rows["list.ipynb"]["points"] == ""
    assert "✗ Not marked: The notebook has no title" in rows["mine.ipynb"]["verdict"]
    assert "mine.ipynb: The notebook has no title" in shown.err
    assert mark.main([*names, "--format", "json"]) == 1
    assert [one["points"] for one in json.loads(capsys.readouterr().out)] == [0, 0, 1]
    assert number_of(lesson("03")) == "03"


def test_marks_are_written_whatever_the_system_writes_in(tmp_path, monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(mark, "mark_file", lambda *_: [mark.Mark("1", "a", 1, 1, "✓ Right")])
    assert mark.main([os.fsdecode(b"zo\xeb.ipynb")]) == 0
    file.flush()
    written = file.buffer.getvalue()
    assert "✓ Right".encode() in written
    assert os.fsencode(os.fsdecode(b"zo\xeb.ipynb")) in written


def test_an_empty_key_is_refused(capsys):
    with pytest.raises(SystemExit):
        mark.main(["anna.ipynb", "--key", "\n"])
    assert "--key must be what build/classroom/key.txt holds" in capsys.readouterr().err


@pytest.mark.slow
def test_nbgrader_marks_the_same_submissions_from_end_to_end(tmp_path):
    # It runs in processes of its own, as for a teacher: what it imports looks for the `distutils`
    # of its own setuptools, and refuses a process in which somebody has imported another one.
    if importlib.util.find_spec("nbgrader") is None:
        pytest.skip("nbgrader is not installed: the extra `classroom`")
    path = shortened(tmp_path)
    key = build(tmp_path, [path])
    assert build(tmp_path, [path]) == key
    course, name = tmp_path / "course", path.stem
    module = "ewc_tutorial.course.classroom.__main__"
    line = f"import pathlib, {module} as made; made.release(pathlib.Path('.'), ['{name}'])"
    run(course, "-c", line)
    released = nbformat.read(course / "release" / name / path.name, as_version=4)
    text = nbformat.writes(released)
    assert key not in text
    assert "SOLUTION" not in text
    assert "HIDDEN" not in text
    for who, submission in submissions(released).items():
        if who == "wrong":  # who takes the tests away gets them back
            for cell in submission.cells:
                if cell.metadata.get("nbgrader", {}).get("locked"):
                    cell.source = "pass"
        folder = course / "submitted" / who / name
        folder.mkdir(parents=True)
        nbformat.write(submission, folder / path.name)
    for line in (["autograde", name], ["generate_feedback", name], ["export", "--to=grades.csv"]):
        run(course, *forked.with_forked_kernels("nbgrader"), *line)
    with (course / "grades.csv").open() as file:
        rows = {row["student_id"]: row for row in csv.DictReader(file)}
    assert {who: float(rows[who]["score"]) for who in POINTS} == {
        who: sum(points) for who, points in POINTS.items()
    }
    assert {float(row["max_score"]) for row in rows.values()} == {5.0}
    feedback = (course / "feedback" / "hard-coded" / name / f"{name}.html").read_text()
    assert "✓ Right" in feedback  # by the check that the student saw
    assert "AssertionError" in feedback


def shortened(folder: Path) -> Path:
    """Write the lesson without the cells that train and draw, which no exercise needs."""
    (path,) = LESSONS.glob(f"{LESSON}_*.ipynb")
    short = lesson(LESSON)
    asks = ("setup(", "check(", "def ", "predicted = ", "reports = ")
    keep_cells(short, asks)
    assert [one.name for one in asked(short)] == [one.name for one in asked(lesson(LESSON))]
    nbformat.write(short, folder / path.name)
    return folder / path.name


def run(course: Path, *line: str) -> None:
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    done = subprocess.run(
        [sys.executable, *line],
        cwd=course, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_squares_of_every_sample_are_those_of_a_loop():
    from ewc_tutorial.course import mlp
    from ewc_tutorial.course.squares import expected_squares

    model = mlp(4, [3], 3, seed=0).double()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = np.zeros((5, sum(p.numel() for p in model.parameters())))
    for n in range(5):
        p = model(x[n : n + 1]).softmax(1)[0]
        for c in range(3):
            g = torch.autograd.grad(p[c].log(), list(model.parameters()), retain_graph=True)
            flat = torch.cat([part.flatten() for part in g])
            wanted[n] += (p[c] * flat**2).detach().numpy()
    assert np.allclose(expected_squares(model, x), wanted, rtol=1e-10)
