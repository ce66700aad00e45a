"""Run the published experiments again, on MNIST: the rows that notebook 12 holds against papers.

    python -m experiments.reproduce [--only split,fisher,...] [--seeds 5] [--device cpu]
    python -m experiments.reproduce --again split domain EWC [SEED ...]

Every run appends one row to the table ``reproduce``; a run whose row is there is not done
again, so the script can be stopped at any time and goes on where it was. λ is chosen on the seed
100, the reported seeds count from 0. ``--list`` says what is still to do. ``--again`` runs one
cell of a table again, all its reported seeds or those that are named, prints each result beside
the stored one, and stores nothing.

What is published, and where each protocol comes from:

split     Split MNIST in three scenarios: none, EWC and joint (van de Ven et al. 2022, table 2).
split_seeds  Six further seeds, from 5 on, of all its cells.
fisher    Ways to compute the Fisher information, each with its own λ (van de Ven 2025).
panel_a   Test accuracy on three permuted tasks (Kirkpatrick et al. 2017, figure 2A).
panel_b   Mean accuracy over up to ten permuted tasks (figure 2B).
panel_b_gpu  The same with the paper's widest network, 2 × 2000 units, and longer; wants a GPU.
fifty     Fifty permutations, of 10,000 images each, with two curvatures; wants a GPU.
panel_c   Fisher overlap per layer (figure 2C).
permuted  Permuted MNIST of ten tasks (van de Ven and Tolias 2018); --steps 5000 are its own, for a
          GPU, and what is stored.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, astuple, dataclass, fields
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from ewc_tutorial.course import tables
from ewc_tutorial.course.metrics import fisher_overlap
from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.scenarios import (
    SCENARIOS,
    ScenarioNet,
    joint_problem,
    learn_scenario,
    scenario_accuracies,
)
from ewc_tutorial.course.tasks import Task, permuted_tasks, split_tasks
from ewc_tutorial.course.training import History, accuracies, learn, train
from ewc_tutorial.ewc import EWC, L2
from ewc_tutorial.fisher import fisher_diagonal
from experiments import stored_rows

TABLE = tables.path("reproduce")
TUNING_SEED = 100

#: λ of the published table, in the authors' convention, which is ours (mean loss, mean F, ½).
PUBLISHED_LAM = {"task": 1e5, "domain": 1e10, "class": 1e9}
SPLIT_GRID = tuple(10.0**k for k in range(2, 12, 2))
#: Per way to compute the Fisher information: options of ``fisher_diagonal`` and the grid of λ.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "exact": ({"estimator": "exact"}, tuple(10.0**k for k in range(2, 8))),
    "exact, 500": ({"estimator": "exact", "n_samples": 500}, tuple(10.0**k for k in range(3, 8))),
    "sampled": ({"estimator": "sampled"}, tuple(10.0**k for k in range(5, 10))),
    "empirical": ({"estimator": "empirical"}, tuple(10.0**k for k in range(6, 11))),
    "batched, 128": (
        {"estimator": "batched", "fisher_batch_size": 128},
        tuple(10.0**k for k in range(8, 13)),
    ),
}
#: λ of two curvatures, for the experiments that compare them.
CURVATURE_GRID = {"EWC": (10.0, 30.0, 100.0), "EWC, Kronecker": (0.3, 1.0, 3.0)}
KIRKPATRICK_GRID = {"L2": (0.01, 0.03, 0.1, 0.3), "EWC": (10.0, 30.0, 100.0, 300.0, 1000.0)}
PERMUTED_GRID = (10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Run:
    """One training run: of which experiment, which cell of its table, with which λ and seed."""

    experiment: str
    cell: str
    method: str
    lam: float
    seed: int


@dataclass(frozen=True)
class Result:
    """What a run gave; ``detail`` is JSON and depends on the experiment."""

    accuracy: float
    seconds: float
    fisher_seconds: float
    detail: str
    device: str
    threads: int
    torch: str


class CarriedAdam:
    """Adam whose moments go on from task to task, as in the authors' code.

    :func:`ewc_tutorial.course.training.train` asks for a new optimizer at each task; this hands the
    state of the parameters that are still there over to it.
    """

    def __init__(self) -> None:
        self._last: torch.optim.Adam | None = None

    def __call__(self, parameters: list[nn.Parameter], lr: float) -> torch.optim.Adam:
        adam = torch.optim.Adam(parameters, lr=lr, fused=True)
        if self._last is not None:
            kept = {p: state for p, state in self._last.state.items() if p in set(parameters)}
            adam.state.update(kept)
        self._last = adam
        return adam


@lru_cache(maxsize=1)
def split_mnist(scenario: str, seed: int, device: str) -> list[Task]:
    """Return five tasks of two digits; which two share a task depends on the seed, as published."""
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
    tasks = split_tasks(5, "mnist", relabel=scenario != "class", order=order)
    return [task.to(device) for task in tasks]


def split_net(scenario: str, seed: int, device: str) -> ScenarioNet:
    """Return the network 784-400-400 with the heads of the scenario."""
    trunk = nn.Sequential(*mlp(784, [400], 400, seed=seed), nn.ReLU())
    return ScenarioNet(trunk, 400, 5, 2, scenario, seed=seed + 1).to(device)


SPLIT_OPTIONS = {"lr": 1e-3, "batch_size": 128, "update": "gradient", "evaluations": 1}


def run_split(run: Run, device: str) -> tuple[float, History | None, Any]:
    """One entry of the Split-MNIST table; ``cell`` is the scenario."""
    net, tasks = split_net(run.cell, run.seed, device), split_mnist(run.cell, run.seed, device)
    options = {**SPLIT_OPTIONS, "optimizer": CarriedAdam(), "seed": run.seed, "steps": 2000}
    if run.method == "joint":
        # Once on the data of all tasks, with the steps of one: 2,000, as in the authors' code.
        return _jointly(net, tasks, options), None, None
    if run.method == "joint, 10000 steps":
        return _jointly(net, tasks, options | {"steps": 10_000}), None, None
    ewc = EWC(net, run.lam, exclude=net.exclude) if run.method == "EWC" else None
    history = learn_scenario(net, tasks, ewc, **options)
    return history.accuracy[-1].mean(), history, history.accuracy.round(4).tolist()


def _jointly(net: ScenarioNet, tasks: list[Task], options: dict[str, Any]) -> float:
    net.begin(len(tasks) - 1)
    model, data, loss = joint_problem(net, tasks)
    chosen = {k: options[k] for k in ("lr", "batch_size", "optimizer", "steps")}
    train(model, data, loss=loss, generator=options["seed"], **chosen)
    return sum(scenario_accuracies(net, tasks)) / len(tasks)


def run_fisher(run: Run, device: str) -> tuple[float, History | None, Any]:
    """One entry of the table of Fisher variants: task-incremental, online EWC with γ = 1."""
    net, tasks = split_net("task", run.seed, device), split_mnist("task", run.seed, device)
    ewc = EWC(net, run.lam, rule="online", exclude=net.exclude)
    options = {**SPLIT_OPTIONS, **VARIANTS[run.cell][0]}
    history = learn_scenario(
        net, tasks, ewc, steps=2000, optimizer=CarriedAdam(), seed=run.seed, **options
    )
    return history.accuracy[-1].mean(), history, history.accuracy.round(4).tolist()


#: Kirkpatrick's panels A and B give neither batch size nor λ; five epochs are what a CPU affords.
PANEL = {"lr": 0.05, "batch_size": 128, "epochs": 5}


@lru_cache(maxsize=1)
def permuted_mnist(n_tasks: int, seed: int, device: str, region: int | None = None) -> list[Task]:
    tasks = permuted_tasks(n_tasks, "mnist", seed=seed, region=region)
    return [task.to(device) for task in tasks]


def run_panel_a(run: Run, device: str) -> tuple[float, History | None, Any]:
    """Three permuted tasks with SGD; ``detail`` has the accuracies after each epoch."""
    model = mlp(784, [400, 400], 10, seed=run.seed).to(device)
    penalty = {"plain": None, "L2": L2, "EWC": EWC}[run.method]
    ewc = penalty(model, run.lam) if penalty else None
    tasks = permuted_mnist(3, run.seed, device)
    history = learn(model, tasks, ewc, **PANEL, evaluations=5, n_samples=5000, seed=run.seed)
    detail = {"steps": history.steps.tolist(), "curves": history.curves.round(4).tolist()}
    return history.accuracy[-1].mean(), history, detail


def run_panel_b(run: Run, device: str) -> tuple[float, History | None, Any]:
    """Ten permuted tasks; ``detail`` has the mean accuracy over the tasks so far."""
    dropout = 0.5 if run.method == "SGD with dropout" else 0.0
    model = mlp(784, [400, 400], 10, dropout=dropout, seed=run.seed).to(device)
    ewc = EWC(model, run.lam) if run.method == "EWC" else None
    tasks = permuted_mnist(10, run.seed, device)
    history = learn(model, tasks, ewc, **PANEL, evaluations=1, n_samples=5000, seed=run.seed)
    return history.accuracy[-1].mean(), history, history.mean_so_far.round(4).tolist()


def _of_two_curvatures(run: Run, model: nn.Module) -> EWC | None:
    kinds = {"EWC": "diagonal", "EWC, Kronecker": "kronecker"}
    return EWC(model, run.lam, curvature=kinds[run.method]) if run.method in kinds else None


def run_panel_b_gpu(run: Run, device: str) -> tuple[float, History | None, Any]:
    """As panel B, with ``cell`` units per layer and ten epochs per task."""
    dropout = 0.5 if run.method == "SGD with dropout" else 0.0
    model = mlp(784, [int(run.cell)] * 2, 10, dropout=dropout, seed=run.seed).to(device)
    tasks, budget = permuted_mnist(10, run.seed, device), PANEL | {"epochs": 10}
    history = learn(
        model, tasks, _of_two_curvatures(run, model), joint=run.method == "joint",
        evaluations=1, n_samples=5000, seed=run.seed, **budget,
    )  # fmt: skip
    return history.accuracy[-1].mean(), history, history.mean_so_far.round(4).tolist()


def run_fifty(run: Run, device: str) -> tuple[float, History | None, Any]:
    """Fifty permuted tasks of 10,000 images; ``cell`` is the number of units per layer."""
    model = mlp(784, [int(run.cell)] * 2, 10, seed=run.seed).to(device)
    tasks = permuted_tasks(50, "mnist", seed=run.seed, n_train=10_000, n_test=2_000)
    history = learn(
        model, tasks, _of_two_curvatures(run, model), joint=run.method == "joint",
        lr=0.05, batch_size=128, epochs=10, evaluations=1, n_samples=2000, seed=run.seed,
    )  # fmt: skip
    return history.accuracy[-1].mean(), history, history.mean_so_far.round(4).tolist()


def run_panel_c(run: Run, device: str) -> tuple[float, History | None, Any]:
    """Two tasks whose central ``cell`` pixels squared differ; ``detail`` has layers' overlaps."""
    model = mlp(784, [100] * 6, 10, seed=run.seed).to(device)
    tasks = permuted_mnist(2, run.seed, device, region=int(run.cell))
    ewc, fishers = EWC(model, run.lam), []
    order = torch.Generator().manual_seed(run.seed)
    for task in tasks:
        train(model, task, lr=0.05, batch_size=128, epochs=20, ewc=ewc, generator=order)
        fishers.append(fisher_diagonal(model, task, n_samples=5000))
        ewc.merge(fishers[-1])
    layers = [name.removesuffix(".weight") for name in fishers[0] if name.endswith("weight")]
    overlap = [
        fisher_overlap(
            *({k: v for k, v in F.items() if k.startswith(f"{layer}.")} for F in fishers)
        )
        for layer in layers
    ]
    accuracy = sum(accuracies(model, [task.test.tensors for task in tasks])) / 2
    return accuracy, None, [round(value, 4) for value in overlap]


def run_permuted(run: Run, device: str) -> tuple[float, History | None, Any]:
    """Permuted MNIST, domain-incremental; ``cell`` is the number of steps per task."""
    model = mlp(784, [1000, 1000], 10, seed=run.seed).to(device)
    rule = {"EWC": "separate", "online EWC": "online"}.get(run.method)
    ewc = EWC(model, run.lam, rule=rule) if rule else None
    options = {"lr": 1e-4, "batch_size": 128, "update": "gradient", "steps": int(run.cell)}
    tasks = permuted_mnist(10, run.seed, device)
    history = learn(
        model, tasks, ewc, joint=run.method == "joint", optimizer=CarriedAdam(), evaluations=1,
        n_samples=5000, seed=run.seed, **options,
    )  # fmt: skip
    return history.accuracy[-1].mean(), history, history.accuracy.round(4).tolist()


EXPERIMENTS: dict[str, Callable[[Run, str], tuple[float, History | None, Any]]] = {
    "split": run_split,
    "fisher": run_fisher,
    "panel_a": run_panel_a,
    "panel_c": run_panel_c,
    "panel_b": run_panel_b,
    "permuted": run_permuted,
    "panel_b_gpu": run_panel_b_gpu,
    "fifty": run_fifty,
}
#: Left to those who ask for them by name.
FOR_A_GPU = {"panel_b_gpu": "2000", "fifty": "1000"}

NAMES = {*EXPERIMENTS, "split_seeds"}
#: Seeds of Split MNIST that were added for all cells alike.
FURTHER_SEEDS = range(5, 11)


def tuning_runs(only: list[str], steps: str) -> list[Run]:
    """Return the runs that λ is chosen from."""
    grids = {
        "split": [(s, "EWC", lam) for s in SCENARIOS for lam in SPLIT_GRID],
        "fisher": [(name, "EWC", lam) for name, (_, grid) in VARIANTS.items() for lam in grid],
        "panel_a": [("", method, lam) for method, grid in KIRKPATRICK_GRID.items() for lam in grid],
        "panel_b": [("", "EWC", lam) for lam in KIRKPATRICK_GRID["EWC"]],
        "permuted": [
            (steps, m, lam) for m in ("EWC", "online EWC") for lam in PERMUTED_GRID
        ],
        **{
            experiment: [(cell, m, lam) for m, grid in CURVATURE_GRID.items() for lam in grid]
            for experiment, cell in FOR_A_GPU.items()
        },
    }  # fmt: skip
    return [
        Run(experiment, cell, method, lam, TUNING_SEED)
        for experiment in only
        for cell, method, lam in grids.get(experiment, [])
    ]


def reported_runs(only: list[str], seeds: range, steps: str, best: dict) -> Iterator[Run]:
    """Yield the runs of the tables, given the best λ per (experiment, cell, method)."""
    plain = {
        "split": [(s, m) for s in SCENARIOS for m in ("none", "joint")],
        "panel_a": [("", "plain")],
        "panel_b": [("", "SGD with dropout")],
        "permuted": [(steps, m) for m in ("none", "joint")],
        "panel_b_gpu": [("2000", m) for m in ("SGD with dropout", "joint")],
        "fifty": [("1000", m) for m in ("none", "joint")],
    }
    jobs = [(e, s) for e in only for s in (FURTHER_SEEDS if e == "split_seeds" else seeds)]
    for name, seed in jobs:
        experiment = name.removesuffix("_seeds")
        for cell, method in plain.get(experiment, []):
            yield Run(experiment, cell, method, 0.0, seed)
        if experiment == "split":
            for scenario, lam in PUBLISHED_LAM.items():
                yield Run(experiment, scenario, "EWC", lam, seed)
        if name == "split":
            yield Run(experiment, "class", "joint, 10000 steps", 0.0, seed)
        if experiment == "panel_c":
            for region in ("8", "26"):
                yield Run(experiment, region, "EWC", best["panel_a", "", "EWC"], seed)
        for (searched, cell, method), lam in best.items():
            if searched == experiment != "split":  # there the published λ is taken
                yield Run(experiment, cell, method, lam, seed)


def best_lambda(table: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """Return λ of the highest accuracy on the tuning seed per experiment, cell and method."""
    tuned = table[(table["seed"] == TUNING_SEED) & (table["lam"] > 0)]
    rows = tuned.loc[tuned.groupby(["experiment", "cell", "method"])["accuracy"].idxmax()]
    return {(r.experiment, r.cell, r.method): r.lam for r in rows.itertuples()}


def load() -> pd.DataFrame:
    if not TABLE.exists():
        return pd.DataFrame(columns=[f.name for kind in (Run, Result) for f in fields(kind)])
    return pd.read_csv(TABLE, dtype={"cell": str}, keep_default_na=False)


def execute(run: Run, device: str, threads: int) -> Result:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    accuracy, history, detail = EXPERIMENTS[run.experiment](run, device)
    seconds = time.perf_counter() - start
    fisher = 0.0 if history is None else history.consolidate_seconds.sum()
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    return Result(
        round(float(accuracy), 5), round(seconds, 1), round(float(fisher), 1),
        json.dumps(detail, separators=(",", ":")), name, threads, torch.__version__,
    )  # fmt: skip


def missing(runs: list[Run]) -> list[Run]:
    table = load()
    done = set(table[[f.name for f in fields(Run)]].itertuples(index=False, name=None))
    return [run for run in dict.fromkeys(runs) if astuple(run) not in done]


def do(runs: list[Run], device: str, workers: int) -> None:
    """Execute runs in processes of one thread each, and keep each result as soon as it is there."""
    todo = missing(runs)
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(execute, run, device, 1): run for run in todo}
        for future in tqdm(as_completed(futures), total=len(todo), disable=not todo):
            run, result = futures[future], future.result()
            stored_rows.append(TABLE, [asdict(run) | asdict(result)])
            tqdm.write(f"{run}: {result.accuracy:.4f}, {result.seconds:.0f} s")


def again(experiment: str, cell: str, method: str, seeds: list[int], device: str) -> None:
    """Run one cell of a table again, and print each result beside the stored one.

    Raises:
        SystemExit: there are no such rows; the message is one sentence.
    """
    table = load()
    table = table[(table.experiment == experiment) & (table.cell == cell)]
    table = table[table.method == method]
    rows = table[table.seed.isin(seeds) if seeds else table.seed != TUNING_SEED]
    if rows.empty:
        raise SystemExit(
            f"--again: the table has no rows for {experiment!r}, {cell!r}, {method!r}"
            + (f" and seeds {seeds}." if seeds else ".")
        )
    for row in rows.itertuples():
        result = execute(Run(experiment, cell, method, row.lam, row.seed), device, row.threads)
        print(
            f"λ = {row.lam:g}, seed {row.seed}: stored {row.accuracy:.5f}, "
            f"again {result.accuracy:.5f}, {result.seconds:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = ",".join(name for name in EXPERIMENTS if name not in FOR_A_GPU)
    parser.add_argument("--only", default=usual, help="experiments, with commas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", default="500", help="per task of permuted (published: 5000)")
    parser.add_argument("--no-tuning", action="store_true", help="take λ from the rows there are")
    parser.add_argument("--again", nargs="+", metavar="", help="EXPERIMENT CELL METHOD [SEED ...]")
    parser.add_argument("--list", action="store_true", help="say what is still to do")
    arguments = parser.parse_args()
    if arguments.again:
        if len(arguments.again) < 3:
            parser.error("--again wants EXPERIMENT CELL METHOD and perhaps seeds; a cell may be ''")
        seeds = [int(seed) for seed in arguments.again[3:]]
        again(*arguments.again[:3], seeds, arguments.device)
        return
    only = arguments.only.split(",")
    if unknown := set(only) - NAMES:
        parser.error(f"--only must name some of {', '.join(sorted(NAMES))}, not {unknown}")
    tuning = [] if arguments.no_tuning else tuning_runs(only, arguments.steps)
    if arguments.list:
        print(*missing(tuning), sep="\n")
    else:
        do(tuning, arguments.device, arguments.workers)
    reported = list(
        reported_runs(only, range(arguments.seeds), arguments.steps, best_lambda(load()))
    )
    if arguments.list:
        print(*missing(reported), sep="\n")
    else:
        do(reported, arguments.device, arguments.workers)


if __name__ == "__main__":
    main()
