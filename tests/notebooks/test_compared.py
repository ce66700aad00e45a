"""Numbers of a training are compared within what their cell allows, everything else exactly."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "notebooks" / "conftest.py"
SPEC = importlib.util.spec_from_file_location("compared", PATH)
compared = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(compared)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("# NBVAL_CHECK_OUTPUT\nprint(1)", (0, 0)),
        ("# NBVAL_CHECK_OUTPUT\n# on other machines ± 0.03\nprint(1)", (0.03, 0)),
        ("# NBVAL_CHECK_OUTPUT\n# on other machines ± 15 %\nprint(1)", (0, 0.15)),
        ("# on other machines ± 0.03\nprint(1)", (0, 0)),
    ],
)
def test_what_a_cell_allows(source, found):
    assert compared.allowed(source) == pytest.approx(found)


@pytest.mark.parametrize(
    ("new", "stored", "absolute", "relative", "same"),
    [
        ("A 0.95, B 0.60", "A 0.96, B 0.62", 0.03, 0, True),
        ("A 0.95, B 0.55", "A 0.96, B 0.62", 0.03, 0, False),
        ("A 0.95, C 0.62", "A 0.96, B 0.62", 0.03, 0, False),
        ("A 0.95", "A 0.96, B 0.62", 0.03, 0, False),
        ("λ 1e5:   98", "λ 1e5:  105", 0, 0.1, True),
        ("λ 1e6:  105", "λ 1e5:  105", 0, 0.1, False),
        ("gain -0.01", "gain 0.01", 0.03, 0, True),
        ("gain −0.01", "gain -0.05", 0.03, 0, False),
        ("nan", "0.5", 1, 0, False),
    ],
)
def test_numbers_that_are_near_enough_count_as_the_stored_ones(
    new, stored, absolute, relative, same
):
    assert (compared.snapped(new, stored, absolute, relative) == stored) == same
