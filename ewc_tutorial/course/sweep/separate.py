"""Fully connected networks trained one after the other: for curvatures that do not stack.

A number per weight is the same number in a stack of networks; matrices per layer are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch

from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.recorder import Recorder
from ewc_tutorial.course.sweep.result import SweepResult
from ewc_tutorial.course.sweep.stacked import OPTIMIZERS, Moves, Settings, StackedMLP, fishers
from ewc_tutorial.course.tasks import Task
from ewc_tutorial.course.training import accuracies, train
from ewc_tutorial.ewc import EWC
from ewc_tutorial.precision import double


def train_each(
    tasks: Sequence[Task],
    lambdas: Sequence[float],
    seeds: Sequence[int],
    settings: Settings,
    device: str,
    tick: Callable[[float], None] = lambda _: None,
) -> SweepResult:
    """Learn the tasks with every λ and seed, each alone; as :func:`train_stack`."""
    tasks = [task.to(device) for task in tasks]
    members = list(product(lambdas, seeds))
    return SweepResult.merged(
        [
            _train(tasks, *member, settings, device, lambda s, i=i: tick((i + s) / len(members)))
            for i, member in enumerate(members)
        ]
    )


def _train(
    tasks: Sequence[Task],
    lam: float,
    seed: int,
    settings: Settings,
    device: str,
    tick: Callable[[float], None],
) -> SweepResult:
    """Return the result of one member; ``tick`` is called with the finished share."""
    classes = 1 + max(max(task.classes) for task in tasks)
    model = mlp(tasks[0].in_features, settings.hidden, classes, seed=seed).to(device)
    ewc = EWC(model, lam, settings.rule, settings.gamma, curvature=settings.curvature)
    order, labels = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    tests = [task.test.tensors for task in tasks]
    record = Recorder(lambda: accuracies(model, tests), settings.evaluations)
    budgets = settings.budgets(tasks)
    moved: list[dict[str, np.ndarray]] = []

    def on_step(step: int) -> None:
        record(step)
        tick((record.done + step) / sum(budgets))

    for task, budget in zip(tasks, budgets, strict=True):
        with record.training(budget):
            train(
                model,
                task,
                steps=budget,
                lr=settings.lr,
                batch_size=settings.batch_size,
                optimizer=OPTIMIZERS[settings.optimizer],
                ewc=ewc,
                generator=order,
                on_step=on_step,
            )
        if not moved:
            fisher = fishers(StackedMLP([model]), task, settings, [labels.clone_state()])
            moves = Moves(StackedMLP([model]), fisher)
        with record.consolidating():
            ewc.consolidate(
                task, settings.estimator, n_samples=settings.n_samples, generator=labels
            )
        there = moves(StackedMLP([model]))
        moved.append({name: double(value).cpu().numpy() for name, value in there.items()})
    history = record.history(tasks)
    return SweepResult(
        lambdas=np.array([lam]),
        seeds=np.array([seed]),
        tasks=history.tasks,
        n_train=np.array([len(task.train) for task in tasks]),
        steps=history.steps,
        boundaries=history.boundaries,
        curves=history.curves[None, None],
        **{name: np.stack([m[name] for m in moved], axis=1)[None] for name in moved[0]},
        settings=settings.__dict__,
    )
