"""A lesson without the cells that a test has no use for."""

from __future__ import annotations

from nbformat import NotebookNode


def keep_cells(lesson: NotebookNode, words: tuple[str, ...]) -> None:
    """Leave the text and the code cells that hold one of the words."""
    lesson.cells = [
        cell
        for cell in lesson.cells
        if cell.cell_type == "markdown" or any(word in cell.source for word in words)
    ]
