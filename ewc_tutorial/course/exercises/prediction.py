"""Predict a number, then measure it: a guess that is graded by a run of its own."""

from __future__ import annotations

from collections.abc import Callable
from random import SystemRandom
from typing import Any

from ewc_tutorial.course.exercises.core import Result


def graded(guess: Any, measure: Callable[[int], float], within: float) -> Result:
    """Run an experiment once the reader has put a number on it, and say how far off that was.

    Without a guess nothing is run and nothing is told, so that an untouched notebook runs from top
    to bottom.

    Args:
        guess: the reader's number, or ``...`` as long as there is none.
        measure: the experiment, which takes a seed to the number; it is run once for each guess,
            with a seed that nobody has seen.
        within: a guess counts as right up to this distance.
    """
    if guess is ...:
        return Result(
            False, "○ Not attempted yet: put a number in place of ... and run this again."
        )
    if isinstance(guess, bool) or not isinstance(guess, int | float) or guess != guess:
        return Result(False, f"✗ The guess must be a number such as 0.5, not {guess!r}.")
    measured = float(measure(SystemRandom().randrange(1000, 1_000_000)))
    off = guess - measured
    right = abs(off) <= within
    where = f"{abs(off):.2f} too {'high' if off > 0 else 'low'}" if round(off, 2) else "on it"
    return Result(
        right,
        f"{'✓' if right else '✗'} You said {guess:.2f}, the run gave {measured:.2f}: {where}"
        + (f" ({within:g} or less counts as right)." if not right else "."),
    )
