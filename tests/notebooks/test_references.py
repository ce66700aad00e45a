"""Each paper that a lesson names is a link in a form that can be right; symbols have a page."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
FORMS = {"arxiv.org": r"abs/\d{4}\.\d{4,5}", "doi.org": r"10\.\d{4,9}/\S+"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem, scope="module")
def cells(request) -> list[str]:
    notebook = nbformat.read(request.param, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def test_every_reference_is_a_link(cells):
    references = re.split(r"^(?:## |\*\*)References", "\n\n".join(cells), flags=re.M)[1]
    rest, links = re.subn(r"\[\*[^*]+\*\]\(https://[^)]+\)", "", references)
    assert links
    assert re.findall(r"(?<!\*)\*(?!\*)([^*]+)\*(?!\*)", rest) == []


def test_addresses_have_the_form_of_their_kind(cells):
    for address in re.findall(r"\]\((https?:[^)]*)\)", "\n".join(cells)):
        host, path = re.fullmatch(r"https://([\w.-]+)/(.*)", address).groups()
        assert re.fullmatch(FORMS.get(host, r"\S*"), path), address


def test_one_title_has_one_address():
    found: dict[str, set[str]] = {}
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for title, address in re.findall(r"\[\*([^*]+)\*\]\(([^)]+)\)", cell.source):
                    found.setdefault(" ".join(title.lower().split()), set()).add(address)
    assert len(found) > 20
    assert [title for title, addresses in found.items() if len(addresses) > 1] == []


def test_its_head_leads_to_the_notation(cells):
    assert "](notation.md)" in cells[0]


def test_the_notation_leads_to_lessons():
    page = NOTEBOOKS[0].parent / "notation.md"
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert len(targets) > 20
    assert all((page.parent / target).exists() for target in targets)
