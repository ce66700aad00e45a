"""Write what a teacher hands out to a folder: ``build/classroom`` unless told otherwise."""

from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat

from ewc_tutorial.course.classroom.questions import LESSONS
from ewc_tutorial.course.classroom.versions import assignment, student

#: Beside each lesson, and linked from it.
BESIDE = ("notation.md",)
CONFIGURATION = """\
# Made by `make classroom`; run nbgrader in this folder.
import os

os.environ["EWC_TUTORIAL_PROGRESS"] = "off"  # what is marked here is not the teacher's own progress
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "ewc-tutorial"
# Of a solution no line is left; the lesson's own stub stands above it.
c.ClearSolutions.code_stub = {"python": "# Your answer goes above this line."}
c.Execute.timeout = 600
# nbgrader takes four seconds of a kernel's silence for an error; a busy machine needs longer.
c.Execute.iopub_timeout = 120
c.Execute.startup_timeout = 300
"""
WITHOUT_NBGRADER = (
    "The release was not made, for nbgrader is not installed: pip install "
    "'ewc-tutorial[classroom]', then `make classroom` again."
)


def build(folder: Path, lessons: Iterable[Path], key: str = "") -> str:
    """Write student versions and the nbgrader course, and return the key of the hidden tests.

    Args:
        folder: where to; what an earlier run made of these lessons is replaced, submissions and
            marks stay.
        lessons: paths of notebooks.
        key: decides the cases of the hidden tests. By default the one of an earlier run in
            this folder, or else a new one.
    """
    course = folder / "course"
    (folder / "student").mkdir(parents=True, exist_ok=True)
    course.mkdir(exist_ok=True)
    kept = folder / "key.txt"
    # An interrupted run may have left the file empty, and an empty key is anybody's guess.
    key = key or (kept.read_text().strip() if kept.exists() else "") or secrets.token_hex(8)
    kept.write_text(key + "\n")
    (course / "nbgrader_config.py").write_text(CONFIGURATION, encoding="utf-8")
    for path in lessons:
        lesson = nbformat.read(path, as_version=4)
        nbformat.write(student(lesson), folder / "student" / path.name)
        source = course / "source" / path.stem
        source.mkdir(parents=True, exist_ok=True)
        nbformat.write(assignment(lesson, key), source / path.name)
        for name in BESIDE:
            for place in (folder / "student", source):
                shutil.copyfile(LESSONS / name, place / name)
    return key


def release(course: Path, names: Iterable[str]) -> None:
    """Let nbgrader make the release of assignments from their source.

    Raises:
        RuntimeError: nbgrader refused; its own messages say why.
    """
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import PyFileConfigLoader

    # nbgrader starts `alembic` by its bare name, also where no environment is activated.
    scripts = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    config = PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config()
    config.CourseDirectory.root = str(course.resolve())
    api = NbGraderAPI(config=config)
    for name in names:
        done = api.generate_assignment(name, force=True, create=True)
        if not done["success"]:
            raise RuntimeError(f"nbgrader did not make a release of {name}: {done['log']}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ewc_tutorial.course.classroom", description=__doc__.splitlines()[0]
    )
    parser.add_argument("only", nargs="*", help="lessons whose names begin so; all by default")
    parser.add_argument("--to", type=Path, default=Path("build/classroom"), help="the folder")
    ours = parser.parse_args(arguments)
    lessons = [
        path
        for path in sorted(LESSONS.glob("*.ipynb"))
        if not ours.only or path.name.startswith(tuple(ours.only))
    ]
    if not lessons:
        parser.error(f"only must begin a lesson's name, such as 02, not {' '.join(ours.only)}.")
    build(ours.to, lessons)
    print(f"{ours.to / 'student'}: {len(lessons)} lessons without answers")
    if importlib.util.find_spec("nbgrader") is None:
        print(WITHOUT_NBGRADER)
        return
    release(ours.to / "course", [path.stem for path in lessons])
    print(f"{ours.to / 'course'}: nbgrader's source and release")
    print(f"{ours.to / 'key.txt'}: draws the cases of the hidden tests; keep it to yourself")


if __name__ == "__main__":
    main()
