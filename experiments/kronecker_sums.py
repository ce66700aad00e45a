"""Compare sums over tasks of Kronecker-factored Fisher matrices, and two kinds of eigenvalues.

    python -m experiments.kronecker_sums              # add the rows that are missing
    python -m experiments.kronecker_sums --forms      # the same for the quadratic forms, see below
    python -m experiments.kronecker_sums --show       # print the means from the stored rows

A sum of Kronecker products is none. Three ways out of it, around the last task's optimum:

* ``summed``: the factors are summed, as Ritter, Botev and Barber (2018) do;
* ``reprojected``: a diagonal in the eigenbasis of the summed factors, which is that of the tasks'
  matrices in this basis, carried over from one basis to the next;
* ``pairs``: every task's factors are kept, which is exact, and takes memory and time with the
  number of tasks. It is a curvature of its own, :class:`Pairs`.

The eigenvalues of a task's matrix are the products of those of its factors, or the exact diagonal
in their basis (EKFAC, George et al. 2018).

The network and the budget are the course's (64-256-256-10, batches of 32, 10 epochs per task), with
plain gradient descent at the rate 0.2 and the proximal step after each of its steps. λ is chosen on
the seeds 100 and 101 for each method and number of tasks; the seeds 0 to 4 chose nothing. Every
finished run is appended to its table, so that it can be interrupted and extended.

Columns of ``kronecker_sums``: ``average_accuracy`` on all tasks at the end, ``R`` the last row of
the accuracy matrix, ``cg`` the most iterations of a proximal step of pairs.

Columns of ``kronecker_sums_forms``, of the quadratic form Δᵀ(Σ_t F_t)Δ after so many tasks, Δ being
the way from the last optimum along 20 steps of learning the next task (``path``), or random: each
form over that of the kept pairs of the same eigenvalues (``over_pairs``) and over the true one in
float64 (``over_true``), as sums over the Δ of one kind; ``spread``, the standard deviation of form
over true, relative to its mean; ``megabytes`` kept beside the anchor; ``step_ms``, milliseconds of
a core for one proximal step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import product
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from ewc_tutorial import EWC
from ewc_tutorial.course import learn, mlp, permuted_tasks, tables
from ewc_tutorial.course.protocol import PROTOCOL
from ewc_tutorial.course.training import train
from ewc_tutorial.curvature import Curvature, Kronecker
from ewc_tutorial.curvature.base import Tensors
from ewc_tutorial.curvature.blocks import Block
from ewc_tutorial.fisher import fisher_factors
from ewc_tutorial.fisher.closed_forms.factors import eigenvectors
from experiments import stored_rows

ROWS, FORMS = tables.path("kronecker_sums"), tables.path("kronecker_sums_forms")
KEY = ["sum", "eigenvalues", "tasks", "lam", "seed"]
COLUMNS = [*KEY, "cg", "average_accuracy", "R"]
FORMS_KEY = ["tasks", "seed", "sum", "eigenvalues", "directions"]
FORMS_COLUMNS = [*FORMS_KEY, "over_pairs", "over_true", "spread", "megabytes", "step_ms"]
WAYS = {
    "summed": ("product",),
    "reprojected": ("product", "exact"),
    "pairs": ("product", "exact"),
}
METHODS = [f"{way}-{kind}" for way, kinds in WAYS.items() for kind in kinds]
SEARCH_SEEDS, REPORT_SEEDS = (100, 101), (0, 1, 2, 3, 4)
#: Of a proximal step of pairs: each costs two products of small matrices for each of the tasks.
CG_ITERATIONS = 3
LR, LAMS = 0.2, (30.0, 100.0, 300.0, 1000.0, 3000.0)
BUDGET = {"lr": LR, "epochs": PROTOCOL.epochs, "batch_size": PROTOCOL.batch_size}


class Pairs(Kronecker):
    """Σ_t w_t G_t ⊗ A_t, with every task's tensors kept: exact, and growing with the tasks.

    Its proximal step has no closed form; ``curvature/subproblem.py`` makes it.
    """

    name = "pairs"
    rules = ("latest",)
    why_not = "this one is to show what the exact sum is worth"
    _closed = False

    def reset(self) -> None:
        super().reset()
        self._tasks: list[tuple[float, dict[str, Block]]] = []

    def merge(self, F: Tensors, weight: float, here: Tensors, rule: str, gamma: float) -> None:
        super().merge(F, weight, here, rule, gamma)
        own = {block.layer.weight: type(block)(block.layer, {}) for block in self._blocks}
        for name, block in own.items():
            block._buffers.update(block.layout(self.anchor[name]))
            block.commit(block.merged(F, share=1.0))
        self._tasks.append((weight, own))

    def state(self) -> dict[str, Any]:
        tasks = [(w, {n: b._buffers for n, b in own.items()}) for w, own in self._tasks]
        return super().state() | {"tasks": tasks}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        kinds = {block.layer.weight: (type(block), block.layer) for block in self._blocks}
        self._tasks = []
        for weight, own in state["tasks"]:
            blocks = {name: kinds[name][0](kinds[name][1], dict(b)) for name, b in own.items()}
            self._tasks.append((weight, blocks))

    def _product(self, block: Block, matrix: Tensor) -> Tensor:
        return sum(w * own[block.layer.weight].product(matrix) for w, own in self._tasks)

    def _diagonal(self, block: Block) -> Tensor:
        return sum(w * own[block.layer.weight].diagonal() for w, own in self._tasks)


class Reprojected(Kronecker):
    """A diagonal in the basis of the summed factors, of each task the *products* of eigenvalues."""

    def __init__(self) -> None:
        super().__init__(eigenvalues="exact")

    def measure(
        self,
        model: nn.Module,
        data: Any,
        estimator: str,
        fisher: Callable[..., dict[str, Tensor]] | None,
        options: dict[str, Any],
    ) -> dict[str, Tensor]:
        layers = {block.layer.weight: block.layer.bias for block in self._blocks}
        measure = fisher or fisher_factors
        return with_products(measure(model, data, estimator=estimator, layers=layers, **options))


def with_products(F: Tensors) -> dict[str, Tensor]:
    """Return factors with their eigenvectors and the products of their eigenvalues."""
    found = dict(F)
    for name in (key.removesuffix(":A") for key in F if key.endswith(":A")):
        (a, found[f"{name}:UA"]), (g, found[f"{name}:UG"]) = (
            eigenvectors(F[f"{name}:{side}"]) for side in "AG"
        )
        found[f"{name}:E"] = torch.outer(g, a)
    return found


def make(method: str) -> Curvature:
    """Return the curvature of one of :data:`METHODS`."""
    way, eigenvalues = method.split("-")
    if way == "pairs":
        return Pairs(eigenvalues=eigenvalues, iterations=CG_ITERATIONS)
    return Reprojected() if method == "reprojected-product" else Kronecker(eigenvalues=eigenvalues)


def run(way: str, eigenvalues: str, tasks: int, lam: float, seed: int) -> dict[str, Any]:
    """Learn the tasks once and return one row."""
    torch.set_num_threads(1)
    data = permuted_tasks(tasks, seed=seed)
    model = mlp(64, PROTOCOL.hidden, 10, seed=seed)
    curvature = make(f"{way}-{eigenvalues}")
    history = learn(model, data, EWC(model, lam, curvature=curvature), evaluations=1, seed=seed,
                    **BUDGET)  # fmt: skip
    last = history.accuracy[-1]
    return dict(zip(KEY, (way, eigenvalues, tasks, lam, seed), strict=True)) | {
        "cg": CG_ITERATIONS if way == "pairs" else None,
        "average_accuracy": round(last.mean(), 4),
        "R": " ".join(f"{value:.3f}" for value in last),
    }


# --- the quadratic forms ------------------------------------------------------------------------


def true_form(model: nn.Module, weights: Tensors, x: Tensor, away: Tensors) -> float:
    """Return ΔᵀFΔ of the whole Fisher matrix of a classifier at some weights, in float64.

    F is the mean of JᵀHJ with J = ∂f/∂θ of the logits f and H = diag(p) − ppᵀ, so that one
    Jacobian-vector product per Δ is enough.
    """
    weights, away = ({n: t.double() for n, t in each.items()} for each in (weights, away))
    logits, moved = jvp(lambda w: functional_call(model, w, (x.double(),)), (weights,), (away,))
    p = logits.softmax(-1)
    return ((p * moved.square()).sum(-1) - (p * moved).sum(-1).square()).mean().item()


def forms(tasks: int, seed: int, lam: float = 300.0) -> list[dict[str, Any]]:
    """Learn the tasks with ``summed-product``, and compare what all methods say of the next one."""
    torch.set_num_threads(1)
    data = permuted_tasks(tasks + 1, seed=seed)
    model = mlp(64, PROTOCOL.hidden, 10, seed=seed)
    ewcs = {method: EWC(model, 2.0, curvature=make(method)) for method in METHODS}
    optima = []
    trained = ewcs["summed-product"]

    def snapshot() -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    for task in data[:-1]:
        trained.lam = lam
        train(model, task, ewc=trained if optima else None, generator=seed, **BUDGET)
        optima.append(snapshot())
        F = ewcs["reprojected-exact"].measure(task)
        for method, ewc in ewcs.items():
            ewc.merge(F if method.endswith("exact") else with_products(F))
    last, path = optima[-1], []
    steps = (len(data[-1].train) // PROTOCOL.batch_size) * PROTOCOL.epochs

    def remember(step: int) -> None:
        if step % (steps // 20) == 0:
            path.append(snapshot())

    train(model, data[-1], ewc=trained, generator=seed, on_step=remember, **BUDGET)
    trained.lam = 2.0
    g = torch.Generator().manual_seed(seed)
    noise = [{n: w + 0.01 * torch.randn(w.shape, generator=g) for n, w in last.items()}
             for _ in range(20)]  # fmt: skip
    costs = {
        method: {
            "megabytes": round(megabytes(ewc), 2),
            "step_ms": round(milliseconds(ewc, lam), 2),
        }
        for method, ewc in ewcs.items()
    }
    rows = []
    for directions, places in {"path": path, "random": noise}.items():
        truth, found = [], {method: [] for method in METHODS}
        for place in places:
            away = {name: place[name] - last[name] for name in last}
            truth.append(
                sum(
                    true_form(model, optimum, task.train[:][0], away)
                    for optimum, task in zip(optima, data, strict=False)
                )
            )
            model.load_state_dict(place)
            for method, ewc in ewcs.items():
                found[method].append(ewc.penalty().item())
        for method, values in found.items():
            way, eigenvalues = method.split("-")
            ratios = torch.tensor(values) / torch.tensor(truth)
            rows.append(
                dict(zip(FORMS_KEY, (tasks, seed, way, eigenvalues, directions), strict=True))
                | {
                    "over_pairs": round(sum(values) / sum(found[f"pairs-{eigenvalues}"]), 4),
                    "over_true": round(sum(values) / sum(truth), 4),
                    "spread": round((ratios.std() / ratios.mean()).item(), 4),
                }
                | costs[method]
            )
    return rows


def megabytes(ewc: EWC) -> float:
    """Return what is kept and needed for a step, beside the anchor."""
    kept = ewc._kept
    blocks = [own.values() for _, own in kept._tasks] if isinstance(kept, Pairs) else [kept._blocks]
    tensors = [t for some in blocks for block in some for t in block.tensors]
    if not isinstance(kept, Pairs) and kept.eigenvalues == "product":
        tensors += [t for block in kept._blocks for t in block._eigenbasis()]
    return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def milliseconds(ewc: EWC, lam: float) -> float:
    """Return the median time of a proximal step from a little beside the anchor."""
    parameters = dict(ewc.model.named_parameters())
    start = {name: w.clone() for name, w in ewc.anchor.items()}
    ewc.lam, times = lam, []
    for _ in range(6):
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(start[name] + 0.01)
        begin = time.process_time()
        ewc.proximal_step_(LR, start=start)
        times.append(time.process_time() - begin)
    ewc.lam = 2.0
    return 1000 * median(times[1:])


# --- the tables ---------------------------------------------------------------------------------


def best() -> pd.Series:
    """Return each method's λ, by number of tasks, sum and eigenvalues."""
    rows = pd.read_csv(ROWS)
    search = rows[rows.seed.isin(SEARCH_SEEDS)]
    means = search.groupby([*KEY[:4]]).average_accuracy.mean().rename("mean").reset_index()
    return means.loc[means.groupby(KEY[:3])["mean"].idxmax()].set_index(KEY[:3]).lam


def show() -> None:
    """Print each method at its own λ on the report seeds, and the means of the forms."""
    if ROWS.exists():
        rows = pd.read_csv(ROWS)
        search = rows[rows.seed.isin(SEARCH_SEEDS)]
        print(search.pivot_table("average_accuracy", KEY[:3], "lam").round(4).to_string())
        report = rows[rows.seed.isin(REPORT_SEEDS)].merge(best().reset_index(), on=KEY[:4])
        found = {"average_accuracy": ["mean", "sem", "count"]}
        print(report.groupby(["tasks", "sum", "eigenvalues", "lam"]).agg(found).round(4))
    if FORMS.exists():
        keys = ["tasks", "directions", "sum", "eigenvalues"]
        print(pd.read_csv(FORMS).drop(columns="seed").groupby(keys).mean().round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    parser.add_argument("--lam", type=float, nargs="+", default=[*LAMS], help="of the search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*REPORT_SEEDS], help="to report")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--forms", action="store_true", help="only the quadratic forms")
    parser.add_argument("--show", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if arguments.forms:
        done = set()
        if FORMS.exists():
            done = set(pd.read_csv(FORMS)[["tasks", "seed"]].itertuples(index=False, name=None))
        for job in product(arguments.tasks, arguments.seeds):
            if job not in done:
                stored_rows.append(FORMS, forms(*job), FORMS_COLUMNS)
    elif not arguments.show:
        methods = [tuple(method.split("-")) for method in arguments.methods]
        kinds = [(*method, tasks) for tasks, method in product(arguments.tasks, methods)]
        search = [(*k, *rest) for k, *rest in product(kinds, arguments.lam, SEARCH_SEEDS)]
        stored_rows.run_missing(ROWS, run, search, KEY, COLUMNS, arguments.workers)
        lams = best()
        report = [(*kind, lams[kind], seed) for kind, seed in product(kinds, arguments.seeds)]
        stored_rows.run_missing(ROWS, run, report, KEY, COLUMNS, arguments.workers)
    show()


if __name__ == "__main__":
    main()
