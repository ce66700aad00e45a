"""Exercises of notebook 05, The λ lab."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise


def _sweeps(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return λ and accuracies ``(L, S)``: a hill with a broad top, noise that differs by row."""
    generator = torch.Generator().manual_seed(seed)

    def draw(means: list[float], spread: list[float], seeds: int) -> Tensor:
        noise = torch.randn(len(means), seeds, generator=generator, dtype=torch.float64)
        noise = noise - noise.mean(dim=1, keepdim=True)
        noise = noise / noise.std(dim=1, keepdim=True, correction=1)
        column = torch.tensor(means, dtype=torch.float64), torch.tensor(spread, dtype=torch.float64)
        return column[0].unsqueeze(1) + column[1].unsqueeze(1) * noise

    lambdas = torch.tensor([0.0, 1.0, 3.0, 10.0, 30.0, 100.0], dtype=torch.float64)
    lambdas = lambdas * (0.1 + torch.rand(1, generator=generator, dtype=torch.float64))
    # With S = 4: limit 0.88 − 0.02 = 0.86. Between it and the other rules' limits lies one λ each.
    wide = [0.60, 0.843, 0.864, 0.874, 0.88, 0.862]
    few = [0.60, 0.848, 0.852, 0.87, 0.875, 0.88]
    gap = [0.60, 0.865, 0.85, 0.88, 0.875, 0.70]
    return [
        (lambdas, draw(wide, [0.01, 0.09, 0.001, 0.02, 0.04, 0.02], 4)),
        # ddof = 0: limit 0.88 − 0.0283; ddof = 1: 0.88 − 0.0346.
        (lambdas, draw(few, [0.01, 0.01, 0.01, 0.01, 0.01, 0.06], 3)),
        (lambdas, draw(gap, [0.01, 0.01, 0.01, 0.04, 0.01, 0.01], 4)),
        (lambdas[1:], draw([0.9, 0.8, 0.7, 0.6, 0.5], [0.02] * 5, 5)),
    ]


def _smallest_good(
    error: Callable[[Tensor], Tensor], pick: Callable[[Tensor], Tensor] = torch.min
) -> Callable[[Tensor, Tensor], float]:
    """Return the rule with another standard error of the best row, or another pick of the good."""

    def rule(lambdas: Tensor, accuracies: Tensor) -> float:
        means = accuracies.mean(dim=1)
        limit = means.max() - error(accuracies[means.argmax()])
        return float(pick(lambdas[means >= limit]))

    return rule


def _standard_error(row: Tensor) -> Tensor:
    return row.std(correction=1) / len(row) ** 0.5


def _own_error(lambdas: Tensor, accuracies: Tensor) -> float:
    means = accuracies.mean(dim=1)
    error = accuracies.std(dim=1, correction=1) / accuracies.shape[1] ** 0.5
    return float(lambdas[means + error >= means.max()].min())


def _walk_left(lambdas: Tensor, accuracies: Tensor) -> float:
    means = accuracies.mean(dim=1)
    at = int(means.argmax())
    limit = means[at] - _standard_error(accuracies[at])
    while at > 0 and means[at - 1] >= limit:
        at -= 1
    return float(lambdas[at])


def _landscapes(seed: int = 0) -> list[tuple[Tensor, Tensor, float, float]]:
    """Return a sweep over λ, by how many times F becomes smaller, and the λ of the new run.

    What the new run feels lies between two points of the sweep, on one of them, and below the
    smallest positive one.
    """
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for felt in (3.0, 40.0, 0.03, 1.0, 0.25):
        step, height = torch.rand(2, 5, generator=generator, dtype=torch.float64)
        lambdas = torch.tensor([0.0, 0.1, 1.0, 10.0, 1000.0], dtype=torch.float64)
        values = torch.tensor([0.5, 0.55, 0.7, 0.9, 0.6]).double() + 0.03 * height
        smaller_by = float(4 + 40 * step[0])
        cases.append((lambdas, values, smaller_by, felt * smaller_by))
    return cases


def _felt(change: Callable[[float, float], float]) -> Callable[..., Tensor]:
    """Return the prediction for another λ than the one that the new run feels."""

    def predict(lambdas: Tensor, values: Tensor, smaller_by: float, lam: float) -> Tensor:
        felt = min(change(lam, smaller_by), float(lambdas[-1]))
        return reference.predicted_accuracy(lambdas, values, 1.0, felt)

    return predict


def _line(place: Callable[[float, float, float], float]) -> Callable[..., Tensor]:
    """Return a prediction that finds its place t between the neighbours in another way."""

    def predict(lambdas: Tensor, values: Tensor, smaller_by: float, lam: float) -> Tensor:
        felt = lam / smaller_by
        i = max(1, int((lambdas < felt * (1 - 1e-12)).sum()))
        t = place(float(lambdas[i - 1]), float(lambdas[i]), felt)
        return (1 - t) * values[i - 1] + t * values[i]

    return predict


def _log_place(low: float, high: float, lam: float) -> float:
    return math.log(lam / low) / math.log(high / low)


EXERCISES: dict[str, Exercise] = {
    "smallest_good_lambda": Exercise(
        answer=reference.smallest_good_lambda,
        cases=_sweeps,
        mistakes={
            "That is the best λ itself. Others are as good within one standard error: take the "
            "smallest of them.": (lambda lambdas, accuracies: lambdas[accuracies.mean(1).argmax()]),
            "That uses the standard deviation of one run. The error of a mean is smaller by √S.": (
                _smallest_good(lambda row: row.std(correction=1))
            ),
            "That divides by S in the standard deviation. With few seeds it has to be S − 1: "
            "`std(correction=1)`.": (
                _smallest_good(lambda row: row.std(correction=0) / len(row) ** 0.5)
            ),
            "That gives every λ its own standard error, so a noisy λ counts as good. The limit "
            "is one number: the best mean minus the best row's error.": _own_error,
            "That is the largest good λ: the smallest disturbs learning least.": (
                _smallest_good(_standard_error, torch.max)
            ),
            "You walk left from the best λ and stop at the first that is not good. A smaller one "
            "behind the gap may be good again: look at all.": _walk_left,
            "That is the index of the λ: return the λ that stands there.": (
                lambda lambdas, accuracies: int(
                    (lambdas < _smallest_good(_standard_error)(lambdas, accuracies)).sum()
                )
            ),
        },
    ),
    "predicted_accuracy": Exercise(
        answer=reference.predicted_accuracy,
        cases=_landscapes,
        mistakes={
            "That is the old curve at the new λ, as if F were the same. The network feels λF: ask "
            "which λ felt the same with the old F.": _felt(lambda lam, smaller_by: lam),
            "The wrong direction: with a smaller F the same λ holds *less*, as a smaller λ did "
            "before.": _felt(lambda lam, smaller_by: lam * smaller_by),
            "That divides by the square root. F comes into the penalty as it is, not squared.": (
                _felt(lambda lam, smaller_by: lam / smaller_by**0.5)
            ),
            "The λ is converted rightly, but the line between its neighbours is straight in λ. On "
            "a grid of decades the left one then hardly counts: take log λ.": (
                _line(lambda low, high, lam: (lam - low) / (high - low))
            ),
            "The λ is converted rightly, but that is the nearest point of the grid, not a value "
            "between two of them.": _line(
                lambda low, high, lam: (
                    round(_log_place(low, high, lam)) if low > 0 else round(lam / high)
                )
            ),
            "The λ is converted rightly, but the weights of its two neighbours are exchanged.": (
                _line(
                    lambda low, high, lam: (
                        1 - (_log_place(low, high, lam) if low > 0 else lam / high)
                    )
                )
            ),
            "Right for λ > 0.1. Between 0 and the smallest positive λ the line is straight in λ: "
            "log 0 is not a number, and log(1 + λ) is another line.": _line(
                lambda low, high, lam: (
                    _log_place(low, high, lam) if low > 0 else _log_place(1.0, 1 + high, 1 + lam)
                )
            ),
        },
    ),
}
