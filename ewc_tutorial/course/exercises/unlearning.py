"""Exercises of notebook 11, Forgetting on purpose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import Exercise, Prediction, Question

Bowl = tuple[Tensor, Tensor, float, int]
Springs = tuple[Tensor, Tensor, Tensor, Tensor]


def _bowls(seed: int) -> list[Bowl]:
    """Return updates, curvatures that are not diagonal, step sizes and numbers of steps."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for d, lr, steps in ((2, 0.1, 3), (3, 0.2, 10), (4, 0.05, 25), (2, 0.3, 0)):
        root = torch.randn(d, d, generator=generator, dtype=torch.float64)
        H = root @ root.T / d + 0.1 * torch.eye(d, dtype=torch.float64)
        cases.append((torch.randn(d, generator=generator, dtype=torch.float64), H, lr, steps))
    return cases


def _springs(seed: int) -> list[Springs]:
    """Return S, μ and one task's F, θ. Eighths keep S − F exact, zeros included."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def eighths(n: int) -> Tensor:
        return torch.randint(0, 5, (n,), generator=generator).double() / 8

    cases = []
    for n, tasks in ((6, 2), (8, 3), (5, 4)):
        F = torch.stack([eighths(n) for _ in range(tasks)])
        F[:, 0] = 0  # a weight that no task uses
        F[1:, 1], F[0, 1] = 0, 0.5  # and one that only the dropped task uses
        F[:, 2] = 0.25
        theta = torch.randn(tasks, n, generator=generator, dtype=torch.float64)
        S = F.sum(0)
        mu = torch.where(S > 0, (F * theta).sum(0) / S.clamp(min=1e-9), 0)
        cases.append((S, mu, F[0], theta[0]))
    return cases


def _answers(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return the classes of one network, and those of two to four retrained ones."""
    generator = torch.Generator().manual_seed(2000 + seed)
    cases = []
    for n, count, noise in ((60, 3, 0.2), (50, 4, 0.1), (40, 2, 0.3)):
        true = torch.randint(10, (n,), generator=generator)

        def noisy(share: float, n: int = n, true: Tensor = true) -> Tensor:
            other = torch.randint(10, (n,), generator=generator)
            return torch.where(torch.rand(n, generator=generator) < share, other, true)

        retrained = torch.stack([noisy(noise) for _ in range(count)])
        cases.append((noisy(2 * noise), retrained))
    return cases


def _dropped(anchor: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a wrong ``drop_task`` whose new anchor is another; S′ is right."""

    def wrong(S: Tensor, mu: Tensor, F: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        kept = S - F
        return kept, torch.where(kept > 0, anchor(S, mu, F, theta), 0)

    return wrong


def _pairs_with_oneself(answers: Tensor, retrained: Tensor) -> float:
    among = [(one != other).double().mean() for one in retrained for other in retrained]
    to_them = (answers != retrained).double().mean()
    return (to_them / torch.stack(among).mean()).item()


def _agreement(answers: Tensor, retrained: Tensor) -> float:
    R = len(retrained)
    among = [(retrained[i] == retrained[j]).double().mean() for i in range(R) for j in range(i)]
    return ((answers == retrained).double().mean() / torch.stack(among).mean()).item()


def _to_the_first(answers: Tensor, retrained: Tensor) -> float:
    all_of_them = (answers != retrained).double().mean().item()
    first = (answers != retrained[0]).double().mean().item()
    return reference.disagreement_in_spreads(answers, retrained) * first / all_of_them


EXERCISES: dict[str, Question] = {
    "left_of_update": Exercise(
        answer=reference.left_of_update,
        cases=_bowls,
        mistakes={
            "That is the part that the later task has *erased*. What is left is the update less "
            "that part.": lambda d, H, lr, k: d - reference.left_of_update(d, H, lr, k),
            "You take the diagonal of H. A bowl that lies askew mixes the weights: H @ delta, not "
            "H.diagonal() * delta.": (
                lambda d, H, lr, k: reference.left_of_update(d, H.diagonal().diag(), lr, k)
            ),
            "That is one single step. Each of the k steps multiplies by (I − ηH).": (
                lambda d, H, lr, k: reference.left_of_update(d, H, lr, min(k, 1))
            ),
            "That is I − kηH: one step that is k times as large. The power must be taken: "
            "(I − ηH)ᵏ.": lambda d, H, lr, k: d - k * lr * H @ d,
            "`**` takes the power of each entry of the matrix. Apply the matrix k times, or use "
            "`torch.linalg.matrix_power`.": (
                lambda d, H, lr, k: (torch.eye(len(d), dtype=d.dtype) - lr * H) ** k @ d
            ),
            "The sign is turned round: descent shrinks the difference, yours lets it grow.": (
                lambda d, H, lr, k: reference.left_of_update(d, -H, lr, k)
            ),
            "The step size is missing: (I − ηH), not (I − H).": (
                lambda d, H, lr, k: reference.left_of_update(d, H, 1.0, k)
            ),
        },
    ),
    "drop_task": Exercise(
        answer=reference.drop_task,
        cases=_springs,
        mistakes={
            "Where S′ = 0 you divide by zero. No spring is left there, so any anchor will do: "
            "return 0.": (lambda S, mu, F, theta: (S - F, (S * mu - F * theta) / (S - F))),
            "The stiffness is right, but the anchor is still the old one. It is a weighted mean "
            "of the θ_t, and one of them is gone.": _dropped(lambda S, mu, F, theta: mu),
            "You divide by the old S. The anchor is a mean with the weights of the *kept* tasks: "
            "divide by S′.": _dropped(lambda S, mu, F, theta: (S * mu - F * theta) / S),
            "Your anchor is μ − θ_t: not weighted by F, and not a mean.": (
                _dropped(lambda S, mu, F, theta: mu - theta)
            ),
            "You subtract F θ_t from μ itself. What adds up over the tasks is S μ, not μ.": (
                _dropped(lambda S, mu, F, theta: (mu - F * theta) / (S - F))
            ),
            "The task is added, not taken out: the signs of F are turned round.": (
                lambda S, mu, F, theta: (
                    S + F,
                    torch.where(S + F > 0, (S * mu + F * theta) / (S + F), 0),
                )
            ),
        },
    ),
    "disagreement_in_spreads": Exercise(
        answer=reference.disagreement_in_spreads,
        cases=_answers,
        mistakes={
            "The pairs of a network with itself are in your mean: they never disagree and make "
            "the spread too small. Take pairs of different networks.": _pairs_with_oneself,
            "You count agreement. Two networks are far apart where their classes *differ*.": (
                _agreement
            ),
            "That is the share of inputs, without a unit. Divide by how much two retrained "
            "networks disagree.": (
                lambda answers, retrained: (answers != retrained).double().mean().item()
            ),
            "You compare with the first retrained network only. It is as accidental as the "
            "others: take the mean over all of them.": _to_the_first,
            "The ratio is turned round: the network's disagreement belongs above the line.": (
                lambda answers, retrained: 1 / reference.disagreement_in_spreads(answers, retrained)
            ),
        },
    ),
    "task_membership": Prediction(
        why=(
            "About 0.35. The later tasks have erased a part of the update (section 3), and all of\n"
            "it is subtracted: more than is still there. So the network is worse on the forgotten\n"
            "task than on one that it never met, and the probability lies below one half."
        ),
        within=0.08,
        mistakes={
            "That is the network *before* the request.": lambda measured: 0.93,
            "Near one half is what a network says that never met the task. The subtracted one did, "
            "and more was taken from it than the later tasks had left.": lambda measured: 0.5,
        },
    ),
}
