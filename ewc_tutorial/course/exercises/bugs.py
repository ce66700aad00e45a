"""Exercises of notebook 08, Bugs in the wild."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ewc_tutorial.course import programs, reference
from ewc_tutorial.course.exercises.core import Exercise, Question
from ewc_tutorial.course.exercises.written import WrittenTest


def _accumulation_cases(seed: int) -> list[tuple[Any, ...]]:
    g = torch.Generator().manual_seed(8 + seed)
    cases = []
    for parts, size, lam in ((2, 4, 3.0), (4, 6, 30.0), (3, 5, 0.5)):
        theta, anchor = torch.randn(2, size, generator=g)
        fisher = torch.rand(size, generator=g)
        cases.append((list(torch.randn(parts, size, generator=g)), theta, anchor, fisher, lam))
    return cases


def _head_cases(seed: int) -> list[tuple[Any, ...]]:
    """Draw heads that grow from one, two and three old classes."""
    g = torch.Generator().manual_seed(9 + seed)
    cases = []
    for old, new, features, lam in ((1, 4, 3, 2.0), (2, 5, 5, 10.0), (3, 4, 2, 0.5)):
        weight = torch.randn(new, features, generator=g)
        anchor = torch.randn(old, features, generator=g)
        cases.append((weight, anchor, torch.rand(old, features, generator=g), lam))
    return cases


def _pull(theta: Tensor, anchor: Tensor, fisher: Tensor, lam: float) -> Tensor:
    return lam * fisher * (theta - anchor)


EXERCISES: dict[str, Question] = {
    "accumulated_gradient": Exercise(
        answer=reference.accumulated_gradient,
        cases=_accumulation_cases,
        mistakes={
            "The penalty is there once for every micro-batch, so λ counts k times: add it once.": (
                lambda gs, *spring: sum(gs) / len(gs) + len(gs) * _pull(*spring)
            ),
            "The penalty is divided by k, too: it belongs to the step, not to a micro-batch.": (
                lambda gs, *spring: (sum(gs) + _pull(*spring)) / len(gs)
            ),
            "The task's gradients are added up: the step on all samples at once has their mean.": (
                lambda gs, *spring: sum(gs) + _pull(*spring)
            ),
            "The task's gradients are added up, and the penalty is there k times: in both the loss "
            "of the whole batch would be counted k times.": (
                lambda gs, *spring: sum(gs) + len(gs) * _pull(*spring)
            ),
            "The gradient of λ/2 F (θ − θ*)² has no 2: it cancels against the ½.": (
                lambda gs, *spring: sum(gs) / len(gs) + 2 * _pull(*spring)
            ),
            "The gradient of λ/2 F (θ − θ*)² has no ½: it cancels against the 2.": (
                lambda gs, *spring: sum(gs) / len(gs) + _pull(*spring) / 2
            ),
            "Only the last micro-batch counts in this: the gradients of all have to be averaged.": (
                lambda gs, *spring: gs[-1] + _pull(*spring)
            ),
            "The pull has the wrong sign. The penalty grows with the distance from the anchor, so "
            "its gradient is +λF(θ − θ*).": (
                lambda gs, *spring: sum(gs) / len(gs) - _pull(*spring)
            ),
            "λ is missing.": lambda gs, theta, anchor, F, lam: (
                sum(gs) / len(gs) + _pull(theta, anchor, F, 1.0)
            ),
            "The penalty is missing.": lambda gs, *spring: sum(gs) / len(gs),
        },
    ),
    "grown_head_penalty": Exercise(
        answer=reference.grown_head_penalty,
        cases=_head_cases,
        mistakes={
            "PyTorch stretches one old row over all rows, so that the new classes are tied to its "
            "weights, and raises an error for two. Take the first len(anchor) rows.": (
                lambda w, anchor, F, lam: lam / 2 * (F * (w - anchor) ** 2).sum()
            ),
            "That is the first row alone. The old head may have had several: take the first "
            "len(anchor) rows.": lambda w, anchor, F, lam: (
                lam / 2 * (F * (w[:1] - anchor) ** 2).sum()
            ),
            "That compares the first rows alone, of the anchor as well: take all that the old "
            "head had.": lambda w, anchor, F, lam: (
                lam / 2 * (F[:1] * (w[:1] - anchor[:1]) ** 2).sum()
            ),
            "That holds the last rows: the old classes come first.": (
                lambda w, anchor, F, lam: lam / 2 * (F * (w[-len(anchor) :] - anchor) ** 2).sum()
            ),
            "The new rows are tied to zero: nothing is known about them, so they are free.": (
                lambda w, anchor, F, lam: (
                    reference.grown_head_penalty(w, anchor, F, lam)
                    + lam / 2 * (w[len(anchor) :] ** 2).sum()
                )
            ),
            "The ½ is missing.": lambda w, anchor, F, lam: (
                2 * reference.grown_head_penalty(w, anchor, F, lam)
            ),
            "That is the mean over the entries: the penalty is their sum.": (
                lambda w, anchor, F, lam: lam / 2 * (F * (w[: len(anchor)] - anchor) ** 2).mean()
            ),
        },
    ),
    "test_of_ewc": WrittenTest(
        answer=programs.careful_test,
        made=programs.made,
        faulty=tuple(programs.FAULTY),
        correct=tuple(programs.CORRECT),
        least=8,
    ),
}
