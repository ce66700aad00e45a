"""Forget one of five permuted digit tasks, and compare with never having met it (notebook 11).

    python -m experiments.unlearning            # add the rows that are missing: about ten minutes
    python -m experiments.unlearning show       # print the means of the stored rows

For every seed, method and position of the forgotten task there is a row for each of these networks:

    learned         all five tasks
    subtracted      … less the forgotten task's update
    pulled          … then 200 steps of EWC's penalty alone, later anchors as they were
    pulled shifted  … the same with the later anchors shifted
    repaired        subtracted, then one epoch on the data of the kept tasks
    from scratch    the untrained network, then the same epoch
    retrained       never met the task: same initial weights and batches (what all are compared to)
    other batches   never met the task, same initial weights, other batches
    other weights   never met the task, other initial weights and batches

Rows are appended to the table ``unlearning`` as they are finished, so the run can be
interrupted.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import nn

from ewc_tutorial.course import tables
from ewc_tutorial.course.protocol import PROTOCOL
from ewc_tutorial.course.study import METHODS, Study, compare, pull, relearn, repair
from ewc_tutorial.unlearning import TaskMemory
from experiments import stored_rows

ROWS = tables.path("unlearning")
N_TASKS = 5
SEEDS = range(5)
PULLS = 200
RELEARN_STEPS = (10, 40)
KEY = ["method", "seed", "position"]


def networks(study: Study, memory: TaskMemory, position: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks to compare; the first is the retrained one."""
    kept = [task for number, task in enumerate(study.tasks) if number != position]
    name = study.tasks[position].name
    yield "retrained", study.learn(without=position).ewc.model
    yield "other batches", study.learn(without=position, order=1).ewc.model
    yield "other weights", study.learn(without=position, order=1, init=1000 + study.seed).ewc.model
    yield "learned", memory.ewc.model
    for shift in (True, False):
        after = copy.deepcopy(memory)
        after.forget(name, shift_anchors=shift)
        if shift:
            yield "subtracted", after.ewc.model
            yield "repaired", repair(after.ewc.model, kept)
        if study.method == "EWC":
            yield "pulled shifted" if shift else "pulled", pull(after, PULLS)
    yield "from scratch", repair(PROTOCOL.model(study.tasks, study.seed), kept)


def rows(study: Study, memory: TaskMemory, position: int) -> list[dict[str, Any]]:
    """Return one row per network."""
    found = []
    for name, model in networks(study, memory, position):
        if name == "retrained":
            gold = model
        row = {"method": study.method, "seed": study.seed, "position": position + 1}
        row |= {"network": name, **compare(model, gold, study.tasks, position)}
        again = relearn(model, study.tasks[position], RELEARN_STEPS)
        row |= {f"relearned_{k}": a for k, a in zip(RELEARN_STEPS, again, strict=True)}
        found.append({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    return found


def run() -> None:
    torch.set_num_threads(1)
    done = set()
    if ROWS.exists():
        done = set(pd.read_csv(ROWS)[KEY].itertuples(index=False, name=None))
    for seed in SEEDS:
        for method in METHODS:
            missing = [p for p in range(N_TASKS) if (method, seed, p + 1) not in done]
            if not missing:
                continue
            study = Study(N_TASKS, seed, method)
            memory = study.learn()
            for position in missing:
                stored_rows.append(ROWS, rows(study, memory, position))
                print(method, seed, position + 1, flush=True)


def show() -> None:
    table = pd.read_csv(ROWS).drop(columns="seed")
    means = table.groupby(["method", "position", "network"], sort=False).mean()
    print(means.round(3).to_string())


if __name__ == "__main__":
    show() if sys.argv[1:] == ["show"] else run()
