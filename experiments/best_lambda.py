"""Take the best λ apart: how much of it is the form of the matrix, how much the parabola itself.

    python -m experiments.best_lambda

Two permuted digit tasks, a network small enough (64-32-10) for its whole Fisher matrix. After A it
learns B with each curvature at each λ, from the same weights and with the same batches, at a
learning rate that falls to zero, so that it ends near the lowest point of loss plus penalty. Both
tasks have as many images, so Bayes' rule says λ = 1: the lowest point of L_A + L_B is wanted.
Written down is L_B there, and twice what A lost: by its true loss, and by the parabola of its whole
Fisher matrix. For a world in which A's loss *is* that parabola, the best λ of the whole matrix is 1
by definition, and what the best λ of another form is above 1 is owed to the form alone. With the
true loss, what the best λ of the whole matrix is above 1 is owed to the parabola alone.

Columns: ``loss_b``; ``rise`` of A's true loss over its value before B, ``parabola`` the same by the
whole Fisher matrix, ``own`` by the curvature itself; accuracies on test images.
"""

from __future__ import annotations

import argparse
import copy
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional

from ewc_tutorial import EWC
from ewc_tutorial.course import mlp, permuted_tasks, tables, train
from ewc_tutorial.course.tasks import Task
from ewc_tutorial.course.training import accuracies, batches
from experiments import stored_rows

ROWS = tables.path("best_lambda")
KEY = ["curvature", "lam", "seed"]
COLUMNS = [*KEY, "loss_b", "rise", "parabola", "own", "accuracy_a", "accuracy_b"]
LAMBDAS = [round(10 ** (e / 2), 3) for e in range(-4, 9)]
SEEDS = range(3)
EPOCHS, LR, BATCH = 20, 0.1, 32


class Whole:
    """The penalty with the whole Fisher matrix, and its proximal step in the eigenbasis."""

    def __init__(self, model: nn.Module, s: Tensor, U: Tensor, lam: float) -> None:
        self._parameters, self._lam = list(model.parameters()), lam
        self._anchor, self._s, self._U = flat(model), s, U

    def proximal_step_(self, lr: float) -> None:
        offset = self._U.T @ (flat_of(self._parameters) - self._anchor)
        moved = self._anchor + self._U @ (offset / (1 + lr * self._lam * self._s.clamp(min=0)))
        nn.utils.vector_to_parameters(moved, self._parameters)


def flat_of(parameters: list[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def flat(model: nn.Module) -> Tensor:
    return flat_of(list(model.parameters()))


def whole_fisher(model: nn.Module, x: Tensor) -> Tensor:
    """Return E[Jᵀ (diag(p) − ppᵀ) J] over the samples, (P, P)."""
    parameters = dict(model.named_parameters())

    def logits(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, values, (one[None],))[0]

    total = torch.zeros(len(flat(model)), len(flat(model)))
    for part in x.split(64):
        J = vmap(jacrev(logits), (None, 0))(parameters, part)
        J = torch.cat([j.flatten(2) for j in J.values()], 2).detach()
        p = model(part).softmax(1).detach()
        mean = (p[:, :, None] * J).sum(1, keepdim=True)
        rows = (p[:, :, None].sqrt() * (J - mean)).flatten(0, 1)
        total += rows.T @ rows
    return total / len(x)


@lru_cache(1)
def after_a(seed: int) -> tuple[nn.Module, Task, Task, Tensor, Tensor, Tensor]:
    """Return a network that has learned A, both tasks, and A's Fisher matrix and its eigenbasis."""
    A, B = permuted_tasks(2, seed=seed)
    model = mlp(A.in_features, [32], 10, seed=seed)
    train(model, A, epochs=20, lr=LR, batch_size=BATCH, generator=seed)
    fisher = whole_fisher(model, A.train.tensors[0])
    return model, A, B, fisher, *torch.linalg.eigh(fisher)


@torch.no_grad()
def loss(model: nn.Module, task: Task) -> float:
    x, y = task.train.tensors
    return functional.cross_entropy(model(x), y).item()


def run(curvature: str, lam: float, seed: int) -> dict[str, Any]:
    """Learn B once and return one row."""
    torch.set_num_threads(1)
    start, A, B, fisher, s, U = after_a(seed)
    model = copy.deepcopy(start)
    if curvature == "whole":
        penalty: Any = Whole(model, s, U, lam)
    else:
        penalty = EWC(model, lam, curvature=curvature)
        penalty.consolidate(A)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    x, y = B.train.tensors
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    stream = batches(len(x), BATCH, 1000 + seed)
    for _ in range(steps):
        rows = next(stream)
        optimizer.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        penalty.proximal_step_(optimizer.param_groups[0]["lr"])
        schedule.step()
    move = flat(model) - flat(start)
    parabola = 0.5 * (move @ fisher @ move).item()
    own = parabola if curvature == "whole" else penalty.penalty().item() / lam
    on_a, on_b = accuracies(model, [A.test.tensors, B.test.tensors])
    return dict(zip(KEY, (curvature, lam, seed), strict=True)) | {
        "loss_b": round(loss(model, B), 5),
        "rise": round(loss(model, A) - loss(start, A), 5),
        "parabola": round(parabola, 5),
        "own": round(own, 5),
        "accuracy_a": round(on_a, 4),
        "accuracy_b": round(on_b, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    wanted = [
        (curvature, lam, seed)
        for seed, curvature, lam in product(SEEDS, ("diagonal", "kronecker", "whole"), LAMBDAS)
    ]
    stored_rows.run_missing(ROWS, run, wanted, KEY, COLUMNS, arguments.workers)


if __name__ == "__main__":
    main()
