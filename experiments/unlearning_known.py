"""Does a network's loss tell a forgotten task from one that it never met? For notebook 11.

    python -m experiments.unlearning_known

The networks are those of ``unlearning``, with EWC: for every seed and position of the forgotten
task a row for each of ``learned``, ``subtracted``, ``repaired``, ``retrained`` and
``other weights``. ``known`` is the probability that a test image of the forgotten task has a lower
loss than one of a task that nobody has met, ``forgotten`` the accuracy on the forgotten task, the
same as in the table ``unlearning``. Rows are appended to the table ``unlearning_known``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import pandas as pd
import torch
from torch import nn

from ewc_tutorial.course import tables
from ewc_tutorial.course.study import Study, known, repair
from ewc_tutorial.course.training import accuracies
from ewc_tutorial.unlearning import TaskMemory
from experiments import stored_rows
from experiments.unlearning import N_TASKS, SEEDS

TABLE = tables.path("unlearning_known")
COLUMNS = ["seed", "position", "network", "forgotten", "known"]


def networks(study: Study, memory: TaskMemory, position: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks to ask."""
    after = copy.deepcopy(memory)
    after.forget(study.tasks[position].name)
    kept = [task for number, task in enumerate(study.tasks) if number != position]
    yield "learned", memory.ewc.model
    yield "subtracted", after.ewc.model
    yield "repaired", repair(after.ewc.model, kept)
    yield "retrained", study.learn(without=position).ewc.model
    yield "other weights", study.learn(without=position, order=1, init=1000 + study.seed).ewc.model


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    done = set()
    if TABLE.exists():
        done = set(pd.read_csv(TABLE)[COLUMNS[:2]].itertuples(index=False, name=None))
    for seed in SEEDS:
        study, memory = Study(N_TASKS, seed), None
        for position, task in enumerate(study.tasks):
            if (seed, position + 1) in done:
                continue
            memory = memory or study.learn()
            rows = []
            for name, model in networks(study, memory, position):
                (right,) = accuracies(model, [task.test.tensors])
                values = (seed, position + 1, name, round(right, 5))
                rows.append((*values, round(known(model, task, study.unseen), 5)))
            stored_rows.append(TABLE, [dict(zip(COLUMNS, row, strict=True)) for row in rows])
            print(*rows, sep="\n", flush=True)


if __name__ == "__main__":
    main()
