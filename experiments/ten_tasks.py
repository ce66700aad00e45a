"""Learn ten permuted digit tasks under the course's protocol, for figure B of notebook 04.

    python -m experiments.ten_tasks

Writes every accuracy matrix, five seeds for each method, to the table ``ten_tasks`` of
``ewc_tutorial.course.tables``: the accuracy on the task ``tested`` after the task ``learned``, both
counted from 1. EWC also runs with a network of twice the width, its learning rate and λ unchanged.
Takes a few minutes on two cores.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product

import pandas as pd
import torch

from ewc_tutorial.course import permuted_tasks, tables
from ewc_tutorial.course.protocol import METHODS, PROTOCOL

TABLE = tables.path("ten_tasks")
N_TASKS = 10
SEEDS = range(5)
WIDE = "EWC, 512 units"


def run(method: str, seed: int) -> pd.DataFrame:
    """Return the accuracy matrix of one run as rows."""
    torch.set_num_threads(1)
    tasks = permuted_tasks(N_TASKS, seed=seed)
    protocol = replace(PROTOCOL, hidden=(512, 512)) if method == WIDE else PROTOCOL
    R = protocol.run("EWC" if method == WIDE else method, tasks, seed, evaluations=1).accuracy
    index = pd.MultiIndex.from_product(
        [[method], [seed], range(1, N_TASKS + 1), range(1, N_TASKS + 1)],
        names=["method", "seed", "learned", "tested"],
    )
    return pd.DataFrame({"accuracy": R.ravel().round(4)}, index=index).reset_index()


def main() -> None:
    with ProcessPoolExecutor(2) as pool:
        parts = pool.map(run, *zip(*product((*METHODS, WIDE), SEEDS), strict=True))
        table = pd.concat(parts)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(TABLE, index=False, lineterminator="\n")
    last = table[table.learned == N_TASKS].groupby(["method", "seed"]).accuracy.mean()
    print(last.groupby("method").agg(["mean", "sem"]).round(3))


if __name__ == "__main__":
    main()
