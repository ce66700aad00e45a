"""Exercises of notebook 06, Many tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise


def _memories() -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Return S, μ and c of earlier tasks, and F and weights of a new one."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for size in (3, 5, 40):
        S, F = 0.1 + 3 * torch.rand(2, size, generator=generator, dtype=torch.float64)
        mu, here = torch.randn(2, size, generator=generator, dtype=torch.float64)
        cases.append((S, mu, torch.tensor(0.4 * size, dtype=torch.float64), F, here))
    return cases


def _decays() -> list[tuple[Tensor, Tensor, Tensor, Tensor, float]]:
    return [
        (S, mu, F, here, gamma)
        for (S, mu, _, F, here), gamma in zip(_memories(), (0.9, 0.3, 0.0), strict=True)
    ]


def _springs() -> list[tuple[Tensor, float, float, int]]:
    """Return importances over many decades, with η, λ and a number of steps."""
    generator = torch.Generator().manual_seed(1)
    S = 10 ** (6 * torch.rand(3, 200, generator=generator, dtype=torch.float64) - 6)
    S[:, :20] = 0
    return [(S[0], 0.3, 100.0, 420), (S[1], 0.1, 1e3, 50), (S[2], 0.3, 30.0, 10)]


def _freedom(S: Tensor, lr: float, lam: float, steps: int) -> Tensor:
    x = lr * lam * S
    return torch.where(x > 0, (1 - (1 + x) ** -float(steps)) / (steps * x), 1.0)


def _merged(anchor, constant=None):
    """Return a wrong ``one_task_more`` with another anchor or another constant."""

    def wrong(S: Tensor, mu: Tensor, c: Tensor, F: Tensor, here: Tensor):
        new_S, right, new_c = reference.one_task_more(S, mu, c, F, here)
        middle = right if anchor is None else anchor(S, mu, F, here)
        if anchor is not None:
            new_c = c + (S * (middle - mu) ** 2).sum() + (F * (middle - here) ** 2).sum()
        return new_S, middle, new_c if constant is None else constant(S, mu, c, F, here, right)

    return wrong


EXERCISES: dict[str, Exercise] = {
    "one_task_more": Exercise(
        answer=reference.one_task_more,
        cases=_memories,
        mistakes={
            "The anchor is the newest weights: that is the rule `latest`. The lowest point of a "
            "sum of two parabolas lies between them, nearer to the stiffer one.": _merged(
                lambda S, mu, F, here: here
            ),
            "The anchor is the plain mean of the two. Weigh each by its stiffness: "
            "(S·μ + F·θ) / (S + F).": _merged(lambda S, mu, F, here: (mu + here) / 2),
            "The two stiffnesses are swapped in the anchor: it must lie nearer to the stiffer "
            "parabola.": _merged(lambda S, mu, F, here: (F * mu + S * here) / (S + F)),
            "The anchor is not divided by S + F: a weighted mean is.": _merged(
                lambda S, mu, F, here: S * mu + F * here
            ),
            "S, μ are right, but the constant is the old one. At their common lowest point both "
            "parabolas still cost something: put μ' into each and add.": _merged(
                None, lambda S, mu, c, F, here, new: c
            ),
            "S, μ are right. In the constant the old c is missing: what earlier tasks could not "
            "agree on stays.": _merged(
                None,
                lambda S, mu, c, F, here, new: (
                    (S * (new - mu) ** 2).sum() + (F * (new - here) ** 2).sum()
                ),
            ),
            "S, μ are right. The constant has only the new parabola's share: at μ' the old one is "
            "no longer at its lowest point, either.": _merged(
                None, lambda S, mu, c, F, here, new: c + (F * (new - here) ** 2).sum()
            ),
        },
    ),
    "online_update": Exercise(
        answer=reference.online_update,
        cases=_decays,
        mistakes={
            "γ multiplies the new task's F. It is the old tasks that fade: γS + F.": (
                lambda S, mu, F, here, gamma: (S + gamma * F, here.clone())
            ),
            "γ multiplies the new F, too, so that in the end everything is only scaled: γS + F.": (
                lambda S, mu, F, here, gamma: (gamma * (S + F), here.clone())
            ),
            "That is a running mean, γS + (1 − γ)F. Its scale does not grow as a sum does; here F "
            "comes in whole: γS + F.": (
                lambda S, mu, F, here, gamma: (gamma * S + (1 - gamma) * F, here.clone())
            ),
            "S is right, but the anchor is still the old one. It moves to the newest weights.": (
                lambda S, mu, F, here, gamma: (gamma * S + F, mu.clone())
            ),
            "S is right. The anchor is the weighted mean of the rule `separate`. Here it is the "
            "newest weights: they were found with the old spring on, so they contain the old "
            "tasks already.": (
                lambda S, mu, F, here, gamma: (
                    gamma * S + F,
                    (gamma * S * mu + F * here) / (gamma * S + F),
                )
            ),
            "Nothing fades: γ is not used.": lambda S, mu, F, here, gamma: (S + F, here.clone()),
        },
    ),
    "share_free": Exercise(
        answer=reference.share_free,
        cases=_springs,
        mistakes={
            "That looks at one step. A spring that lets 99 % pass in every step holds after some "
            "hundreds: use n steps.": (
                lambda S, lr, lam, steps: (_freedom(S, lr, lam, 1) >= 0.5).double().mean().item()
            ),
            "That is the share of the *held* weights. The free ones are the others.": (
                lambda S, lr, lam, steps: (_freedom(S, lr, lam, steps) < 0.5).double().mean().item()
            ),
            "That is the mean freedom. Count the weights whose freedom is at least one half.": (
                lambda S, lr, lam, steps: _freedom(S, lr, lam, steps).mean().item()
            ),
            "λ is missing: the spring's stiffness is λS.": (
                lambda S, lr, lam, steps: (
                    (_freedom(S, lr, 1.0, steps) >= 0.5).double().mean().item()
                )
            ),
            "The learning rate η is missing: a step pulls by ηλS.": (
                lambda S, lr, lam, steps: (
                    (_freedom(S, 1.0, lam, steps) >= 0.5).double().mean().item()
                )
            ),
            "Only weights with S = 0 are counted. A soft spring leaves a weight nearly free, "
            "too.": lambda S, lr, lam, steps: (S == 0).double().mean().item(),
        },
    ),
}
