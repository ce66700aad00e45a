"""Tasks whose losses really are parabolas, for notebook 06: linear regression on permuted digits.

The weights θ ``(P, K)`` map P pixels, one of them always 1, to K numbers, one per class, which
should be 1 for the image's class and 0 for all others. The loss ½ E‖θᵀx − y‖² has the curvature
H = E[x xᵀ] for each of the K columns, so its Fisher matrix is known, whole and as a diagonal, and
every minimum is a system of linear equations. A small ridge on H keeps white pixels determined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ewc_tutorial.course.tasks import Task

RIDGE = 1e-3


@dataclass(frozen=True)
class Parabola:
    """A loss ½ tr(θᵀHθ) − tr(θᵀC) + constant: curvature H ``(P, P)``, pull C ``(P, K)``."""

    H: Tensor
    C: Tensor

    @classmethod
    def of(cls, task: Task) -> Parabola:
        """Return the loss on a task's training data."""
        x, y = task.train.tensors
        x = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
        target = functional.one_hot(y).double()
        ridge = RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
        return cls(x.T @ x / len(x) + ridge, x.T @ target / len(x))

    def above_optimum(self, theta: Tensor) -> float:
        """Return by how much the loss at θ exceeds that of this task's own optimum."""
        gap = theta - torch.linalg.solve(self.H, self.C)
        return 0.5 * (gap * (self.H @ gap)).sum().item()


def joint_optimum(tasks: Sequence[Parabola]) -> Tensor:
    """Return the lowest point of the sum of all losses."""
    return torch.linalg.solve(sum(t.H for t in tasks), sum(t.C for t in tasks))


def learn(tasks: Sequence[Parabola], rule: str, *, whole: bool, lam: float = 1.0) -> Tensor:
    """Learn the tasks one after the other, each to the minimum of its loss plus the penalty.

    Args:
        tasks: in the order of learning.
        rule: ``"separate"`` or ``"latest"``.
        whole: keep the whole matrix H of each task, or its diagonal.
        lam: λ; all tasks count alike, so Bayes' value is 1.

    Returns:
        The weights after the last task.
    """
    if rule not in ("separate", "latest"):
        raise ValueError(f"rule must be separate or latest, not {rule!r}.")
    S, theta = torch.zeros_like(tasks[0].H), torch.zeros_like(tasks[0].C)
    pull = torch.zeros_like(theta)  # S μ
    for task in tasks:
        theta = torch.linalg.solve(task.H + lam * S, task.C + lam * pull)
        F = task.H if whole else torch.diag(task.H.diag())
        S = S + F
        pull = pull + F @ theta if rule == "separate" else S @ theta
    return theta


def costs(tasks: Sequence[Parabola], theta: Tensor) -> np.ndarray:
    """Return, per task, by how much its loss at θ exceeds its own minimum ``(T,)``."""
    return np.array([task.above_optimum(theta) for task in tasks])
