"""The course as files: execute the notebooks in place and write down how long that took.

    python -m ewc_tutorial.course.publish            # all notebooks
    python -m ewc_tutorial.course.publish 02 03      # those whose names begin so

Executing a notebook stores its outputs without timestamps, measures its running time, and writes
that and the reading time into its line that starts with ⏱ and into the README's map of the course.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from ewc_tutorial.course import quizzes
from ewc_tutorial.files import replace_file

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
WORDS_PER_MINUTE = 160  # slow reading: every sentence and formula is meant to be thought about
SECONDS_PER_CODE_LINE = 6
WIDGET = "application/vnd.jupyter.widget-view+json"
#: What is shown in place of a widget until its cell has run.
WITHOUT_KERNEL = "(Run this cell to get the interactive view.)"
CELL_TIMEOUT = 300  # seconds; a cell should take at most about fifteen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prefix", nargs="*", help="execute only notebooks whose names begin so")
    prefixes = tuple(parser.parse_args().prefix)
    paths = [
        p for p in sorted(NOTEBOOKS.glob("*.ipynb")) if not prefixes or p.name.startswith(prefixes)
    ]
    for path in paths:
        seconds = execute(path)
        print(f"{path.name}: {seconds:.0f} s", flush=True)
    update_readme()
    if not prefixes:
        draw_readme_picture()


def execute(path: Path) -> float:
    """Execute a notebook in place, refresh its line of times and return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    # What is committed is what somebody sees who has solved nothing yet.
    os.environ["EWC_TUTORIAL_PROGRESS"] = "off"
    NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"^⏱.*$", times_line(notebook, seconds), cell.source, flags=re.M)
        for output in cell.get("outputs", ()):
            if WIDGET in output.get("data", {}):
                output.data["text/plain"] = WITHOUT_KERNEL
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        # Not the state of the widgets: the λ lab's carries about a megabyte of JavaScript.
    }
    nbformat.validate(notebook)
    replace_file(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())
    return seconds


def times_line(notebook: nbformat.NotebookNode, seconds: float) -> str:
    """Return the line of times: minutes rounded to five, seconds rounded up to ten."""
    prose = sum(
        len(c.source.split())
        for c in notebook.cells
        if c.cell_type == "markdown" and c.id != quizzes.CELL
    )
    code = sum(len(c.source.splitlines()) for c in notebook.cells if c.cell_type == "code")
    minutes = prose / WORDS_PER_MINUTE + code * SECONDS_PER_CODE_LINE / 60
    return (
        f"⏱ Reading: about {max(5, 5 * round(minutes / 5))} minutes, exercises not counted. "
        f"Running: about {10 * math.ceil(seconds / 10)} seconds on two CPU cores."
    )


def course_map() -> str:
    """Return the README's table of notebooks: title, question, times."""
    rows = ["| notebook | question | reading | running |", "| --- | --- | --- | --- |"]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text = "\n".join(
            c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
        )
        title = re.search(r"^# (.+)$", text, flags=re.M).group(1)
        question = re.search(r"^\*\*(.+)\*\*$", text, flags=re.M).group(1)
        times = re.search(r"^⏱ Reading: about (\d+) minutes.*about (\d+) seconds", text, flags=re.M)
        minutes, seconds = times.groups() if times else ("?", "?")
        rows.append(
            f"| [{title}](notebooks/{path.name}) | {question} | {minutes} min | {seconds} s |"
        )
    return "\n".join(rows)


def update_readme() -> None:
    """Write the map of the course between its two markers in the README."""
    readme = ROOT / "README.md"
    begin, end = "<!-- course map -->", "<!-- end of course map -->"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    replace_file(readme, f"{before}{begin}\n{course_map()}\n{end}{after}".encode())


def draw_readme_picture() -> None:
    """Draw what is left of ten tasks, for each method at its own λ and learning rate."""
    import matplotlib.pyplot as plt
    import numpy as np

    from ewc_tutorial.course import plots, tables

    plots.set_style()
    rows = tables.load("curvatures").query("setting == 'digits-10'")
    curves = {}
    for name in ("joint", "kronecker", "diagonal", "identity", "plain"):
        runs = tables.reported(rows[rows.curvature == name], ["lr", "lam", "every"])
        curves[name] = np.array([np.array(text.split(), float) for text in runs.so_far])
    plots.mean_by_curvature(curves)
    plt.gcf().savefig(ROOT / "README.png", dpi=120)
    plt.close()


if __name__ == "__main__":
    main()
