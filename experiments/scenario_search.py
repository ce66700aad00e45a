"""The search behind ``ewc_tutorial.course.scenarios.LAMBDAS``.

    python -m experiments.scenario_search        # about four minutes on one core

Five tasks of two digits in each of the three scenarios, on seeds that the course does not show.
The course gives all methods one learning rate, as the published table does, and EWC the λ with the
highest mean accuracy at the end. What every method reaches with its own best learning rate is in
the last table printed. All runs are kept in the table ``scenario_search``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from ewc_tutorial.course import tables
from ewc_tutorial.course.scenarios import SCENARIOS, learn_scenario, scenario_net, scenario_tasks
from ewc_tutorial.ewc import EWC

SEEDS = (100, 101, 102)
RATES = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
LAMBDAS = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
METHODS = [("plain", 0.0), ("joint", 0.0), *(("EWC", lam) for lam in LAMBDAS)]
RESULTS = tables.path("scenario_search")


def accuracies(
    scenario: str, method: str, lr: float, lam: float, seed: int, curvature: str = "diagonal"
) -> np.ndarray:
    """Return the test accuracies on all tasks after the last one."""
    net, tasks = scenario_net(scenario, seed), scenario_tasks(scenario, seed)
    ewc = None
    if method == "EWC":
        ewc = EWC(net, lam, exclude=net.exclude, curvature=curvature)
    history = learn_scenario(
        net, tasks, ewc, joint=method == "joint", lr=lr, evaluations=1, seed=seed
    )
    return history.accuracy[-1]


def main() -> None:
    torch.set_num_threads(1)
    rows = [
        (scenario, method, lr, lam, seed, accuracies(scenario, method, lr, lam, seed).mean())
        for scenario in SCENARIOS
        for lr in RATES
        for method, lam in METHODS
        for seed in SEEDS
    ]
    names = ["scenario", "method", "lr", "lam", "seed", "accuracy"]
    runs = pd.DataFrame(rows, columns=names)
    runs.round(4).to_csv(RESULTS, index=False)
    means = runs.groupby(["scenario", "method", "lr", "lam"])["accuracy"].mean().reset_index()
    print(means.pivot_table(index=["scenario", "method", "lam"], columns="lr").round(3))
    best = means.loc[means.groupby(["scenario", "method"])["accuracy"].idxmax()]
    print(best.to_string(index=False))


if __name__ == "__main__":
    main()
