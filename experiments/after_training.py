"""λ after training: train on without a penalty and go back, beside EWC that trains with it.

    python -m experiments.after_training                      # add all rows that are missing
    python -m experiments.after_training digits-2 --seeds 0   # some of them
    python -m experiments.after_training --show               # print what the rows say

Setting: two permuted digit tasks in the course's protocol (64-256-256-10, 1,347 training images,
batches of 32, η = 0.2, ten epochs per task). Methods: ``plain``; ``line``, back along the straight
line to the weights before the second task; ``diagonal path`` and ``kronecker path``, back along
:meth:`EWC.path`; ``diagonal EWC`` and ``kronecker EWC``, proximal steps during training. λ and
damping are searched on the seeds from 100 on. A finished run is a row of the table
``after_training``; ``old`` is the accuracy on the first task, ``new`` that on the second.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ewc_tutorial import EWC
from ewc_tutorial.course import mlp, permuted_tasks, tables, train
from ewc_tutorial.course.tasks import Task
from ewc_tutorial.course.training import accuracies
from ewc_tutorial.randomness import as_generator
from experiments import stored_rows

ROWS = tables.path("after_training")
KEY = ["setting", "method", "damping", "lam", "seed"]
COLUMNS = [*KEY, "old", "new", "average_accuracy"]
SETTINGS = {"digits-2": 2}
LR, EPOCHS = 0.2, 10
SEARCH, REPORT = (100, 101, 102), range(5)
CURVATURES = {"line": "identity", "diagonal": "diagonal", "kronecker": "kronecker"}
METHODS = ("plain", "line", "diagonal path", "kronecker path", "diagonal EWC", "kronecker EWC")


def grid(method: str) -> Iterator[tuple[float, float]]:
    """Yield damping and λ of what is run."""

    def half_decades(low: float, high: float) -> list[float]:
        return [float(f"{10**power:.1g}") for power in np.arange(low, high + 0.1, 0.5)]

    way = method.rpartition(" ")[2]
    if method == "plain":
        yield 0.0, 0.0
    elif way == "EWC":
        yield from product([0.0], half_decades(0, 3.5))
    elif method == "line":
        yield from product([0.0], half_decades(-2, 2))
    else:
        yield from product([0.0, 0.01, 0.1, 1.0, 10.0], half_decades(-3, 3.5))


@lru_cache(maxsize=1)
def _plain(setting: str, seed: int) -> tuple[list[Task], list[nn.Module], Tensor]:
    """Return the tasks, the network after one and after both, and the batches' order in between."""
    tasks = permuted_tasks(SETTINGS[setting], seed=seed)
    model, order = mlp(64, [256, 256], 10, seed=seed), as_generator(seed)
    models, states = [], []
    for task in tasks:
        train(model, task, epochs=EPOCHS, lr=LR, generator=order)
        models.append(copy.deepcopy(model))
        states.append(order.get_state())
    return tasks, models, states[0]


def run(setting: str, method: str, damping: float, lam: float, seed: int) -> dict[str, Any]:
    """Learn the tasks once and return one row."""
    torch.set_num_threads(1)
    kind, _, way = method.partition(" ")
    tasks, (first, both), state = _plain(setting, seed)
    model, order = copy.deepcopy(first), torch.Generator()
    order.set_state(state)
    ewc = None if method == "plain" else EWC(model, lam, curvature=CURVATURES[kind])
    if ewc is not None:
        ewc.consolidate(tasks[0])
    try:
        if way == "EWC":
            train(model, tasks[1], epochs=EPOCHS, lr=LR, ewc=ewc, every=10, generator=order)
        else:  # the same for every λ
            model.load_state_dict(both.state_dict())
            if ewc is not None:
                ewc.path(ewc.measure(tasks[1]), damping).go_(lam)
        accuracy = accuracies(model, (task.test.tensors for task in tasks))
    except ValueError:  # it diverged
        accuracy = [0.1] * len(tasks)
    return dict(zip(KEY, (setting, method, damping, lam, seed), strict=True)) | {
        "old": round(float(np.mean(accuracy[:-1])), 4),
        "new": round(accuracy[-1], 4),
        "average_accuracy": round(float(np.mean(accuracy)), 4),
    }


def show(settings: list[str]) -> None:
    """Print the report of each method at its own λ and damping, and the differences, paired."""
    rows = pd.read_csv(ROWS)
    for setting in settings:
        found = {}
        mine = rows[rows.setting == setting]
        for method in (name for name in METHODS if (mine.method == name).any()):
            chosen = tables.reported(mine[mine.method == method], ["damping", "lam"])
            chosen = chosen.set_index("seed")
            found[method] = chosen.average_accuracy
            print(
                f"{setting} {method:14} damping {chosen.damping.iloc[0]:<5g} "
                f"λ {chosen.lam.iloc[0]:<6g} old {chosen.old.mean():.3f} new "
                f"{chosen.new.mean():.3f} average {chosen.average_accuracy.mean():.4f} ± "
                f"{chosen.average_accuracy.sem():.4f}"
            )
        for one, other in (
            ("diagonal path", "line"),
            ("kronecker path", "line"),
            ("kronecker path", "diagonal EWC"),
            ("kronecker path", "kronecker EWC"),
        ):
            gain = found[one] - found[other]
            print(f"{setting} {one} − {other}: {gain.mean():+.4f} ± {gain.sem():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[*SEARCH, *REPORT])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="run nothing")
    a = parser.parse_args()
    if not a.show:
        wanted = [
            (setting, method, *point, seed)
            for setting, seed, method in product(a.settings, a.seeds, METHODS)
            for point in grid(method)
        ]
        stored_rows.run_missing(ROWS, run, wanted, KEY, COLUMNS, a.workers)
    show(a.settings)


if __name__ == "__main__":
    main()
