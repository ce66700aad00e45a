"""Short runs of EWC, some of them with a bug, for the exercise of notebook 04 that looks for it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.tasks import permuted_tasks
from ewc_tutorial.course.training import accuracies, train
from ewc_tutorial.ewc import EWC

#: What is wrong in a run, by the number that the answer gives it.
BUGS = (
    "nothing is ever consolidated",
    "only task A is consolidated",
    "from task B on the learning rate is nearly zero",
    "all test images have the pixels of the task just learned",
)


def accuracy_matrix(seed: int, bug: int | None = None) -> Tensor:
    """Learn three permuted tasks with EWC, 90 steps each, and return the accuracies ``(3, 3)``.

    Args:
        seed: of the tasks, the initial weights and the order of the batches.
        bug: the number of one of :data:`BUGS`, or None for a right run.
    """
    sequence = permuted_tasks(3, seed=seed)
    model = mlp(64, (128,), 10, seed=seed)
    ewc, order = EWC(model, lam=30.0), torch.Generator().manual_seed(seed)
    R = []
    for number, task in enumerate(sequence):
        lr = 0.003 if bug == 2 and number else 0.3
        train(model, task, steps=90, lr=lr, ewc=ewc, generator=order)
        if bug != 0 and not (bug == 1 and number):
            ewc.consolidate(task, n_samples=200, generator=order)
        tested = [task] * 3 if bug == 3 else sequence
        R.append(accuracies(model, [other.test.tensors for other in tested]))
    return torch.tensor(R, dtype=torch.float64)


def three_runs(seed: int = 0, bug: int = 0) -> Tensor:
    """Return accuracy matrices ``(3, 3, 3)`` of three runs, one of which has the bug."""
    order = torch.randperm(3, generator=torch.Generator().manual_seed(10 * seed + bug))
    return torch.stack([_right(2 * seed), _right(2 * seed + 1), _wrong(seed, bug)])[order]


def _losses(R: Tensor) -> tuple[float, float]:
    """Return how much of A task B costs, and how much of B task C."""
    return float(R[0, 0] - R[1, 0]), float(R[1, 1] - R[2, 1])


@cache
def _right(number: int) -> Tensor:
    """Return one of the right runs in which no task loses more than 0.17 at a time."""
    for trial in range(1000 + 20 * number, 1020 + 20 * number):
        R = accuracy_matrix(trial)
        if max(_losses(R)) < 0.17:
            return R
    raise RuntimeError(f"no right run among twenty from seed {trial - 19} on keeps what it has.")


@cache
def _wrong(seed: int, bug: int) -> Tensor:
    """Return a run that shows its bug clearly: by more than 0.23 where it is one of forgetting."""
    for trial in range(50_000 + 80 * seed + 20 * bug, 50_020 + 80 * seed + 20 * bug):
        R = accuracy_matrix(trial, bug)
        if bug > 1 or (_losses(R)[bug] > 0.23 and (bug == 0 or _losses(R)[0] < 0.17)):
            return R
    raise RuntimeError(f"no run among twenty from seed {trial - 19} on shows bug {bug}.")
