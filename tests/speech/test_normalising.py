"""Texts become what a model can write only where there is one way to read them."""

from __future__ import annotations

import string

import pytest

pytest.importorskip("num2words", reason="the group 'speech' is not installed")

from hypothesis import given
from hypothesis import strategies as st

from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.normalising import normalised

GERMAN = frozenset(string.ascii_lowercase + "äöüß")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("wo, bitte?", "wo bitte"),
        ("„ja“ – sagte sie (leise) …", "ja sagte sie leise"),
        ("e-mail", "e mail"),
        ("geht’s", "gehts"),
        ("ich habe 23 katzen.", "ich habe dreiundzwanzig katzen"),
        ("es waren 3.", "es waren drei"),
        ("0, 1, 2!", "null eins zwei"),
        ("1099", "eintausendneunundneunzig"),
        ("(7) sind da", "sieben sind da"),
        ("schon fertig", "schon fertig"),
    ],
)
def test_marks_go_and_numbers_become_words(text, wanted):
    assert normalised(text, GERMAN, "de") == wanted


def test_each_language_has_its_words():
    assert normalised("105 lions", GERMAN, "en") == "one hundred and five lions"
    assert normalised("21 lions", GERMAN, "en") == "twenty one lions"


@pytest.mark.parametrize(
    "text",
    ["am 3. mai", "im jahr 1984", "3,5 meter", "um 10:30", "1.000", "007", "-5 grad", "a4", "4a",
     "1/2", "+49 30", "٣٫٥", "2026-11-27", "10-12 leute"],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_refused(text):
    with pytest.raises(RefusedError, match="several ways: write it in words"):
        normalised(text, GERMAN, "de")


@pytest.mark.parametrize("text", ["5 %", "a & b", "x@y", "3 €", "§", "und/oder"])
def test_signs_that_are_spoken_stay_for_the_model_to_refuse(text):
    assert set(normalised(text, GERMAN, "de")) & set("%&@€§/")


def test_what_the_model_writes_itself_stays():
    assert normalised("it’s e-mail 7.", GERMAN | set("'-7"), "en") == "it's e-mail 7"


@given(st.text(alphabet=st.sampled_from("ab12 .,:-'’…%\u00a0\u0663")))
def test_nothing_but_spoken_signs_is_left_and_twice_is_once(text):
    try:
        once = normalised(text, GERMAN, "de")
    except RefusedError:
        return
    assert set(once) <= GERMAN | {" ", "%"}
    assert normalised(once, GERMAN, "de") == once
