"""Find the course's default protocol: networks, budgets, learning rates and λ, per method.

    python -m experiments.protocol_search search     # add the rows that are missing
    python -m experiments.protocol_search report     # the chosen settings on five other seeds
    python -m experiments.protocol_search show       # print the tables from the stored rows

Three permuted digit tasks are learned one after the other. A *setting* is a network and a budget
(epochs per task); within one, every method gets the learning rate and the λ that suit it best on
the search seeds. Rows are appended to the table ``protocol_search`` as they are finished, so
that the search can be interrupted and extended. What is reported comes from seeds that chose
nothing.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch

from ewc_tutorial import EWC, L2
from ewc_tutorial.course import learn, mlp, permuted_tasks, tables
from experiments import stored_rows

ROWS = tables.path("protocol_search")
SETTING = ["hidden", "batch_size", "epochs"]
KEY = ["method", *SETTING, "lr", "lam", "seed"]
COLUMNS = [*KEY, "average_accuracy", "after_first", "first_at_end", "learned", "R"]

SEARCH_SEEDS = (100, 101, 102)
TIE = 0.01
ENOUGH = 0.02
REPORT_SEEDS = (0, 1, 2, 3, 4)
N_TASKS = 3
HIDDEN = ("100-100", "256-256", "512-512")
BATCH_SIZE = (32, 64)
EPOCHS = (10, 20, 40)
# The grids, in half decades. The search starts in the middle and goes on around the best cell of
# each method until the best one's neighbours are all known.
LR = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
LAM = {
    "plain": (0.0,),
    "joint": (0.0,),
    "L2": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "EWC": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0),
}
START_LR = (0.1, 0.2)
START_LAM = {"plain": (0.0,), "joint": (0.0,), "L2": (0.03, 0.1), "EWC": (100.0, 300.0)}
METHODS = tuple(LAM)


def run(
    method: str, hidden: str, batch_size: int, epochs: int, lr: float, lam: float, seed: int
) -> dict:
    """Learn the three tasks once and return one row."""
    torch.set_num_threads(1)
    tasks = permuted_tasks(N_TASKS, seed=seed)
    model = mlp(64, [int(width) for width in hidden.split("-")], 10, seed=seed)
    penalty = {"L2": L2, "EWC": EWC}.get(method)
    row = dict(zip(KEY, (method, hidden, batch_size, epochs, lr, lam, seed), strict=True))
    try:
        history = learn(
            model,
            tasks,
            penalty(model, lam) if penalty else None,
            joint=method == "joint",
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            evaluations=1,
            seed=seed,
        )
    except ValueError as diverged:
        return row | {"R": str(diverged)}
    R = history.accuracy
    return row | {
        "average_accuracy": round(R[-1].mean(), 5),
        "after_first": round(R[0, 0], 5),
        "first_at_end": round(R[-1, 0], 5),
        "learned": round(np.diag(R).mean(), 5),
        "R": " ".join(f"{value:.5f}" for value in R.ravel()),
    }


def stored() -> pd.DataFrame:
    """Return the rows found so far."""
    return stored_rows.read(ROWS, COLUMNS)


def run_missing(wanted: Iterable[tuple], workers: int) -> int:
    """Run what is wanted and not stored yet, and count it."""
    return stored_rows.run_missing(ROWS, run, wanted, KEY, COLUMNS, workers)


def around(grid: tuple[float, ...], value: float) -> tuple[float, ...]:
    """Return the value with its neighbours on the grid."""
    at = grid.index(value)
    return grid[max(0, at - 1) : at + 2]


def setting_of(row: Any) -> tuple[str, int, int]:
    """Return the network and the budget of a row."""
    return row.hidden, row.batch_size, row.epochs


def best(rows: pd.DataFrame) -> pd.DataFrame:
    """Return per setting and method the learning rate and λ that suit it best on search seeds.

    Among cells within TIE of the best mean, which three seeds cannot tell apart, the gentlest: the
    smallest learning rate, then the smallest λ.
    """
    search = rows[rows.seed.isin(SEARCH_SEEDS)]
    # A cell of the grid counts once all its seeds are there; a run that diverged has no number.
    means = search.groupby([*SETTING, "method", "lr", "lam"]).agg(
        seeds=("average_accuracy", "count"),
        average_accuracy=("average_accuracy", "mean"),
        after_first=("after_first", "mean"),
        learned=("learned", "mean"),
    )
    means = means[means.seeds == len(SEARCH_SEEDS)].reset_index()
    groups = means.groupby([*SETTING, "method"]).average_accuracy
    means = means[means.average_accuracy >= groups.transform("max") - TIE]
    # The rows are sorted by learning rate and λ.
    return means.groupby([*SETTING, "method"], as_index=False).first().drop(columns="seeds")


def choose(table: pd.DataFrame) -> tuple[str, int, int]:
    """Return the setting to use: the cheapest in which EWC is within ENOUGH of its best.

    Cheapest means fewest passes through the data, then the smallest network. Networks and budgets
    are the same for all methods; this decides how much of EWC's best a notebook's seconds buy.
    """
    ewc = table[table.method == "EWC"]
    ewc = ewc[ewc.average_accuracy >= ewc.average_accuracy.max() - ENOUGH]
    cost = {
        setting_of(row): (row.epochs, int(row.hidden.split("-")[0])) for row in ewc.itertuples()
    }
    return min(cost, key=cost.get)


def show(rows: pd.DataFrame) -> None:
    """Print the best of every method in every setting, and the report of the report seeds."""
    table = best(rows)
    table["setting"] = [
        f"{row.average_accuracy:.3f} (lr {row.lr:g}, λ {row.lam:g})" for row in table.itertuples()
    ]
    print("Mean over the search seeds, each method at its best learning rate and λ:")
    print(table.pivot(index=SETTING, columns="method", values="setting").to_string())
    print("\nChosen: hidden {}, batch size {}, epochs {}".format(*choose(table)))
    report = rows[rows.seed.isin(REPORT_SEEDS)]
    if len(report):
        grouped = report.groupby([*SETTING, "method", "lr", "lam"]).average_accuracy
        summary = grouped.agg(["mean", "sem", "count"]).round(3)
        print("\nReport seeds: average accuracy, mean and standard error:")
        print(summary.to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("search", "report", "show"))
    parser.add_argument("--hidden", nargs="*", default=HIDDEN)
    parser.add_argument("--batch-size", nargs="*", type=int, default=BATCH_SIZE)
    parser.add_argument("--epochs", nargs="*", type=int, default=EPOCHS)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    settings = list(itertools.product(arguments.hidden, arguments.batch_size, arguments.epochs))
    if arguments.what == "search":
        wanted = [
            (method, *setting, lr, lam, seed)
            for setting in settings
            for seed in SEARCH_SEEDS
            for lr in START_LR
            for method in METHODS
            for lam in START_LAM[method]
        ]
        while run_missing(wanted, arguments.workers):
            wanted = [
                (row.method, *setting_of(row), lr, lam, seed)
                for row in best(stored()).itertuples()
                if setting_of(row) in settings
                for lr in around(LR, row.lr)
                for lam in around(LAM[row.method], row.lam)
                for seed in SEARCH_SEEDS
            ]
    elif arguments.what == "report":
        chosen = best(stored())
        wanted = [
            (row.method, *setting_of(row), row.lr, row.lam, seed)
            for row in chosen.itertuples()
            if setting_of(row) in settings
            for seed in REPORT_SEEDS
        ]
        run_missing(wanted, arguments.workers)
    show(stored())


if __name__ == "__main__":
    main()
