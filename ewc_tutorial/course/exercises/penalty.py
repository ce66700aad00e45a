"""Exercises of notebook 03, The penalty term."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ewc_tutorial.course.exercises.core import AUTOGRAD, Exercise
from ewc_tutorial.course.reference import (
    collapse_quadratics,
    convert_lambda,
    ewc_gradient,
    ewc_penalty,
    proximal_step,
)

Tensors = dict[str, Tensor]


def _networks(seed: int) -> tuple[Tensors, Tensors, Tensors]:
    """Return θ, θ* and F of two layers of different sizes, F over three orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (3, 4), "0.bias": (3,), "2.weight": (2, 3), "2.bias": (2,)}

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    theta = {name: draw(shape) for name, shape in shapes.items()}
    anchor = {name: draw(shape) for name, shape in shapes.items()}
    fisher = {name: 10 ** (-1.5 + draw(shape).clamp(-2, 2)) for name, shape in shapes.items()}
    fisher["0.weight"][0] = 0.0  # weights that the old task did not use
    return theta, anchor, fisher


def _penalty_cases(seed: int = 0) -> list[tuple[Any, ...]]:
    return [(*_networks(10 * seed + k), lam) for k, lam in enumerate((1.0, 30.0, 0.5))]


def _step_cases(seed: int = 0) -> list[tuple[Any, ...]]:
    numbers = ((1.0, 0.1), (40.0, 0.05), (1e6, 0.2), (0.0, 0.1))
    return [(*_networks(10 * seed + k), *pair) for k, pair in enumerate(numbers, start=3)]


def _conventions(seed: int = 0) -> list[tuple[Any, ...]]:
    """Return conversions between conventions: each choice alone, both ways, then mixtures."""
    generator = random.Random(seed)
    names = ("half", "sum_loss", "sum_fisher")
    theirs = {name: generator.random() < 0.5 for name in names}
    pairs = [(theirs, theirs | {name: not theirs[name]}) for name in names]
    pairs += [(ours, theirs) for theirs, ours in pairs]
    pairs += [({n: generator.random() < 0.5 for n in names}, theirs) for _ in range(3)]
    return [
        (
            10 ** generator.uniform(-2, 4),
            dict(first),
            dict(second),
            generator.randrange(1000, 9000),
            generator.randrange(100, 900),
        )
        for first, second in pairs
    ]


def _spring(convention: dict[str, bool], n_old: int, n_new: int, **powers: int) -> float:
    """Return what λ is multiplied by, each factor to a power; 1 is right."""
    half = 0.5 if convention["half"] else 1.0
    fisher = n_old if convention["sum_fisher"] else 1
    loss = 1 / n_new if convention["sum_loss"] else 1
    half, loss, fisher = (
        factor ** powers.get(name, 1)
        for name, factor in (("half", half), ("loss", loss), ("fisher", fisher))
    )
    return half * loss * fisher


def _wrongly(swap: bool = False, **powers: int) -> Callable[..., float]:
    """Return a conversion that has a factor to another power, or N_old and N_new exchanged."""

    def convert(
        lam: float, theirs: dict[str, bool], ours: dict[str, bool], n_old: int, n_new: int
    ) -> float:
        sizes = (n_new, n_old) if swap else (n_old, n_new)
        return lam * _spring(theirs, *sizes, **powers) / _spring(ours, *sizes, **powers)

    return convert


def _quadratic_cases(seed: int = 0) -> list[tuple[Any, ...]]:
    cases = []
    for k, n_tasks in ((7, 2), (8, 3), (9, 5)):
        networks = [_networks(1000 * seed + 10 * k + t) for t in range(n_tasks)]
        cases.append(
            (
                [fisher["2.weight"].flatten() for _, _, fisher in networks],
                [anchor["2.weight"].flatten() for _, anchor, _ in networks],
            )
        )
    return cases


def _total(
    term: Callable[[Tensor, Tensor, Tensor, float], Tensor],
) -> Callable[[Tensors, Tensors, Tensors, float], Tensor]:
    """Return the function that adds ``term(θ, θ*, F, λ)`` over the parameters of a network."""

    def total(theta: Tensors, anchor: Tensors, fisher: Tensors, lam: float) -> Tensor:
        return sum(term(theta[n], anchor[n], fisher[n], lam) for n in theta)

    return total


def _each(
    entry: Callable[..., Tensor],
) -> Callable[..., Tensors]:
    """Return the function that applies ``entry(θ, θ*, F, …)`` to each parameter of a network."""

    def apply(theta: Tensors, anchor: Tensors, fisher: Tensors, *numbers: float) -> Tensors:
        return {n: entry(theta[n], anchor[n], fisher[n], *numbers) for n in theta}

    return apply


def _around(
    centre: Callable[[list[Tensor], list[Tensor]], Tensor],
) -> Callable[[list[Tensor], list[Tensor]], tuple[Tensor, Tensor, Tensor]]:
    """Return a collapse that is right but for its μ."""

    def collapse(fishers: list[Tensor], anchors: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        mu = centre(fishers, anchors)
        c = sum((F * (mu - a) ** 2).sum() for F, a in zip(fishers, anchors, strict=True))
        return sum(fishers), mu, c

    return collapse


def _collapse_without_constant(
    fishers: list[Tensor], anchors: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    S, mu, _ = collapse_quadratics(fishers, anchors)
    return S, mu, torch.zeros(())


def _collapse_to_mean(
    fishers: list[Tensor], anchors: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    S, mu, c = collapse_quadratics(fishers, anchors)
    return S / len(fishers), mu, c


EXERCISES: dict[str, Exercise] = {
    "ewc_penalty": Exercise(
        answer=ewc_penalty,
        cases=_penalty_cases,
        mistakes={
            "The ½ is missing: your penalty is exactly twice too large, as if λ were 2λ.": _total(
                lambda theta, anchor, F, lam: lam * (F * (theta - anchor) ** 2).sum()
            ),
            "F is missing: this is the L2 penalty, which holds all weights equally hard.": _total(
                lambda theta, anchor, F, lam: lam / 2 * ((theta - anchor) ** 2).sum()
            ),
            "λ is inside the square, so it counts as λ². Multiply by it after squaring.": _total(
                lambda theta, anchor, F, lam: 0.5 * (F * (lam * (theta - anchor)) ** 2).sum()
            ),
            "F is inside the square, so it counts as F². Square only the stretch θ − θ*.": _total(
                lambda theta, anchor, F, lam: lam / 2 * ((F * (theta - anchor)) ** 2).sum()
            ),
            "You took the mean over the entries of each parameter. The penalty is a sum: with the "
            "mean, a spring in a large layer is weaker than one in a small layer.": _total(
                lambda theta, anchor, F, lam: lam / 2 * (F * (theta - anchor) ** 2).mean()
            ),
            "The anchor is missing: this pulls the weights towards zero, as weight decay does, and "
            "not towards θ*.": _total(lambda theta, anchor, F, lam: lam / 2 * (F * theta**2).sum()),
            "The square is missing: the stretches to the left and to the right cancel.": _total(
                lambda theta, anchor, F, lam: lam / 2 * (F * (theta - anchor)).sum()
            ),
        },
    ),
    "ewc_gradient": Exercise(
        answer=ewc_gradient,
        cases=_penalty_cases,
        forbidden=AUTOGRAD,
        mistakes={
            "Twice too large: the 2 from the square cancels against the ½ of the penalty.": _each(
                lambda theta, anchor, F, lam: 2 * lam * F * (theta - anchor)
            ),
            "Half too small: you kept the ½, but the 2 from the square cancels it.": _each(
                lambda theta, anchor, F, lam: lam / 2 * F * (theta - anchor)
            ),
            "The sign is wrong: this is the force of the spring, which points to the anchor. The "
            "gradient points uphill, away from it.": _each(
                lambda theta, anchor, F, lam: lam * F * (anchor - theta)
            ),
            "F counts twice (F²). F is already the mean of squared gradients.": _each(
                lambda theta, anchor, F, lam: lam * F**2 * (theta - anchor)
            ),
            "F is missing: this is the gradient of the L2 penalty.": _each(
                lambda theta, anchor, F, lam: lam * (theta - anchor)
            ),
            "You did not derive the square: the gradient is linear in θ − θ*.": _each(
                lambda theta, anchor, F, lam: lam / 2 * F * (theta - anchor) ** 2
            ),
        },
    ),
    "proximal_step": Exercise(
        answer=proximal_step,
        cases=_step_cases,
        mistakes={
            "This is the ordinary gradient step θ − ηλF(θ − θ*). It is the same for small ηλF, but "
            "it jumps over the anchor when ηλF > 1 and diverges when ηλF > 2.": _each(
                lambda theta, anchor, F, lam, lr: theta - lr * lam * F * (theta - anchor)
            ),
            "The denominator 1 + ηλF is missing: the new θ is not between θ and θ*.": _each(
                lambda theta, anchor, F, lam, lr: theta + lr * lam * F * anchor
            ),
            "η is missing: it comes from the second term, (θ' − θ)² / 2η.": _each(
                lambda theta, anchor, F, lam, lr: (theta + lam * F * anchor) / (1 + lam * F)
            ),
            "η counts twice (η²).": _each(
                lambda theta, anchor, F, lam, lr: (
                    (theta + lr**2 * lam * F * anchor) / (1 + lr**2 * lam * F)
                )
            ),
            "The factor is ηλF, without a 2: it cancels against the ½ of both terms.": _each(
                lambda theta, anchor, F, lam, lr: (
                    (theta + 2 * lr * lam * F * anchor) / (1 + 2 * lr * lam * F)
                )
            ),
            "θ and θ* are exchanged: with λ = 0 the weights must stay where they are.": _each(
                lambda theta, anchor, F, lam, lr: (
                    (anchor + lr * lam * F * theta) / (1 + lr * lam * F)
                )
            ),
        },
    ),
    "convert_lambda": Exercise(
        answer=convert_lambda,
        cases=_conventions,
        mistakes={
            "The wrong way round: that takes a λ from our convention into theirs.": (
                _wrongly(half=-1, loss=-1, fisher=-1)
            ),
            "The ½ is the wrong way round: without it, half the λ does the same.": _wrongly(
                half=-1
            ),
            "The ½ has no effect in that: without it, half the λ will do.": _wrongly(half=0),
            "The loss is the wrong way round: beside a *sum* over n_new samples the same spring "
            "needs an n_new times larger λ.": _wrongly(loss=-1),
            "It makes no difference in that whether the loss is a mean or a sum.": _wrongly(loss=0),
            "F is the wrong way round: if F is a *sum* over n_old samples, λ is n_old times "
            "smaller.": _wrongly(fisher=-1),
            "It makes no difference in that whether F is a mean or a sum.": _wrongly(fisher=0),
            "n_old and n_new are exchanged: F is summed over the old task, the loss over the new "
            "one.": _wrongly(swap=True),
        },
    ),
    "collapse_quadratics": Exercise(
        answer=collapse_quadratics,
        cases=_quadratic_cases,
        mistakes={
            "μ is the plain mean of the anchors. It must be weighted with F: a stiff spring pulls "
            "the common rest position closer to its own anchor.": _around(
                lambda fishers, anchors: sum(anchors) / len(anchors)
            ),
            "μ is the last anchor only. That is another rule (`latest`, notebook 06), not the sum "
            "of the quadratics.": _around(lambda fishers, anchors: anchors[-1]),
            "μ is not divided by S, so it is not a position between the anchors.": _around(
                lambda fishers, anchors: sum(F * a for F, a in zip(fishers, anchors, strict=True))
            ),
            "c is zero, but all springs cannot be relaxed at once: at θ = μ the sum is "
            "Σ_t Σ_i F_t,i (μ_i − θ*_t,i)².": _collapse_without_constant,
            "S is the mean of the F_t. It must be their sum: springs side by side add up.": (
                _collapse_to_mean
            ),
        },
    ),
}
