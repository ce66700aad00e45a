"""Exercises of notebook 12, Does it reproduce?"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise, Prediction, Question


def _measurements(seed: int) -> list[tuple[list[float], float, float]]:
    """Draw accuracies over seeds with a published mean and standard error, the last exact."""
    draw = random.Random(seed)
    return [
        ([round(draw.gauss(mean, spread), 2) for _ in range(n)], published, error)
        for mean, spread, n, published, error in (
            (99.0, 0.3, 5, 99.26, 0.15),
            (63.2, 8.0, 4, 60.1, 2.58),
            (19.8, 0.5, 3, 20.64, 0.32),
            (86.0, 4.0, 5, 84.32, 0.0),
        )
    ]


def _pairs(seed: int) -> list[tuple[list[float], list[float]]]:
    """Draw accuracies of two methods on the same seeds, which vary more than they differ."""
    draw = random.Random(seed)
    cases = []
    for mean, luck, gain, noise, n in (
        (65.0, 7.0, 2.0, 0.7, 5),
        (20.0, 1.0, 0.6, 0.4, 3),
        (92.0, 4.0, 9.0, 1.5, 4),
    ):
        b = [draw.gauss(mean, luck) for _ in range(n)]
        cases.append(([x + draw.gauss(gain, noise) for x in b], b))
    return cases


def _apart(error: Callable[..., float]) -> object:
    """Return a wrong answer with another standard error of the difference."""
    return lambda v, p, se: (statistics.mean(v) - p) / error(v, se)


def unpaired(a: list[float], b: list[float]) -> tuple[float, float]:
    """A wrong answer: the standard error of two groups that share nothing."""
    error = math.hypot(*(statistics.stdev(x) / math.sqrt(len(x)) for x in (a, b)))
    return statistics.mean(a) - statistics.mean(b), error


def _with_error(error: Callable[[list[float]], float]) -> object:
    """Return a wrong answer with another error of the paired differences."""

    def wrong(a: list[float], b: list[float]) -> tuple[float, float]:
        differences = [x - y for x, y in zip(a, b, strict=True)]
        return statistics.mean(differences), error(differences)

    return wrong


EXERCISES: dict[str, Question] = {
    "standard_errors_apart": Exercise(
        answer=reference.standard_errors_apart,
        cases=_measurements,
        mistakes={
            "You divide by the standard deviation of single runs. How far a *mean* of n runs may "
            "be off is √n times less.": _apart(lambda v, se: math.hypot(statistics.stdev(v), se)),
            "The published mean has an error, too. Errors of independent numbers add as squares: "
            "√(ours² + theirs²).": _apart(lambda v, se: statistics.stdev(v) / math.sqrt(len(v))),
            "You add the two standard errors. Independent errors partly cancel: add their "
            "*squares*, and take the root.": _apart(
                lambda v, se: statistics.stdev(v) / math.sqrt(len(v)) + se
            ),
            "The variance is divided by n. The mean was fitted to the same n numbers, which makes "
            "them look closer to it than they are: divide by n − 1.": _apart(
                lambda v, se: math.hypot(statistics.pstdev(v) / math.sqrt(len(v)), se)
            ),
            "Only the sign is wrong: ours minus the published one.": (
                lambda v, p, se: -reference.standard_errors_apart(v, p, se)
            ),
        },
    ),
    "paired_difference": Exercise(
        answer=reference.paired_difference,
        cases=_pairs,
        mistakes={
            "That is the standard error for two groups that share nothing. Here a[i] and b[i] have "
            "a seed in common: take the differences first, then their spread.": unpaired,
            "You give the standard deviation of the differences, not that of their mean: divide "
            "by √n.": _with_error(statistics.stdev),
            "The variance of the differences is divided by n: divide by n − 1.": _with_error(
                lambda d: statistics.pstdev(d) / math.sqrt(len(d))
            ),
            "The difference is turned round: a − b.": (
                lambda a, b: reference.paired_difference(b, a)
            ),
        },
    ),
    "sampled_too_small": Prediction(
        why=(
            "The best λ of `sampled` is 10^7 in our table, that of `exact` 10^4, and both reach\n"
            "the same accuracy. The penalty is λ times F, so F must be about a thousand times\n"
            "smaller. The published λ, 10^8 to 10^9 against 10^5 to 10^6, say the same."
        ),
        factor=3.0,
        mistakes={
            "Nothing would be smaller if the estimate were near its mean. It is unbiased, but one "
            "pass need not be near the mean: read on.": lambda measured: 1.0,
            "You divided the other way round: F is smaller where λ is larger.": (
                lambda measured: 1 / measured
            ),
        },
    ),
}
