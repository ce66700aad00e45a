"""Take the best λ apart: how much of it is the form of the matrix, how much the parabola itself.

    python -m experiments.best_lambda

Two permuted digit tasks. After A a network learns B with each curvature at each λ, from the same
weights and with the same batches, at a learning rate that falls to zero, so that it ends near the
lowest point of loss plus penalty. One network is small enough (64-32-10) for a penalty with its
whole Fisher matrix; the other is the course's (64-256-256-10). Both
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
from torch.func import functional_call, jacrev, jvp, vmap
from torch.nn import functional

from ewc_tutorial import EWC
from ewc_tutorial.course import mlp, permuted_tasks, tables, train
from ewc_tutorial.course.tasks import Task
from ewc_tutorial.course.training import accuracies, batches
from experiments import stored_rows

ROWS = tables.path("best_lambda")
KEY = ["network", "curvature", "lam", "seed"]
COLUMNS = [*KEY, "loss_b", "rise", "parabola", "own", "accuracy_a", "accuracy_b"]
LAMBDAS = [round(10 ** (e / 2), 3) for e in range(-4, 9)]
SMALL, LARGE = "64-32-10", "64-256-256-10"
NETWORKS, CURVATURES = (SMALL, LARGE), ("diagonal", "kronecker", "whole")
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
def after_a(network: str, seed: int) -> tuple[nn.Module, Task, Task]:
    """Return a network that has learned A, and both tasks."""
    A, B = permuted_tasks(2, seed=seed)
    n_in, *hidden, n_out = (int(width) for width in network.split("-"))
    model = mlp(n_in, hidden, n_out, seed=seed)
    train(model, A, epochs=20, lr=LR, batch_size=BATCH, generator=seed)
    return model, A, B


@lru_cache(1)
def eigenbasis(network: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of A's whole Fisher matrix, and their vectors."""
    model, A, _ = after_a(network, seed)
    return torch.linalg.eigh(whole_fisher(model, A.train.tensors[0]))


def by_parabola(model: nn.Module, x: Tensor, move: Tensor) -> float:
    """Return ½ vᵀFv with the whole Fisher matrix, without writing it down."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    parts = move.split([p.numel() for p in parameters.values()])
    step = {n: part.view_as(p) for (n, p), part in zip(parameters.items(), parts, strict=True)}
    z, Jv = jvp(lambda values: functional_call(model, values, (x,)), (parameters,), (step,))
    p = z.softmax(1)
    return 0.5 * ((p * Jv**2).sum(1) - (p * Jv).sum(1) ** 2).mean().item()


@torch.no_grad()
def loss(model: nn.Module, task: Task) -> float:
    x, y = task.train.tensors
    return functional.cross_entropy(model(x), y).item()


def run(network: str, curvature: str, lam: float, seed: int) -> dict[str, Any]:
    """Learn B once and return one row."""
    torch.set_num_threads(1)
    start, A, B = after_a(network, seed)
    model = copy.deepcopy(start)
    if curvature == "whole":
        penalty: Any = Whole(model, *eigenbasis(network, seed), lam)
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
    parabola = by_parabola(start, A.train.tensors[0], move)
    own = parabola if curvature == "whole" else penalty.penalty().item() / lam
    on_a, on_b = accuracies(model, [A.test.tensors, B.test.tensors])
    return dict(zip(KEY, (network, curvature, lam, seed), strict=True)) | {
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
        (network, curvature, lam, seed)
        for network, seed, curvature, lam in product(NETWORKS, SEEDS, CURVATURES, LAMBDAS)
        if curvature != "whole" or network == SMALL
    ]
    stored_rows.run_missing(ROWS, run, wanted, KEY, COLUMNS, arguments.workers)


if __name__ == "__main__":
    main()
