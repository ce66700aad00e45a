"""Every number in the lessons' prose is one that a cell printed or set; see tests/ledger.py."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from ledger import Passage, numbers_in, passages

HERE = Path(__file__).resolve().parent
LESSONS = sorted((HERE.parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
UNBOUND = tomllib.loads((HERE / "unbound.toml").read_text(encoding="utf-8"))


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem, scope="module")
def lesson(request) -> tuple[str, list[Passage]]:
    return request.param.name[:2], passages(request.param)


def test_every_number_rests_on_a_cell_or_is_accounted_for(lesson):
    number, pieces = lesson
    listed = UNBOUND.get(number, {})
    used = set()
    for piece in pieces:
        for found in piece.unbound():
            reasons = [q for q in listed if q in found.context and found.text in q]
            assert reasons, (
                f"{found} is printed by no cell of its section: mend the prose or list it"
            )
            used.update(reasons)
    assert set(listed) <= used, "no longer needed, or no longer in the prose"
    assert all(reason.strip() for reason in listed.values())


def test_the_ledger_notices_numbers_that_are_changed(lesson):
    """Three units of the last digit off, up or down: most such slips are found."""
    tried = noticed = 0
    for piece in lesson[1]:
        for number in numbers_in(piece.text):
            if not piece.binds(number):
                continue
            for slip in (-6, 6):
                wrong = replace(number, value=number.value + slip * number.unit)
                tried += wrong.value > 0
                noticed += wrong.value > 0 and not piece.binds(wrong)
    assert tried
    assert noticed > tried / 2, f"{noticed} of {tried}"


@pytest.mark.parametrize(
    ("prose", "found"),
    [
        ("It falls to 0.62 (62 %, 85,002 weights, λ = 10⁵, 3e-4, $x = 0.25$).",
         [0.62, 62, 85002, 1e5, 3e-4, 0.25]),
        ("Notebook 03, section 12 and tasks 11 to 14 of Martens (2020), GPT-2, `lr=0.3`.", []),
        ("> **Predict.** Is it 30 or 300 times? At λ = 100 it is 17.", [100, 17]),
        ("Two of ten, 3 of 7. But 7 % and 13 to 15 %.", [7, 13, 15]),
        ("See [12 · Does it](12_does_it_reproduce.ipynb) and $\\frac{12}{13} x$.", []),
        ("It is 0.5.\n\n**References.** Volume 114, 3521.", [0.5]),
    ],
)  # fmt: skip
def test_what_counts_as_a_number(prose, found):
    assert [number.value for number in numbers_in(prose)] == pytest.approx(found)


@pytest.mark.parametrize(
    ("prose", "value", "bound"),
    [
        ("It is 0.62.", 0.6178, True),
        ("It is 0.62.", 0.6278, False),
        ("It is 0.620.", 0.6178, False),
        ("It is 62 %.", 0.6178, True),
        ("It is 62.", 0.6178, False),
        ("It is about 300.", 287, True),
        ("It is 300.", 287, False),
        ("It is above 0.6.", 0.78, True),
        ("It is above 0.6.", 0.52, False),
        ("It is below 0.6.", 0.52, True),
        ("It is λ = 10⁵.", 100_000, True),
    ],
)
def test_how_precisely_a_number_must_be_found(prose, value, bound):
    (number,) = numbers_in(prose)
    assert number.found_in([0.0, value, 1e9]) == bound
