"""Write every quiz into the last cell of its lesson."""

from __future__ import annotations

import nbformat

from ewc_tutorial.course.classroom.questions import LESSONS
from ewc_tutorial.course.quizzes import load, put

if __name__ == "__main__":
    for path in sorted(LESSONS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        put(notebook, load(path.name[:2]))
        nbformat.write(notebook, path)
