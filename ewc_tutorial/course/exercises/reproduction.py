"""Exercises of notebook 12, Does it reproduce?"""

from __future__ import annotations

import math
import statistics

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise


def _measurements() -> list[tuple[list[float], float, float]]:
    """Return accuracies over seeds with a published mean and standard error, the last exact."""
    return [
        ([99.1, 98.7, 99.3, 99.0, 98.9], 99.06, 0.15),
        ([61.0, 70.5, 55.2, 66.1], 63.03, 1.58),
        ([19.9, 20.1, 19.4], 20.64, 0.52),
        ([84.0, 87.5, 81.9, 90.2, 85.5], 84.32, 0.0),
    ]


def _pairs() -> list[tuple[list[float], list[float]]]:
    """Return accuracies of two methods on the same seeds, which vary far more than they differ."""
    return [
        ([61.2, 70.9, 55.8, 66.5, 73.1], [58.9, 69.0, 53.1, 63.9, 71.6]),
        ([20.5, 19.8, 21.6], [19.9, 19.9, 20.3]),
        ([99.0, 99.3, 98.7, 99.2], [81.5, 90.2, 86.4, 84.9]),
    ]


def _apart(error) -> object:
    """Return a wrong answer with another standard error of the difference."""
    return lambda v, p, se: (statistics.mean(v) - p) / error(v, se)


def _unpaired(a: list[float], b: list[float]) -> tuple[float, float]:
    error = math.hypot(*(statistics.stdev(x) / math.sqrt(len(x)) for x in (a, b)))
    return statistics.mean(a) - statistics.mean(b), error


def _with_error(error) -> object:
    """Return a wrong answer with another error of the paired differences."""

    def wrong(a: list[float], b: list[float]) -> tuple[float, float]:
        differences = [x - y for x, y in zip(a, b, strict=True)]
        return statistics.mean(differences), error(differences)

    return wrong


EXERCISES: dict[str, Exercise] = {
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
            "a seed in common: take the differences first, then their spread.": _unpaired,
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
}
