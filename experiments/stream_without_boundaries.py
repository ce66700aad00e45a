"""Learn ten permuted digit tasks from a stream that hides where a task ends, for notebook 06.

    python -m experiments.stream_without_boundaries          # add the rows that are missing
    python -m experiments.stream_without_boundaries --show   # print what the rows say

The stream is that of ``many_tasks.py``: ten tasks of 420 batches, one after the other, and the
rows there with the setting ``base`` are those that know the boundaries and measure the Fisher
information at the end of each task, on all its images. Here it is measured every 150 steps,
whatever is going on, on the last 42 batches, which is about as many images. 150 does not divide
420: most measurements fall into the middle of a task, some on the images of two.

γ of the rule ``online`` is given per task: between two measurements it is γ^(150/420). Its λ is the
best of the half decades on the seeds 100 and 101 (of those within 0.01 the smallest); reported are
the seeds 0 to 4. All of it takes about five minutes on an idle core.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from ewc_tutorial import EWC
from ewc_tutorial.course import permuted_tasks, tables
from ewc_tutorial.course.protocol import PROTOCOL
from ewc_tutorial.course.tasks import Task
from ewc_tutorial.course.training import accuracies, batches, count_steps
from experiments import stored_rows
from experiments.many_tasks import N_TASKS, REPORT_SEEDS, TIE, neighbours

ROWS = tables.path("stream_without_boundaries")
KEY = ["rule", "gamma", "lam", "seed"]
COLUMNS = [*KEY, "average_accuracy", "R"]
SEARCH_SEEDS = (100, 101)
LR = PROTOCOL.settings["EWC"].lr
#: Steps of a task, steps between two measurements, and batches that each is made on.
STEPS, EVERY, REMEMBERED = 420, 150, 42
#: Rule and γ per task. Rules whose importance is a sum grow with every measurement.
CELLS = [("online", 0.5)]
#: Where the search for λ begins: there are 2.8 measurements where ``many_tasks`` has one.
START = 10.0


def stream(tasks: list[Task], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one task after the other, as ``learn`` draws them."""
    order = torch.Generator().manual_seed(seed)
    for task in tasks:
        x, y = task.train.tensors
        steps = count_steps(len(x), PROTOCOL.batch_size, PROTOCOL.epochs, None)
        if steps != STEPS:
            raise ValueError(f"a task must have {STEPS} steps, not {steps}.")
        for rows in islice(batches(len(x), PROTOCOL.batch_size, order), steps):
            yield x[rows], y[rows]


def run(rule: str, gamma: float, lam: float, seed: int) -> dict[str, Any]:
    """Go once through the stream and return one row."""
    torch.set_num_threads(1)
    tasks = permuted_tasks(N_TASKS, seed=seed)
    tests = [task.test.tensors for task in tasks]
    model = PROTOCOL.model(tasks, seed)
    ewc = EWC(model, lam, rule=rule, gamma=gamma ** (EVERY / STEPS))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    memory: deque[tuple[Tensor, Tensor]] = deque(maxlen=REMEMBERED)
    handle, R = ewc.attach(optimizer), []
    for step, (x, y) in enumerate(stream(tasks, seed), start=1):
        memory.append((x, y))
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % EVERY == 0:
            handle.remove()
            ewc.consolidate(tuple(torch.cat(parts) for parts in zip(*memory, strict=True)))
            handle = ewc.attach(optimizer)
        if step % STEPS == 0:
            R.append(accuracies(model, tests))
    handle.remove()
    key = dict(zip(KEY, (rule, gamma, lam, seed), strict=True))
    return key | {
        "average_accuracy": round(sum(R[-1]) / N_TASKS, 4),
        "R": " ".join(f"{value:.3f}" for row in R for value in row),
    }


def stored() -> pd.DataFrame:
    """Return the rows found so far."""
    return stored_rows.read(ROWS, COLUMNS)


def best(rows: pd.DataFrame, cell: tuple, tie: float = TIE) -> float:
    """Return the smallest λ of a cell within ``tie`` of the best on the search seeds."""
    mine = rows[(rows[KEY[:2]] == list(cell)).all(axis=1) & rows.seed.isin(SEARCH_SEEDS)]
    means = mine.groupby("lam").average_accuracy.mean()
    return float(means.index[means >= means.max() - tie].min())


def fill(cell: tuple, workers: int) -> None:
    """Search λ until the neighbours of the best one are known, then run the report seeds."""

    def run_missing(lambdas: Iterable[float], seeds: tuple[int, ...]) -> int:
        jobs = [(*cell, lam, seed) for lam in lambdas for seed in seeds]
        return stored_rows.run_missing(ROWS, run, jobs, KEY, COLUMNS, workers)

    run_missing([START], SEARCH_SEEDS)
    while run_missing(
        [lam for tie in (TIE, 0.0) for lam in neighbours(best(stored(), cell, tie))], SEARCH_SEEDS
    ):
        pass
    run_missing([best(stored(), cell)], REPORT_SEEDS)


def show(rows: pd.DataFrame) -> None:
    """Print what each cell reached on the report seeds at its λ."""
    report = rows[rows.seed.isin(REPORT_SEEDS)]
    summary = report.groupby(KEY[:3]).average_accuracy.agg(["mean", "sem", "count"])
    print(summary.round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    for cell in [] if arguments.show else CELLS:
        print(*cell, flush=True)
        fill(cell, arguments.workers)
    show(stored())


if __name__ == "__main__":
    main()
