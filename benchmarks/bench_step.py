"""Measure a training step with EWC beside a plain one.

    python -m benchmarks.bench_step [--rounds 15] [--steps 40]

The 784-400-400-10 network, batches of 128, after 1, 10 and 100 consolidated tasks. The package
keeps one quadratic however many tasks there were; beside it stand its own differentiable penalty,
the same with Kronecker factors, the textbook loop over stored tasks, and Avalanche's plugin where
it is installed. Time is a multiple of plain steps taken right before in the same process, median
over rounds.

Writes ``step.csv``, ``step.md`` and ``step.png`` into ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.fisher_rivals import available
from benchmarks.timing import paired
from ewc_tutorial.course.models import mlp
from ewc_tutorial.ewc import EWC

RESULTS = Path(__file__).parent / "results"
TASKS = (1, 10, 100)
LAM, LR, BATCH = 1.0, 0.01, 128
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
}
PLAIN = "plain step"
STORED, AVALANCHE = "loss term, loop over stored tasks", "Avalanche, separate"
#: The ways with Kronecker factors, and the steps for each proximal step (None: attach's own), 0
#: for a gradient.
KRONECKER = {
    "Kronecker, add_gradient_": 0,
    "Kronecker, attach(every=1)": 1,
    "Kronecker, attach(every=10)": 10,
    "Kronecker, attach": None,
}
#: These touch every stored task in every step, so a few steps tell.
FEW_STEPS = (STORED, AVALANCHE)


def random_fisher(model: nn.Module, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: 1e-3 * torch.rand(p.shape, generator=g) for n, p in model.named_parameters()}


def random_factors(ewc: EWC, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    roots = {name: torch.randn(shape, generator=g) for name, shape in ewc.shapes().items()}
    return {name: 1e-3 * root @ root.T / len(root) for name, root in roots.items()}


class Training:
    """A network, its optimizer and the memory of some tasks; each way to train has its own."""

    def __init__(self, optimizer: str) -> None:
        self.model = mlp(784, [400, 400], 10, seed=0)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters(), lr=LR)
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(BATCH, 784, generator=g)
        self.y = torch.randint(10, (BATCH,), generator=g)

    def step(
        self,
        loss_term: Callable[[], Tensor] | None = None,
        before: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        """Take a step; the hooks say where in it the penalty acts."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.x), self.y)
        if loss_term is not None:
            loss = loss + loss_term()
        loss.backward()
        if before is not None:
            before()
        self.optimizer.step()
        if after is not None:
            after()


def ways_to_train(optimizer: str, tasks: int) -> dict[str, Callable[[], None]]:
    """Return one training step per way to train."""
    ways: dict[str, Callable[[], None]] = {PLAIN: Training(optimizer).step}
    for name in ("add_gradient_", "attach", "penalty() as loss term"):
        training = Training(optimizer)
        ewc = EWC(training.model, lam=LAM)
        for t in range(tasks):
            ewc.merge(random_fisher(training.model, t))
        if name == "attach":
            ewc.attach(training.optimizer)
        ways[name] = {
            "add_gradient_": lambda s=training, e=ewc: s.step(before=e.add_gradient_),
            "attach": training.step,
            "penalty() as loss term": lambda s=training, e=ewc: s.step(loss_term=e.penalty),
        }[name]
    ways |= kronecker_steps(optimizer, tasks)
    training = Training(optimizer)
    stored = [
        (random_fisher(training.model, t), {n: p.detach().clone() for n, p in named})
        for t in range(tasks)
        for named in [list(training.model.named_parameters())]
    ]

    def loop_over_tasks() -> Tensor:
        total = torch.zeros(())
        for fisher, anchor in stored:
            for name, parameter in training.model.named_parameters():
                total = total + (fisher[name] * (parameter - anchor[name]).square()).sum()
        return 0.5 * LAM * total

    ways[STORED] = lambda: training.step(loss_term=loop_over_tasks)
    if available("avalanche"):
        ways[AVALANCHE] = avalanche_step(optimizer, tasks)
    return ways


def kronecker_steps(optimizer: str, tasks: int) -> dict[str, Callable[[], None]]:
    """Return the ways to train with Kronecker factors."""
    ways: dict[str, Callable[[], None]] = {}
    for name, every in KRONECKER.items():
        training = Training(optimizer)
        ewc = EWC(training.model, lam=LAM, curvature="kronecker")
        F = random_factors(ewc, 0)
        for _ in range(tasks):
            ewc.merge(F)
        if every != 0:
            ewc.attach(training.optimizer, every)
        before = ewc.add_gradient_ if every == 0 else None
        ways[name] = partial(training.step, before=before)
    return ways


def avalanche_step(optimizer: str, tasks: int) -> Callable[[], None]:
    from avalanche.training.plugins.ewc import EWCPlugin
    from avalanche.training.utils import ParamData

    training = Training(optimizer)
    plugin = EWCPlugin(ewc_lambda=LAM, mode="separate")
    for t in range(tasks):
        fisher = random_fisher(training.model, t)
        plugin.importances[t] = {
            n: ParamData(n, f.shape, init_tensor=f, device="cpu") for n, f in fisher.items()
        }
        plugin.saved_params[t] = {
            n: ParamData(n, p.shape, init_tensor=p.detach().clone(), device="cpu")
            for n, p in training.model.named_parameters()
        }

    def loss_term() -> Tensor:
        # What the plugin reads of a training strategy.
        strategy = SimpleNamespace(
            clock=SimpleNamespace(train_exp_counter=tasks),
            model=training.model,
            device="cpu",
            loss=torch.zeros(()),
        )
        plugin.before_backward(strategy)
        return strategy.loss

    return lambda: training.step(loss_term=loss_term)


def repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run


def measure(optimizer: str, tasks: int, steps: int, rounds: int) -> list[dict[str, object]]:
    ways = ways_to_train(optimizer, tasks)
    counts = {name: max(1, steps // tasks) if name in FEW_STEPS else steps for name in ways}
    plain = repeated(ways[PLAIN], steps)
    seconds = paired({n: (repeated(way, counts[n]), plain) for n, way in ways.items()}, rounds)
    return [
        {
            "optimizer": optimizer,
            "tasks": tasks,
            "method": name,
            "multiple": seconds[name].multiple() * steps / counts[name],
            "ms_per_step": 1e3 * seconds[name].median() / counts[name],
        }
        for name in ways
    ]


def markdown(table: pd.DataFrame, rounds: int) -> str:
    lines = [
        "# A training step with EWC",
        "",
        f"Time as a multiple of a plain step, median of {rounds} rounds that alternate the two: "
        f"784-400-400-10 network, batches of {BATCH}. PyTorch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.machine()} CPU. "
        "`make bench-step` makes this file.",
    ]
    for optimizer, rows in table.groupby("optimizer", sort=False):
        columns = " | ".join(f"{t} task{'s' * (t > 1)}" for t in TASKS)
        lines += ["", f"## {optimizer}", "", f"| way | {columns} |", "| --- |" + " ---: |" * 3]
        wide = rows.pivot(index="method", columns="tasks", values="multiple")
        for method in rows["method"].unique():
            cells = [f"{v:.2f}×" if v < 10 else f"{v:.0f}×" for v in wide.loc[method, list(TASKS)]]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(table: pd.DataFrame) -> plt.Figure:
    """Draw the time of a step against the number of tasks, one panel per optimizer."""
    from ewc_tutorial.course.plots.style import looks, set_style

    set_style()
    fig, axes = plt.subplots(1, len(OPTIMIZERS), figsize=(9, 3.6), sharey=True)
    methods = [m for m in table["method"].unique() if m != PLAIN]
    for ax, optimizer in zip(axes, OPTIMIZERS, strict=True):
        rows = table[table["optimizer"] == optimizer]
        for method, look in zip(methods, looks(methods), strict=True):
            some = rows[rows["method"] == method]
            ax.plot(some["tasks"], some["multiple"], **look)
        ax.axhline(1, color="C7", linestyle="--")
        ax.set(xscale="log", yscale="log", title=optimizer, xlabel="consolidated tasks")
        ax.set_xticks(TASKS, [str(t) for t in TASKS])
    axes[0].set_ylabel("time of a step\n(multiple of a plain one, dashed)")
    axes[0].legend(fontsize="x-small")
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    rows = []
    for optimizer in OPTIMIZERS:
        for tasks in TASKS:
            rows += measure(optimizer, tasks, arguments.steps, arguments.rounds)
            for row in rows[-10:]:
                if (row["optimizer"], row["tasks"]) == (optimizer, tasks):
                    print(f"{optimizer:5} {tasks:4} {row['method']:36} {row['multiple']:8.2f}×")
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "step.csv", index=False, float_format="%.4g")
    (RESULTS / "step.md").write_text(markdown(table, arguments.rounds))
    figure(table).savefig(RESULTS / "step.png", dpi=110)
    print(f"Written to {RESULTS}/step.csv, .md and .png")


if __name__ == "__main__":
    main()
