"""The paper: its head, its references, and a source for every number in it and in its checklist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from ledger import numbers_in

from ewc_tutorial.course import tables
from ewc_tutorial.course.exercises import EXERCISES

ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT / "paper" / "paper.md"
NOTEBOOKS = [
    nbformat.read(path, as_version=4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
]
_, HEAD, TEXT = PAPER.read_text(encoding="utf-8").split("---\n", 2)
BIB = PAPER.with_suffix(".bib").read_text(encoding="utf-8")
CHECKLIST = (PAPER.parent / "checklist.md").read_text(encoding="utf-8")


def ten_tasks(curvature: str) -> str:
    """Return the mean accuracy on ten digit tasks after the last one, over the reported seeds."""
    rows = tables.load("curvatures").query("setting == 'digits-10'")
    runs = tables.reported(rows[rows.curvature == curvature], ["lr", "lam", "every"])
    assert len(runs) == 5
    return f"{runs.so_far.str.split().str[-1].astype(float).mean():.2f}"


def printed(lesson: int) -> str:
    """Return all that the cells of a lesson printed."""
    outputs = (output for cell in NOTEBOOKS[lesson].cells for output in cell.get("outputs", ()))
    return "\n".join(output.get("text", "") for output in outputs)


def hours_of_reading() -> float:
    heads = [cells[0].source for cells in (notebook.cells for notebook in NOTEBOOKS)]
    return sum(int(re.search(r"Reading: about (\d+) minutes", head)[1]) for head in heads) / 60


def facts() -> Iterator[tuple[str, bool]]:
    """Yield what the paper says with a number, and whether that is so."""
    yield f"{len(NOTEBOOKS)} Jupyter notebooks", True
    yield "about 12 hours", 11 <= hours_of_reading() <= 13
    yield "more than 50 exercises", 50 < len(EXERCISES) < 75
    wrong = sum(len(getattr(exercise, "mistakes", ())) for exercise in EXERCISES.values())
    yield "more than 300 wrong answers", 300 < wrong < 400
    cells = [cell.source for notebook in NOTEBOOKS for cell in notebook.cells]
    compared = sum(source.startswith("# NBVAL_CHECK_OUTPUT") for source in cells)
    yield "About 200 outputs", 175 <= compared < 250
    yield f"plain training ends at a mean accuracy of {ten_tasks('plain')}", True
    yield f"EWC with its usual diagonal at {ten_tasks('diagonal')}", True
    yield f"joint training on all data, the reference, at {ten_tasks('joint')}", True
    yield f"the same penalty ends at {ten_tasks('kronecker')}", True
    found, cells = re.search(r"all eleven seeds: (\d+) of (\d+) cells differ", printed(12)).groups()
    yield f"over 11 seeds, {found} of {cells} cells", True


def test_every_number_of_the_paper_has_a_source():
    left = " ".join(TEXT.split())
    for phrase, holds in facts():
        assert holds, phrase
        assert phrase in left, phrase
        left = left.replace(phrase, "")
    without_lessons = re.sub(r"\((?:lessons? )?\d\d(?:(?:,| and) \d\d)*\)", "", left)
    assert [str(number) for number in numbers_in(without_lessons)] == []
    assert f"{len(NOTEBOOKS)} lessons, about 12 hours" in CHECKLIST


def test_it_has_the_parts_and_the_length_that_the_journal_asks_for():
    head = yaml.safe_load(HEAD)
    assert {"title", "tags", "authors", "affiliations", "date", "bibliography"} <= head.keys()
    known = {place["index"] for place in head["affiliations"]}
    assert {author["affiliation"] for author in head["authors"]} <= known
    assert (PAPER.parent / head["bibliography"]).exists()
    parts = re.findall(r"^# (.+)$", TEXT, re.M)
    assert parts[:3] == ["Summary", "Statement of need", "Learning objectives and content"]
    assert parts[-1] == "References"
    assert 800 < len(TEXT.split()) < 1300


def test_what_is_cited_is_listed_and_the_other_way_round():
    cited = set(re.findall(r"@(\w+)", TEXT))
    entries = dict(re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", BIB, re.M | re.S))
    assert entries.keys() == cited
    for key, entry in entries.items():
        fields = dict(re.findall(r"^  (\w+) *= \{(.*)\},?$", entry, re.M))
        assert {"author", "title", "year"} <= fields.keys(), key
        assert re.fullmatch(r"10\.\d{4,5}/\S+", fields.get("doi", "")) or "url" in fields, key
        assert key.endswith(fields["year"])


@pytest.mark.parametrize("name", ["paper/checklist.md", "CODE_OF_CONDUCT.md"])
def test_links_lead_somewhere(name):
    file = ROOT / name
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)#]+)", file.read_text(encoding="utf-8")):
        assert (file.parent / target).exists(), target
