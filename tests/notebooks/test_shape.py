"""What every committed notebook must be: executed, clean, moderate, and a lesson in house style."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from ewc_tutorial.course.exercises import EXERCISES

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem, scope="module")
def path(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def notebook(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_the_course_has_its_notebooks():
    assert [int(path.name[:2]) for path in NOTEBOOKS] == list(range(15))


def test_each_notebook_leads_to_the_next_and_the_first_to_all():
    texts = [prose(nbformat.read(path, as_version=4)) for path in NOTEBOOKS]
    for text, following in zip(texts[:-1], NOTEBOOKS[1:], strict=True):
        assert f"]({following.name})" in text.rsplit("## References", 1)[-1], following.name
    assert all(f"]({path.name})" in texts[0] for path in NOTEBOOKS[1:])


def test_it_is_executed_in_order_without_errors_or_warnings(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(
        range(1, len(code(notebook)) + 1)
    )
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text


def test_it_is_moderate(path, notebook):
    assert path.stat().st_size < 1_000_000
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= 20, cell.source


def test_it_compares_the_numbers_that_it_quotes(notebook):
    compared = [c for c in code(notebook) if c.source.startswith("# NBVAL_CHECK_OUTPUT")]
    assert compared
    assert all(any("text" in o or "text/plain" in o.get("data", {}) for o in c.outputs)
               for c in compared)  # fmt: skip


def test_it_has_the_shell_of_a_lesson(notebook):
    text = prose(notebook)
    assert re.match(r"# \d\d · .+\n\n\*\*.+\?\*\*\n", notebook.cells[0].source)
    assert re.search(r"^⏱ Reading: about \d+ minutes.*Running: about \d+ seconds", text, flags=re.M)
    for part in ("You will be able to", "Before you start", "What to remember"):
        assert part in text, part
    assert re.search(r"where this breaks|what ewc does not do", text, flags=re.I)
    assert "> **Predict.**" in text
    lesson = [cell for cell in code(notebook) if "install" not in cell.metadata.get("tags", ())]
    assert "setup(seed=0)" in lesson[0].source


def test_exercises_are_complete(notebook):
    source = "\n".join(cell.source for cell in code(notebook))
    checked = re.findall(r'^check\("(\w+)"', source, flags=re.M)
    assert len(checked) >= 2
    assert set(checked) <= set(EXERCISES)
    assert set(re.findall(r'^reveal\("(\w+)"\)', source, flags=re.M)) == set(checked)
    headings = re.findall(r"^### Exercise .*[●○]{3} \(\d+ minutes\)$", prose(notebook), flags=re.M)
    assert len(headings) == len(checked)
    assert prose(notebook).count("<summary>Hint</summary>") >= len(checked)


def test_an_untouched_exercise_says_so(notebook):
    for cell in code(notebook):
        if cell.source.startswith("check("):
            (output,) = cell.outputs
            assert "Not attempted yet" in output.data["text/plain"]


def pictures(notebook):
    return [o for c in code(notebook) for o in c.outputs if "image/png" in o.get("data", {})]


def test_every_figure_is_told_in_the_prose(notebook):
    assert len(re.findall(r"\*Figure", prose(notebook))) >= len(pictures(notebook))


def test_every_picture_carries_its_alternative_text(notebook):
    for output in pictures(notebook):
        text = output.metadata.get("image/png", {}).get("alt", "")
        assert len(text) >= 80, output.data["text/plain"]
        assert re.search(r"\d", text), text
        data = base64.b64decode(output.data["image/png"])
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.text["Description"] == text


def test_no_two_pictures_have_the_same_alternative_text():
    texts = [
        output.metadata["image/png"]["alt"]
        for path in NOTEBOOKS
        for output in pictures(nbformat.read(path, as_version=4))
    ]
    assert len(texts) == len(set(texts))


def test_numbers_are_printed_and_not_that_they_are_right(notebook):
    """A boolean stands only where the statement is one."""
    lines = [
        line
        for cell in code(notebook)
        if cell.source.startswith("# NBVAL_CHECK_OUTPUT")
        for output in cell.outputs
        for line in output.get("text", "").splitlines()
    ]
    assert sum(bool(re.search(r"\b(True|False)\b", line)) for line in lines) <= len(lines) / 8


def test_links_between_files_lead_somewhere(path, notebook):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", prose(notebook)):
        assert (path.parent / target).exists(), target


def test_every_exercise_of_the_package_is_set_in_a_notebook():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in NOTEBOOKS)
    assert [name for name in EXERCISES if f'check(\\"{name}\\"' not in sources] == []
