"""Exercises of notebook 04, Forgetting curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise
from ewc_tutorial.course.exercises.runs import three_runs


def _matrices(seed: int = 0) -> list[tuple[Tensor]]:
    """Return accuracy matrices of 2, 3 and 5 tasks; in some a task is best long after learning."""
    three = [[0.95, 0.10, 0.12], [0.70, 0.94, 0.08], [0.76, 0.55, 0.96]]
    late = [[0.80, 0.20, 0.10], [0.90, 0.85, 0.20], [0.60, 0.88, 0.90]]
    generator = torch.Generator().manual_seed(seed)
    five, two = (torch.rand(n, n, generator=generator, dtype=torch.float64) for n in (5, 2))
    return [
        (torch.tensor(three, dtype=torch.float64),),
        (torch.tensor(late, dtype=torch.float64),),
        (two,),
        (five,),
    ]


def _diagonals(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of Fisher diagonals: of unequal size, the same up to a factor, and disjoint."""
    generator = torch.Generator().manual_seed(1 + seed)

    def draw(n: int, scale: float) -> Tensor:
        F = scale * 10 ** torch.randn(n, generator=generator, dtype=torch.float64)
        F[::5] = 0.0  # weights that the task does not use
        return F

    F = draw(12, 1.0)
    disjoint = torch.zeros(12, dtype=torch.float64)
    disjoint[::5] = 2.0
    return [(draw(20, 0.1), draw(20, 7.0)), (F, 100 * F), (F, disjoint), (draw(8, 1), draw(8, 3))]


Gradient = Callable[[Tensor], Tensor]


def _descents(seed: int = 0) -> list[tuple[Any, ...]]:
    """Return tasks B with a quadratic and with a logistic loss, springs from slack to rigid."""
    generator = torch.Generator().manual_seed(2 + seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = draw(5)
    x, y = draw(30, 5), (draw(30) > 0).double()
    quadratic: Gradient = lambda theta: theta - target  # noqa: E731
    logistic: Gradient = lambda theta: x.T @ (torch.sigmoid(x @ theta) - y) / len(x)  # noqa: E731
    fisher = torch.tensor([0.0, 0.01, 0.1, 0.5, 2.0], dtype=torch.float64)
    return [
        (quadratic, draw(5), fisher, 1.0, 0.1, 20),
        (logistic, draw(5), fisher, 5.0, 0.15, 30),
        (quadratic, draw(5), fisher, 0.0, 0.2, 7),
    ]


def _descent(pull: Callable[..., Tensor], start_at_zero: bool = False) -> Callable[..., Tensor]:
    """Return a descent whose step is ``pull(theta, loss_gradient, anchor, fisher, lam, lr)``."""

    def run(
        gradient: Gradient, anchor: Tensor, fisher: Tensor, lam: float, lr: float, steps: int
    ) -> Tensor:
        theta = torch.zeros_like(anchor) if start_at_zero else anchor.clone()
        for _ in range(steps):
            theta = pull(theta, gradient, anchor, fisher, lam, lr)
        return theta

    return run


def _proximal(theta: Tensor, anchor: Tensor, x: Tensor) -> Tensor:
    return (theta + x * anchor) / (1 + x)


def _trios(seed: int = 0) -> list[tuple[Tensor]]:
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed)).tolist()
    return [(three_runs(seed, bug),) for bug in order]


def _most_forgotten(R: Tensor) -> tuple[int, int]:
    falls = torch.stack([R[:, 0, 0] - R[:, 2, 0], R[:, 1, 1] - R[:, 2, 1]])
    return int(falls.amax(0).argmax()), reference.run_and_bug(R)[1]


def _turned(R: Tensor) -> tuple[int, int]:
    """Return what the rule finds where rows and columns are exchanged."""
    try:
        return reference.run_and_bug(R.mT)
    except ValueError:
        return 0, 0


def _called(numbers: dict[int, int]) -> Callable[[Tensor], tuple[int, int]]:
    """Return the right run with some bugs taken for others."""

    def search(R: Tensor) -> tuple[int, int]:
        run, bug = reference.run_and_bug(R)
        return run, numbers.get(bug, bug)

    return search


EXERCISES: dict[str, Exercise] = {
    "average_accuracy": Exercise(
        answer=reference.average_accuracy,
        cases=_matrices,
        mistakes={
            "That is the mean of the diagonal: how well each task was learned, before anything "
            "was forgotten. Use the last row.": lambda R: R.diagonal().mean(),
            "That is the mean of the whole matrix. Only the last row is the state at the end.": (
                lambda R: R.mean()
            ),
            "That is the mean of the last column: the last task all along. The last row is every "
            "task at the end.": lambda R: R[:, -1].mean(),
        },
    ),
    "forgetting": Exercise(
        answer=reference.forgetting,
        cases=_matrices,
        mistakes={
            "That starts from R[j, j], the accuracy right after learning the task. A task can "
            "become better later: start from its best accuracy.": (
                lambda R: (R.diagonal()[:-1] - R[-1, :-1]).mean()
            ),
            "That includes the last task, which has had no time to be forgotten: average over "
            "the T − 1 earlier ones.": (
                lambda R: (R[:-1].max(0).values - R[-1])[:-1].sum() / len(R)
            ),
            "The sign is the other way round: forgetting is positive when accuracy was lost.": (
                lambda R: (R[-1, :-1] - R[:-1, :-1].max(0).values).mean()
            ),
            "That is never negative: the maximum runs over the last row, too, or it is cut at "
            "zero. A task that ends at its best has a negative forgetting: count the stages "
            "before the last one only.": (lambda R: (R.max(0).values - R[-1])[:-1].mean()),
            "Rows and columns are exchanged: R[i, j] is the accuracy on task j after learning "
            "task i.": lambda R: (R[:-1, :-1].max(1).values - R[:-1, -1]).mean(),
        },
    ),
    "fisher_overlap": Exercise(
        answer=reference.fisher_overlap,
        cases=_diagonals,
        mistakes={
            "The two are not normalised: divide each by its sum first, or a task with larger "
            "gradients looks different only for its scale.": (
                lambda F1, F2: 1 - (F1.sqrt() - F2.sqrt()).square().sum() / 2
            ),
            "The square roots are missing: without them the overlap of disjoint tasks is not 0.": (
                lambda F1, F2: 1 - (F1 / F1.sum() - F2 / F2.sum()).square().sum() / 2
            ),
            "The factor ½ is missing: disjoint tasks come out at −1 instead of 0.": (
                lambda F1, F2: 1 - ((F1 / F1.sum()).sqrt() - (F2 / F2.sum()).sqrt()).square().sum()
            ),
            "That is the distance. The overlap is one minus it.": (
                lambda F1, F2: ((F1 / F1.sum()).sqrt() - (F2 / F2.sum()).sqrt()).square().sum() / 2
            ),
            "That divides by the norm of F. Kirkpatrick's F̂ has a *trace* of one: divide by the "
            "sum.": (
                lambda F1, F2: (
                    1 - ((F1 / F1.norm()).sqrt() - (F2 / F2.norm()).sqrt()).square().sum() / 2
                )
            ),
        },
    ),
    "descend_with_ewc": Exercise(
        answer=reference.descend_with_ewc,
        cases=_descents,
        mistakes={
            "That is plain fine-tuning: nothing pulls the weights back. (If you do pull: is "
            "`theta` the anchor itself, which then moves with it? Start from `anchor.clone()`.)": (
                _descent(lambda theta, g, anchor, F, lam, lr: theta - lr * g(theta))
            ),
            "That treats all weights alike, as L2 does: the pull must be in proportion to F.": (
                _descent(
                    lambda theta, g, anchor, F, lam, lr: _proximal(
                        theta - lr * g(theta), anchor, lr * lam * torch.ones_like(F)
                    )
                )
            ),
            "The spring is tied to the weights of the step before, so the anchor wanders off "
            "with them: it must stay at A's optimum.": _descent(
                lambda theta, g, anchor, F, lam, lr: _proximal(
                    theta - lr * g(theta), theta, lr * lam * F
                )
            ),
            "That pulls first and steps on B's loss after it. The proximal step comes last.": (
                _descent(
                    lambda theta, g, anchor, F, lam, lr: (
                        (pulled := _proximal(theta, anchor, lr * lam * F)) - lr * g(pulled)
                    )
                )
            ),
            "That adds the penalty's gradient to the step. It is close where ηλF is small, but "
            "it diverges at a large λ: take the proximal step.": _descent(
                lambda theta, g, anchor, F, lam, lr: (
                    theta - lr * (g(theta) + lam * F * (theta - anchor))
                )
            ),
            "The learning rate is missing in the pull: x = ηλF.": _descent(
                lambda theta, g, anchor, F, lam, lr: _proximal(
                    theta - lr * g(theta), anchor, lam * F
                )
            ),
            "That starts at zero. Training on B starts where training on A ended, at the "
            "anchor.": _descent(
                lambda theta, g, anchor, F, lam, lr: _proximal(
                    theta - lr * g(theta), anchor, lr * lam * F
                ),
                start_at_zero=True,
            ),
        },
    ),
    "run_and_bug": Exercise(
        answer=reference.run_and_bug,
        cases=_trios,
        mistakes={
            "You accuse the run that has forgotten most. One of the bugs forgets nothing, for it "
            "learns nothing: look at the diagonal.": _most_forgotten,
            "The run is right, but you take the two bugs of consolidation for one: which of the "
            "columns falls, that of A or that of B?": _called({1: 0}),
            "The run is right, but a diagonal near chance is not forgetting: that task was never "
            "learned.": _called({2: 0}),
            "The run is right, but its bug is another: how can it know B and C before it has seen "
            "them?": _called({3: 0}),
            "Rows and columns are exchanged: R[run, i, j] is the accuracy on task j after learning "
            "task i.": _turned,
            "The run is right. Count the bugs from 0, as in the list.": _called(
                {bug: bug + 1 for bug in range(4)}
            ),
            "The bug is right. Count the runs from 0.": lambda R: (
                reference.run_and_bug(R)[0] + 1,
                reference.run_and_bug(R)[1],
            ),
        },
    ),
}
