"""Exercises of notebook 05, The λ lab."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise


def _sweeps() -> list[tuple[Tensor, Tensor]]:
    """Return λ and accuracies ``(L, S)``: a hill with a broad top, noise that differs by row."""
    generator = torch.Generator().manual_seed(0)

    def draw(means: list[float], spread: list[float], seeds: int) -> Tensor:
        noise = torch.randn(len(means), seeds, generator=generator, dtype=torch.float64)
        noise = noise - noise.mean(dim=1, keepdim=True)
        noise = noise / noise.std(dim=1, keepdim=True, correction=1)
        column = torch.tensor(means, dtype=torch.float64), torch.tensor(spread, dtype=torch.float64)
        return column[0].unsqueeze(1) + column[1].unsqueeze(1) * noise

    lambdas = torch.tensor([0.0, 1.0, 3.0, 10.0, 30.0, 100.0], dtype=torch.float64)
    # With S = 4: limit 0.88 − 0.02 = 0.86. Between it and the other rules' limits lies one λ each.
    wide = [0.60, 0.843, 0.864, 0.874, 0.88, 0.862]
    few = [0.60, 0.848, 0.852, 0.87, 0.875, 0.88]
    return [
        (lambdas, draw(wide, [0.01, 0.09, 0.001, 0.02, 0.04, 0.02], 4)),
        # ddof = 0: limit 0.88 − 0.0283; ddof = 1: 0.88 − 0.0346.
        (lambdas, draw(few, [0.01, 0.01, 0.01, 0.01, 0.01, 0.06], 3)),
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


def _grids() -> list[tuple[Tensor, Tensor, float]]:
    """Return grids with and without 0, and λ between its points, on one, and at both ends."""
    lambdas = torch.tensor([0.0, 0.1, 1.0, 10.0, 1000.0], dtype=torch.float64)
    values = torch.tensor([0.5, 0.55, 0.7, 0.9, 0.6], dtype=torch.float64)
    return [
        (lambdas, values, 3.0),
        (lambdas, values, 30.0),
        (lambdas, values, 0.02),
        (lambdas, values, 1.0),
        (lambdas, values, 0.0),
        (lambdas, values, 1000.0),
        (lambdas[2:], values[2:], 2.0),
    ]


def _line(
    place: Callable[[Tensor, float, float, float], float],
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return an interpolation that finds its place t between the neighbours in another way."""

    def interpolate(lambdas: Tensor, values: Tensor, lam: float) -> Tensor:
        i = max(1, int((lambdas < lam).sum()))
        t = place(lambdas, float(lambdas[i - 1]), float(lambdas[i]), lam)
        return (1 - t) * values[i - 1] + t * values[i]

    return interpolate


def _log_place(low: float, high: float, lam: float) -> float:
    low, high, lam = (torch.tensor(v).log() for v in (low, high, lam))
    return float((lam - low) / (high - low))


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
            "That is the index of the λ: return the λ that stands there.": (
                lambda lambdas, accuracies: int(
                    (lambdas < _smallest_good(_standard_error)(lambdas, accuracies)).sum()
                )
            ),
        },
    ),
    "interpolate_in_log_lambda": Exercise(
        answer=reference.interpolate_in_log_lambda,
        cases=_grids,
        mistakes={
            "That is a straight line in λ. On a grid of decades the right neighbour then hardly "
            "counts: the line must be straight in log λ.": (
                _line(lambda _, low, high, lam: (lam - low) / (high - low))
            ),
            "That is the nearest point of the grid, not a value between two of them.": (
                _line(
                    lambda _, low, high, lam: (
                        round(_log_place(low, high, lam)) if low > 0 else round(lam / high)
                    )
                )
            ),
            "The weights of the two neighbours are exchanged.": (
                _line(
                    lambda _, low, high, lam: (
                        1 - (_log_place(low, high, lam) if low > 0 else lam / high)
                    )
                )
            ),
            "Right for λ > 0. Between 0 and the smallest positive λ the line is straight in λ: "
            "log(1 + λ) or log(λ + ε) is another line.": (
                _line(
                    lambda _, low, high, lam: (
                        _log_place(low, high, lam)
                        if low > 0
                        else _log_place(1.0, 1 + high, 1 + lam)
                    )
                )
            ),
        },
    ),
}
