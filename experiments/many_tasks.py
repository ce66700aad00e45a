"""Compare the rules for many tasks on ten permuted digit tasks, for notebook 06.

    python -m experiments.many_tasks                    # add the rows that are missing
    python -m experiments.many_tasks --only base        # of one setting
    python -m experiments.many_tasks --show             # print the tables from the stored rows

A *setting* is a network, an optimizer and a budget; ``base`` is the course's protocol, the others
change one thing. In each, every rule (and every γ) gets the λ that suits it best: half decades are
searched around the best one on the seeds 100 to 102 until its neighbours are known; of λ whose
means differ by less than 0.01 it is the smallest, as everywhere in the course. What is reported are
the seeds 0 to 4, which chose nothing. Every finished run is appended to
the table ``many_tasks``, so that it can be interrupted and extended; all of it takes about
an hour on one core.

Columns: ``average_accuracy`` on the ten tasks at the end; ``at_anchor`` the same of a network
whose weights are the anchor μ; ``R`` the accuracy matrix, rows one after the other; ``free`` the
share of free parameters (``metrics.share_free``) per layer, input to output, after each task.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.course import learn, mlp, permuted_tasks, tables
from ewc_tutorial.course.metrics import share_free
from ewc_tutorial.course.protocol import PROTOCOL
from ewc_tutorial.course.training import accuracies, count_steps
from experiments import stored_rows

ROWS = tables.path("many_tasks")
KEY = ["setting", "rule", "gamma", "lam", "seed"]
COLUMNS = [*KEY, "average_accuracy", "at_anchor", "R", "free"]
N_TASKS = 10
SEARCH_SEEDS = (100, 101, 102)
#: What so few seeds cannot tell apart; see ``protocol_search.py``.
TIE = 0.01
REPORT_SEEDS = (0, 1, 2, 3, 4)
#: Half decades.
GRID = tuple(
    float(f"{mantissa}e{exponent}") for exponent in range(-1, 8) for mantissa in ("1", "3")
)


class Setting(NamedTuple):
    """A network, an optimizer and a budget, and the λ at which the search begins."""

    units: int = PROTOCOL.hidden[0]
    lr: float = PROTOCOL.settings["EWC"].lr
    epochs: int = PROTOCOL.epochs
    adam: bool = False
    start: tuple[float, float] = (30.0, 100.0)


SETTINGS = {
    "base": Setting(),
    "512 units": Setting(units=512),
    "3 epochs": Setting(epochs=3),
    "128 units": Setting(units=128),
    "Adam, rate 0.001": Setting(lr=0.001, adam=True),
}
RULES = [
    ("separate", 1.0),
    ("latest", 1.0),
    ("average", 1.0),
    *(("online", gamma) for gamma in (0.9, 0.7, 0.5, 0.0)),
]
#: What is compared in the settings other than ``base``.
TWO_RULES = RULES[:2]


class Watched(EWC):
    """An :class:`EWC` that notes after every task which share of each layer is still free."""

    def __init__(self, model: nn.Module, lam: float, *, lr: float, steps: int, **options: Any):
        super().__init__(model, lam, **options)
        self._pace = {"lr": lr, "steps": steps}
        self.free: list[list[float]] = []

    def merge(self, *arguments: Any, **options: Any) -> None:
        super().merge(*arguments, **options)
        S = [values for name, values in self.importance.items() if name.endswith("weight")]
        self.free.append([share_free(values, lam=self.lam, **self._pace) for values in S])


def run(name: str, rule: str, gamma: float, lam: float, seed: int) -> dict[str, Any]:
    """Learn the ten tasks once and return one row."""
    torch.set_num_threads(1)
    setting = SETTINGS[name]
    tasks = permuted_tasks(N_TASKS, seed=seed)
    model = mlp(64, [setting.units] * 2, 10, seed=seed)
    budget = {"lr": setting.lr, "epochs": setting.epochs, "batch_size": PROTOCOL.batch_size}
    steps = count_steps(len(tasks[0].train), PROTOCOL.batch_size, setting.epochs, None)
    ewc = Watched(model, lam, rule=rule, gamma=gamma, lr=setting.lr, steps=steps)
    optimizer = torch.optim.Adam if setting.adam else torch.optim.SGD
    row = dict(zip(KEY, (name, rule, gamma, lam, seed), strict=True))
    try:
        history = learn(
            model, tasks, ewc, optimizer=optimizer, evaluations=1, seed=seed, **budget
        )  # fmt: skip
    except ValueError as diverged:
        return row | {"R": str(diverged)}
    model.load_state_dict(ewc.anchor)
    at_anchor = accuracies(model, [task.test.tensors for task in tasks])
    return row | {
        "average_accuracy": round(history.accuracy[-1].mean(), 4),
        "at_anchor": round(sum(at_anchor) / N_TASKS, 4),
        "R": " ".join(f"{value:.3f}" for value in history.accuracy.ravel()),
        "free": " ".join(f"{value:.4f}" for layers in ewc.free for value in layers),
    }


def stored() -> pd.DataFrame:
    """Return the rows found so far."""
    return stored_rows.read(ROWS, COLUMNS)


def run_missing(wanted: Iterable[tuple], workers: int) -> int:
    """Run what is wanted and not stored yet, and count it."""
    return stored_rows.run_missing(ROWS, run, wanted, KEY, COLUMNS, workers)


def best(rows: pd.DataFrame, by: str = "average_accuracy", tie: float = TIE) -> pd.DataFrame:
    """Return per setting, rule and γ the smallest λ within ``tie`` of the best on search seeds."""
    rows = rows[rows.seed.isin(SEARCH_SEEDS)]
    cells = rows.groupby(KEY[:-1])[by].agg(["mean", "count"]).reset_index()
    cells = cells[cells["count"] == len(SEARCH_SEEDS)]
    top = cells.groupby(KEY[:3])["mean"].transform("max")
    # The rows are sorted by λ.
    return cells[cells["mean"] >= top - tie].groupby(KEY[:3], as_index=False).first()[COLUMNS[:4]]


def neighbours(lam: float) -> tuple[float, ...]:
    """Return λ with the grid's values below and above it."""
    at = GRID.index(lam)
    return GRID[max(0, at - 1) : at + 2]


def chosen(name: str, tie: float = TIE) -> list[tuple]:
    """Return setting, rule, γ and best λ: by the accuracy at the end and, of ``separate``, by that
    at the anchor, too.
    """
    at_end, at_anchor = best(stored(), tie=tie), best(stored(), "at_anchor", tie)
    cells = pd.concat([at_end, at_anchor[at_anchor.rule == "separate"]])
    cells = cells[cells.setting == name].drop_duplicates(KEY[:-1])
    order = {rule: place for place, rule in enumerate(RULES)}
    return sorted(cells.itertuples(index=False, name=None), key=lambda cell: order[cell[1:3]])


def fill(name: str, workers: int) -> None:
    """Search λ in one setting for each of its rules, then run the report seeds."""
    rules = RULES if name == "base" else TWO_RULES
    start = [
        (name, *rule, lam, seed)
        for rule in rules
        for lam in SETTINGS[name].start
        for seed in SEARCH_SEEDS
    ]
    run_missing(start, workers)
    while run_missing(
        [
            (*cell, lam, seed)
            for *cell, center in chosen(name) + chosen(name, tie=0.0)
            for lam in neighbours(center)
            for seed in SEARCH_SEEDS
        ],
        workers,
    ):
        pass
    run_missing([(*cell, seed) for cell in chosen(name) for seed in REPORT_SEEDS], workers)


def show(rows: pd.DataFrame) -> None:
    """Print what was chosen and what it reached on the report seeds."""
    report = rows[rows.seed.isin(REPORT_SEEDS)]
    summary = report.groupby(KEY[:-1])[["average_accuracy", "at_anchor"]].agg(["mean", "sem"])
    print(best(rows).to_string(index=False))
    print(summary.round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    for name in [] if arguments.show else arguments.only:
        print(name, flush=True)
        fill(name, arguments.workers)
    show(stored())


if __name__ == "__main__":
    main()
