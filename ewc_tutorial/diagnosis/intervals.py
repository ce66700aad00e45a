"""Confidence intervals of proportions, and of what a training changed in them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Standard normal quantile of 97.5 %: intervals are of 95 %.
_Z = 1.959964


class Interval(NamedTuple):
    """An estimate with its interval of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def proportion(correct: NDArray[np.bool_]) -> Interval:
    """Return the share that is correct, with Wilson's score interval (1927).

    It stays within [0, 1], and is right also near its ends and for few samples.
    """
    n, p = len(correct), float(correct.mean())
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + (_Z / (2 * n)) ** 2)
    # Rounding must not put the estimate outside of its interval.
    return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def change(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Interval:
    """Return by how much the share rose, after − before, on the *same* samples in one order.

    Newcombe (1998, *Improved confidence intervals for the difference between binomial proportions
    based on paired data*, Statistics in Medicine 17, method 10): Wilson's intervals of both shares,
    put together with the correlation φ of the pairs. Pairs that agree make it narrow, and it has a
    width even where all of them do.
    """
    a, b = proportion(after), proportion(before)
    n = len(before)
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    won, lost = int((~before & after).sum()), int((before & ~after).sum())
    margins = (both + won) * (both + lost) * (neither + won) * (neither + lost)
    excess = float(both * neither - won * lost)
    if excess > 0:
        excess = max(excess - n / 2, 0)  # continuity correction
    phi = excess / math.sqrt(margins) if margins else 0.0

    def joined(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x**2 - 2 * phi * x * y + y**2))

    difference = a.value - b.value
    return Interval(
        difference,
        difference - joined(a.value - a.low, b.high - b.value),
        difference + joined(a.high - a.value, b.value - b.low),
    )
