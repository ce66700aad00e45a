"""Exercises of notebook 14, Which importance?"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise, Prediction, Question
from ewc_tutorial.course.exercises.reproduction import unpaired


def _paths(seed: int) -> list[tuple[list[Tensor], list[Tensor], float]]:
    """Draw gradients and the weights along a descent that is not always one."""
    g = torch.Generator().manual_seed(seed)
    cases = []
    for steps, size, damping in ((1, 4, 0.1), (6, 5, 0.1), (20, 8, 0.001)):
        weights = [torch.randn(size, generator=g, dtype=torch.float64)]
        gradients = []
        for _ in range(steps):
            gradients.append(torch.randn(size, generator=g, dtype=torch.float64))
            noise = torch.randn(size, generator=g, dtype=torch.float64)
            weights.append(weights[-1] - 0.1 * gradients[-1] + 0.1 * noise)
        cases.append((gradients, weights, damping))
    return cases


def _gain(gradients: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Return Σ −g Δθ."""
    steps = zip(gradients, pairwise(weights), strict=True)
    return sum((g * (before - after) for g, (before, after) in steps), torch.zeros(()))


def _contests(seed: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Draw accuracies of two methods in several settings: seeds share their luck."""
    g = torch.Generator().manual_seed(seed)
    cases = []
    for settings, search, report, gain in ((2, 2, 5, 0.02), (4, 3, 6, 0.0), (6, 2, 10, 0.01)):
        luck = 0.03 * torch.randn(search + report, generator=g, dtype=torch.float64)

        def method(
            more: float, luck: Tensor = luck, n: int = settings, k: int = search
        ) -> tuple[Tensor, Tensor]:
            quality = 0.7 + 0.05 * torch.rand(n, 1, generator=g, dtype=torch.float64)
            noise = 0.02 * torch.randn(n, len(luck), generator=g, dtype=torch.float64)
            both = quality + more + luck + noise
            # What is best where it is reported is not what the search finds.
            both[both[:, :k].mean(1).argmin(), k:] += 0.2
            return both[:, :k], both[:, k:]

        cases.append((*method(gain), *method(0.0)))
    return cases


def _chosen_on_the_report(
    a_search: Tensor, a_report: Tensor, b_search: Tensor, b_report: Tensor
) -> tuple[float, float]:
    return reference.held_against(a_report, a_report, b_report, b_report)


def _unpaired(
    a_search: Tensor, a_report: Tensor, b_search: Tensor, b_report: Tensor
) -> tuple[float, float]:
    a = a_report[a_search.mean(1).argmax()]
    b = b_report[b_search.mean(1).argmax()]
    return unpaired(a.tolist(), b.tolist())


def _one_setting(
    a_search: Tensor, a_report: Tensor, b_search: Tensor, b_report: Tensor
) -> tuple[float, float]:
    return reference.held_against(b_search, a_report, b_search, b_report)


EXERCISES: dict[str, Question] = {
    "path_importance": Exercise(
        answer=reference.path_importance,
        cases=_paths,
        mistakes={
            "A weight that has made the loss worse gets a negative spring, which pushes it away "
            "from where it was: cut off at zero.": lambda g, w, damping: (
                _gain(g, w) / ((w[-1] - w[0]) ** 2 + damping)
            ),
            "The gain is not divided by how far the weight has gone: two weights that brought the "
            "loss down alike, one by a short way and one by a long one, are not equally stiff.": (
                lambda g, w, damping: _gain(g, w).clamp(min=0)
            ),
            "You divide by the squared length of all single steps. What counts is how far the "
            "weight is from its start: a quadratic spring from there would give that gain.": (
                lambda g, w, damping: (
                    _gain(g, w) / (sum((b - a) ** 2 for a, b in pairwise(w)) + damping)
                ).clamp(min=0)
            ),
            "The sign: along a step downhill g and Δθ point in opposite ways, so that the gain is "
            "−g Δθ.": lambda g, w, damping: (
                (-_gain(g, w)) / ((w[-1] - w[0]) ** 2 + damping)
            ).clamp(min=0),
        },
    ),
    "referee_kronecker": Prediction(
        why=(
            "Notebook 13 found Kronecker factors within a few points of joint training on ten\n"
            "permuted tasks. On three they should be at least as near: a point or two below joint\n"
            "training's 95."
        ),
        within=3.0,
        unit=" %",
        mistakes={
            "That is about what the best diagonals reach. Permuted tasks are where directions "
            "count most: see notebook 13.": lambda measured: measured - 12,
        },
    ),
    "held_against": Exercise(
        answer=reference.held_against,
        cases=_contests,
        mistakes={
            "You choose the setting on the seeds that you report. The best of several lucky draws "
            "is always better than it will be: choose on the search.": _chosen_on_the_report,
            "That is the standard error for two groups that share nothing. Column i of both is one "
            "seed: take the differences first.": _unpaired,
            "You give both methods the setting of b. Scales differ: each needs its own λ and "
            "learning rate.": _one_setting,
        },
    ),
}
