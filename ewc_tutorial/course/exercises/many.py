"""Exercises of notebook 06, Many tasks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise


def _memories(seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Return S, μ and c of earlier tasks, and F and weights of a new one."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for size in (3, 5, 40):
        S, F = 0.1 + 3 * torch.rand(2, size, generator=generator, dtype=torch.float64)
        mu, here = torch.randn(2, size, generator=generator, dtype=torch.float64)
        cases.append((S, mu, torch.tensor(0.4 * size, dtype=torch.float64), F, here))
    return cases


#: A merge takes importance and anchor, F and the weights of a task, the task's number and γ.
Merge = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], tuple[Tensor, Tensor]]


def _rule(
    S: Tensor, mu: Tensor, F: Tensor, here: Tensor, t: int, gamma: float
) -> tuple[Tensor, Tensor]:
    return gamma * S + F, here


#: What is wrong in a program → its merge after task t; the last two break at a task of their own.
BUGS: dict[str, Merge] = {
    "the anchor of `separate`": lambda S, mu, F, here, t, gamma: (
        gamma * S + F,
        (gamma * S * mu + F * here) / (gamma * S + F),
    ),
    "the anchor stays at the first task": lambda S, mu, F, here, t, gamma: (
        gamma * S + F,
        here if t == 1 else mu,
    ),
    "the newest F replaces S": lambda S, mu, F, here, t, gamma: (F, here),
    "γ at the new F": lambda S, mu, F, here, t, gamma: (S + gamma * F, here),
    "a restart after task 3 that loads no memory": lambda S, mu, F, here, t, gamma: (
        (0 * S, here) if t == 3 else (gamma * S + F, here)
    ),
    "task 4 is counted twice": lambda S, mu, F, here, t, gamma: (
        gamma * S + (2 if t == 4 else 1) * F,
        here,
    ),
}


def three_programs(seed: int = 0, bug: str | None = None) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return what three programs with the rule `online` made of six parabolas each; one has a bug.

    Args:
        seed: draws the tasks and, if it is not given, the bug, and which program has it.
        bug: one of :data:`BUGS`.

    Returns:
        The weights after each task, the optima and the curvatures, ``(3, 6, 3)`` each, and γ. A
        right program ends each task within 0.01 of where it should, the wrong one is off by more
        than 0.1 as soon as its bug can be seen.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    names = [*BUGS]
    bug = bug or names[int(torch.randint(len(names), (), generator=generator))]
    guilty = int(torch.randint(3, (), generator=generator))
    while True:
        optima, fishers = draw(-2, 2, 3, 6, 3), draw(0.5, 2, 3, 6, 3)
        noise, gamma = draw(-0.009, 0.009, 3, 6, 3), draw(0.5, 0.8, 1).item()
        S, mu, paths, seen = torch.zeros(3, 3).double(), torch.zeros(3, 3).double(), [], 0.0
        true_S, true_mu = S, mu
        for t, (F, m, shift) in enumerate(
            zip(fishers.unbind(1), optima.unbind(1), noise.unbind(1), strict=True), start=1
        ):
            here = (S * mu + F * m) / (S + F) + shift
            off = (here - shift - (true_S * true_mu + F * m) / (true_S + F)).abs().max().item()
            seen = seen or (off if off > 1e-9 else 0.0)
            paths.append(here)
            right, wrong = (merge(S, mu, F, here, t, gamma) for merge in (_rule, BUGS[bug]))
            at = torch.arange(3)[:, None] == guilty
            true_S, true_mu = _rule(true_S, true_mu, F, here, t, gamma)
            S, mu = (torch.where(at, w, r) for w, r in zip(wrong, right, strict=True))
        if seen > 0.1:  # it shows clearly, and at once
            return torch.stack(paths, 1), optima, fishers, gamma


def _trios(seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor, float]]:
    """Return each bug twice."""
    return [three_programs(100 * seed + i, bug) for i, bug in enumerate([*BUGS, *BUGS])]


def _first_off(merge: Merge, last: bool = False) -> Callable[..., tuple[int, int]]:
    """Return a search for the bug with another rule, or that looks at the last task alone."""

    def search(paths: Tensor, optima: Tensor, fishers: Tensor, gamma: float) -> tuple[int, int]:
        S, mu, found = torch.zeros_like(optima[:, 0]), torch.zeros_like(optima[:, 0]), None
        for t, (F, m, here) in enumerate(
            zip(fishers.unbind(1), optima.unbind(1), paths.unbind(1), strict=True), start=1
        ):
            off = (here - (S * mu + F * m) / (S + F)).abs().amax(1)
            if off.max() > 0.01 and (found is None or last):
                found = int(off.argmax()), t
            S, mu = merge(S, mu, F, here, t, gamma)
        return found or (0, 1)

    return search


def _by_the_end(paths: Tensor, optima: Tensor, fishers: Tensor, gamma: float) -> tuple[int, int]:
    """Return the run whose end is furthest from the lowest point of all its losses."""
    right = (fishers * optima).sum(1) / fishers.sum(1)
    return int((paths[:, -1] - right).norm(dim=1).argmax()), paths.shape[1]


def _counted(run: int, task: int) -> Callable[..., tuple[int, int]]:
    """Return the right answer with counts that begin elsewhere."""

    def search(*case: Tensor) -> tuple[int, int]:
        found = reference.run_with_the_bug(*case)
        return found[0] + run, found[1] + task

    return search


def _springs(seed: int = 0) -> list[tuple[Tensor, float, float, int]]:
    """Return importances over many decades, with η, λ and a number of steps."""
    generator = torch.Generator().manual_seed(seed)
    S = 10 ** (6 * torch.rand(3, 200, generator=generator, dtype=torch.float64) - 6)
    S[:, : int(torch.randint(15, 40, (), generator=generator))] = 0
    return [(S[0], 0.3, 100.0, 420), (S[1], 0.1, 1e3, 50), (S[2], 0.3, 30.0, 10)]


def _freedom(S: Tensor, lr: float, lam: float, steps: int) -> Tensor:
    x = lr * lam * S
    return torch.where(x > 0, (1 - (1 + x) ** -float(steps)) / (steps * x), 1.0)


def _merged(
    anchor: Callable[..., Tensor] | None, constant: Callable[..., Tensor] | None = None
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return a wrong ``one_task_more`` with another anchor or another constant."""

    def wrong(
        S: Tensor, mu: Tensor, c: Tensor, F: Tensor, here: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
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
    "run_with_the_bug": Exercise(
        answer=reference.run_with_the_bug,
        cases=_trios,
        mistakes={
            "Your rule is `latest`, so that right runs look wrong. Under `online` the old "
            "importance fades: γS + F.": _first_off(lambda S, mu, F, here, t, gamma: (S + F, here)),
            "γ multiplies your new F, so that right runs look wrong. It is the old tasks that "
            "fade: γS + F.": _first_off(lambda S, mu, F, here, t, gamma: (S + gamma * F, here)),
            "Your anchor is the weighted mean of `separate`, so that right runs look wrong. Under "
            "`online` it is where the run was after the last task.": _first_off(
                lambda S, mu, F, here, t, gamma: (
                    gamma * S + F,
                    (gamma * S * mu + F * here) / (gamma * S + F),
                )
            ),
            "That is the last task at which a run is off. A bug shows at its first: go through the "
            "tasks in their order.": _first_off(_rule, last=True),
            "That is the run that ends furthest from the lowest point of the sum of all losses. "
            "With γ < 1 no run ends there: ask for each task where the rule would have led.": (
                _by_the_end
            ),
            "The run is right. Count its tasks from 1.": _counted(0, -1),
            "The task is right. Count the runs from 0.": _counted(1, 0),
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
            "The weights with S = 0 are not counted: there the formula is 0/0, not a number, and "
            "never ≥ ½. Without a spring the freedom is 1.": lambda S, lr, lam, steps: (
                ((_freedom(S, lr, lam, steps) >= 0.5) & (S > 0)).double().mean().item()
            ),
            "Only weights with S = 0 are counted. A soft spring leaves a weight nearly free, "
            "too.": lambda S, lr, lam, steps: (S == 0).double().mean().item(),
        },
    ),
}
