"""Compare the diagonal with Kronecker factors on three and ten permuted digit tasks.

    python -m experiments.kronecker_digits              # add the rows that are missing
    python -m experiments.kronecker_digits --show       # print the means from the stored rows

The network and the budget are the course's protocol (64-256-256-10, batches of 32, 10 epochs per
task), with plain gradient descent at the rate 0.1 and the proximal step after each of its steps.
λ is searched on the seeds 100 and 101; the seeds 0 and 1 chose nothing. Every finished run is
appended to the table ``kronecker_digits``, so that it can be interrupted and extended.

Columns: ``average_accuracy`` on all tasks at the end; ``R`` the last row of the accuracy matrix.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import pandas as pd
import torch

from ewc_tutorial import EWC
from ewc_tutorial.course import learn, mlp, permuted_tasks, tables
from ewc_tutorial.course.protocol import PROTOCOL
from experiments import stored_rows

ROWS = tables.path("kronecker_digits")
KEY = ["curvature", "tasks", "lr", "lam", "seed"]
COLUMNS = [*KEY, "average_accuracy", "R"]
CURVATURES = ("diagonal", "kronecker")
SEARCH_SEEDS, REPORT_SEEDS = (100, 101), (0, 1)
LR = 0.1


def run(curvature: str, tasks: int, lr: float, lam: float, seed: int) -> dict[str, Any]:
    """Learn the tasks once and return one row."""
    torch.set_num_threads(1)
    data = permuted_tasks(tasks, seed=seed)
    model = mlp(64, PROTOCOL.hidden, 10, seed=seed)
    ewc = EWC(model, lam, curvature=curvature)
    budget = {"lr": lr, "epochs": PROTOCOL.epochs, "batch_size": PROTOCOL.batch_size}
    last = learn(model, data, ewc, evaluations=1, seed=seed, **budget).accuracy[-1]
    return dict(zip(KEY, (curvature, tasks, lr, lam, seed), strict=True)) | {
        "average_accuracy": round(last.mean(), 4),
        "R": " ".join(f"{value:.3f}" for value in last),
    }


def show() -> None:
    """Print mean accuracies of the search and of the report."""
    rows = pd.read_csv(ROWS)
    rows["seeds"] = rows.seed.map(lambda seed: "report" if seed in REPORT_SEEDS else "search")
    keys = ["tasks", "curvature", "lr", "lam"]
    print(rows.pivot_table(index=keys, columns="seeds", values="average_accuracy").round(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--lam", type=float, nargs="+", default=[30.0, 100.0, 300.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[*SEARCH_SEEDS, *REPORT_SEEDS])
    parser.add_argument("--curvatures", nargs="+", default=[*CURVATURES], choices=CURVATURES)
    parser.add_argument("--lr", type=float, nargs="+", default=[LR])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.show:
        wanted = product(
            arguments.curvatures, arguments.tasks, arguments.lr, arguments.lam, arguments.seeds
        )
        stored_rows.run_missing(ROWS, run, wanted, KEY, COLUMNS, arguments.workers)
    show()


if __name__ == "__main__":
    main()
