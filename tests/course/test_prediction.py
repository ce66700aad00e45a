"""A guess is graded by a run that happens only once there is a guess."""

from __future__ import annotations

import pytest

from ewc_tutorial.course import graded


def never(seed):
    raise AssertionError("it was run without a guess")


def test_without_a_guess_nothing_is_run():
    verdict = graded(..., never, 0.1)
    assert not verdict
    assert "Not attempted yet" in repr(verdict)


@pytest.mark.parametrize("guess", ["0.5", None, True, float("nan")])
def test_a_guess_is_a_number(guess):
    assert "must be a number" in repr(graded(guess, never, 0.1))


@pytest.mark.parametrize(
    ("guess", "right", "words"),
    [
        (0.55, True, "✓ You said 0.55, the run gave 0.60: 0.05 too low."),
        (0.6, True, "✓ You said 0.60, the run gave 0.60: on it."),
        (0.9, False, "✗ You said 0.90, the run gave 0.60: 0.30 too high (0.1 or less counts as"),
        (0, False, "✗ You said 0.00, the run gave 0.60: 0.60 too low"),
    ],
)
def test_the_number_is_told_with_how_far_off_the_guess_was(guess, right, words):
    verdict = graded(guess, lambda seed: 0.6, 0.1)
    assert bool(verdict) is right
    assert words in repr(verdict)


def test_each_guess_is_measured_on_another_seed():
    seeds = []
    for _ in range(5):
        graded(0.5, lambda seed: seeds.append(seed) or 0.5, 0.1)
    assert len(set(seeds)) == 5
