"""Where the repository lives, for all that has to name it: one line in ``pyproject.toml``.

    [project.urls]
    Repository = "https://github.com/OWNER/NAME"

Until that line is there nothing in the course links to a place that is not. With it,

    python -m ewc_tutorial.course.address

gives each lesson and the README their links to Colab and Binder, and each lesson a first cell that
installs the course where it is missing. Running it again changes nothing.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nbformat

from ewc_tutorial.course.publish import NOTEBOOKS, ROOT

TAG = "install"
BEGIN, END = "<!-- badges -->", "<!-- end of badges -->"
#: Installs into the session that runs: what the machine has already is left as it is.
CELL = """\
# Installs the course where it is missing, as on Colab; elsewhere this cell does nothing.
from importlib.util import find_spec

if find_spec("ewc_tutorial") is None:
    %pip install --quiet "ewc-tutorial[lessons,speech] @ git+{address}"\
"""


def repository(pyproject: Path = ROOT / "pyproject.toml") -> str | None:
    """Return the address of the repository, or None where it is not set.

    Raises:
        ValueError: it is none of GitHub's, from which alone Colab opens notebooks.
    """
    urls = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"].get("urls", {})
    address = urls.get("Repository")
    if address is not None and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise ValueError(
            f"Repository in pyproject.toml must be like https://github.com/OWNER/NAME, not "
            f"{address!r}."
        )
    return address


def badges(address: str, notebook: str) -> str:
    """Return the links that open a notebook in Colab and in Binder, in Markdown.

    Args:
        address: of the repository.
        notebook: the name of its file, such as ``"00_start_here.ipynb"``.
    """
    place = address.removeprefix("https://github.com/")
    file = f"notebooks/{notebook}"
    colab = f"https://colab.research.google.com/github/{place}/blob/HEAD/{file}"
    binder = f"https://mybinder.org/v2/gh/{place}/HEAD?urlpath=lab/tree/{file}"
    return f"[Open in Colab]({colab}) · [Open in Binder]({binder})"


def into_lesson(path: Path, address: str) -> None:
    """Give a lesson its links, under the line of times, and its first cell."""
    notebook = nbformat.read(path, as_version=4)
    head = notebook.cells[0]
    links = re.compile(r"^\[Open in Colab\]\(.*\n\n", flags=re.M)
    line = f"{badges(address, path.name)}\n\n"
    head.source = re.sub(r"^⏱", lambda _: line + "⏱", links.sub("", head.source), flags=re.M)
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    if TAG not in notebook.cells[first].metadata.get("tags", ()):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count += 1
        cell = nbformat.v4.new_code_cell(id=f"{path.name[:2]}-install", execution_count=1)
        cell.metadata = {"tags": [TAG], "jupyter": {"source_hidden": True}}
        notebook.cells.insert(first, cell)
    notebook.cells[first].source = CELL.format(address=address)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def into_readme(path: Path, address: str) -> None:
    """Put the address and the links into the README, which has places for both."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    text = f"{before}{BEGIN}\n{badges(address, '00_start_here.ipynb')}\n{END}{after}"
    for places in (r"(git clone )\S+", r"(ewc-tutorial\[lessons,speech\] @ git\+)[^\"\s]+"):
        text = re.sub(places, lambda found: found[1] + address, text)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    address = repository()
    if address is None:
        raise SystemExit("pyproject.toml has no Repository under [project.urls] yet.")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        into_lesson(path, address)
    into_readme(ROOT / "README.md", address)


if __name__ == "__main__":
    main()
