"""Compare curvatures on permuted tasks: digits and MNIST, three tasks to fifty.

    python -m experiments.curvatures digits-3 --curvatures diagonal kronecker --lr 0.2 0.4 \\
        --lam 100 300 --seeds 100 101        # add the rows that are missing
    python -m experiments.curvatures --show  # print the means from the stored rows

Settings: ``digits-3`` and ``digits-10`` are the course's protocol (64-256-256-10, 1,347 training
images, batches of 32); ``mnist-10`` and ``mnist-50`` have 784-400-400-10 and batches of 128.
Training is plain gradient descent with the proximal step; the factors and the diagonal are exact
expectations over the classes, on all images of digits and on 5,000 of MNIST. λ, learning rate,
epochs and width are searched on the seeds from 100 on; those below 100 chose nothing. A seed draws
the split, the permutations, the weights and the batches, the same for every curvature. Every
finished run is appended to the table ``curvatures``, so that it can be interrupted and extended.

Columns: ``average_accuracy`` on all tasks at the end, ``first`` on the first of them; ``over_time``
the mean over time of the average accuracy on the tasks learned so far; ``R`` the last row of the
accuracy matrix; ``so_far`` that average after each evaluation (every fifth task of fifty).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import TensorDataset

from ewc_tutorial import EWC
from ewc_tutorial.course import mlp, permuted_tasks, tables, train
from ewc_tutorial.course.tasks import Task, joined
from ewc_tutorial.course.training import accuracies
from ewc_tutorial.randomness import as_generator
from experiments import stored_rows

ROWS = tables.path("curvatures")
KEY = ["setting", "curvature", "width", "epochs", "lr", "lam", "every", "seed"]
COLUMNS = [*KEY, "average_accuracy", "first", "over_time", "R", "so_far"]
CURVATURES = ("plain", "identity", "diagonal", "kronecker", "joint")


@dataclass(frozen=True)
class Setting:
    """Tasks and what does not depend on the curvature."""

    dataset: str
    n_tasks: int
    width: int
    batch_size: int
    fisher_samples: int | None
    evaluate_every: int = 1


SETTINGS = {
    "digits-3": Setting("digits", 3, 256, 32, None),
    "digits-10": Setting("digits", 10, 256, 32, None),
    "mnist-10": Setting("mnist", 10, 400, 128, 5000),
    "mnist-50": Setting("mnist", 50, 400, 128, 5000, evaluate_every=5),
}


def run(
    setting: str,
    curvature: str,
    width: int,
    epochs: int,
    lr: float,
    lam: float,
    every: int,
    seed: int,
) -> dict[str, Any]:
    """Learn the tasks once and return one row."""
    torch.set_num_threads(1)
    s = SETTINGS[setting]
    views = list(_orders(s, seed))
    (images,) = permuted_tasks(1, s.dataset, seed=seed)
    model = mlp(images.in_features, [width, width], 10, seed=seed)
    ewc = EWC(model, lam, curvature=curvature) if curvature not in ("plain", "joint") else None
    order, labels = as_generator(seed), as_generator(seed)
    so_far: list[float] = []
    accuracy: list[float] = []
    steps = epochs * (len(images.train) // s.batch_size)
    for index, view in enumerate(views):
        task = _seen(images, view)
        data = task
        if curvature == "joint":
            earlier = [_seen(images, v) for v in views[: index + 1]]
            data = TensorDataset(*joined(earlier, "train"))
        try:
            train(model, data, steps=steps, lr=lr, batch_size=s.batch_size, ewc=ewc, every=every,
                  generator=order)  # fmt: skip
        except ValueError:  # it diverged
            accuracy = [0.1] * s.n_tasks
            so_far.append(0.1)
            break
        if ewc is not None:
            ewc.consolidate(task, n_samples=s.fisher_samples, generator=labels)
        if (index + 1) % s.evaluate_every == 0:
            tests = (_seen(images, v, "test").test.tensors for v in views[: index + 1])
            accuracy = accuracies(model, tests)
            so_far.append(float(np.mean(accuracy)))
    return dict(
        zip(KEY, (setting, curvature, width, epochs, lr, lam, every, seed), strict=True)
    ) | {
        "average_accuracy": round(float(np.mean(accuracy)), 4),
        "first": round(accuracy[0], 4),
        "over_time": round(float(np.mean(so_far)), 4),
        "R": " ".join(f"{value:.4f}" for value in accuracy),
        "so_far": " ".join(f"{value:.4f}" for value in so_far),
    }


def _orders(setting: Setting, seed: int) -> Iterator[torch.Tensor]:
    """Yield the order of pixels of each task, as ``permuted_tasks`` draws them."""
    side = {"digits": 8, "mnist": 28}[setting.dataset]
    generator = as_generator(seed)
    yield torch.arange(side * side)
    for _ in range(setting.n_tasks - 1):
        yield torch.randperm(side * side, generator=generator)


def _seen(images: Task, order: torch.Tensor, part: str = "train") -> Task:
    """Return the task that shows the images in this order; fifty at once would fill the memory."""
    parts = {"train": images.train, "test": images.test}
    x, y = parts[part].tensors
    parts[part] = TensorDataset(x[:, order], y)
    return Task(images.name, parts["train"], parts["test"], images.classes)


def show(settings: list[str]) -> None:
    """Print mean accuracies of the search and of the report."""
    rows = pd.read_csv(ROWS)
    rows = rows[rows.setting.isin(settings)]
    rows["seeds"] = np.where(rows.seed < 100, "report", "search")
    table = rows.pivot_table(
        index=KEY[:-1], columns="seeds", values="average_accuracy", aggfunc=["mean", "sem", "count"]
    )
    with pd.option_context("display.max_rows", None, "display.width", 150):
        print(table.round(4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--curvatures", nargs="+", default=[], choices=CURVATURES)
    parser.add_argument("--width", type=int, nargs="+", default=[0], help="0: the setting's own")
    parser.add_argument("--epochs", type=int, nargs="+", default=[10])
    parser.add_argument("--lr", type=float, nargs="+", default=[0.1])
    parser.add_argument("--lam", type=float, nargs="+", default=[0.0])
    parser.add_argument("--every", type=int, nargs="+", default=[10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="run nothing")
    a = parser.parse_args()
    if not a.show:
        wanted = [
            (name, curvature, width or SETTINGS[name].width, *rest)
            for name, curvature, width, *rest in product(
                a.settings, a.curvatures, a.width, a.epochs, a.lr, a.lam, a.every, a.seeds
            )
        ]
        stored_rows.run_missing(ROWS, run, wanted, KEY, COLUMNS, a.workers)
    show(a.settings)


if __name__ == "__main__":
    main()
