"""Many λ at once: what each value makes of a network that is really trained with it.

All λ and seeds train as one stacked network (``stacked.py``), or with Kronecker factors one after
the other (``separate.py``). Each member is what :func:`~ewc_tutorial.course.training.learn` would
have made of it alone, up to rounding.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ewc_tutorial.course.sweep.result import SweepResult
from ewc_tutorial.course.sweep.separate import train_each
from ewc_tutorial.course.sweep.stacked import OPTIMIZERS, STACKED, Settings, train_stack
from ewc_tutorial.course.tasks import Task
from ewc_tutorial.course.training import count_steps, pick_device
from ewc_tutorial.curvature import KINDS
from ewc_tutorial.fisher import ESTIMATORS

#: λ and seeds that are trained together.
Shard = tuple[list[float], list[int]]


def lambda_sweep(
    tasks: Sequence[Task],
    lambdas: Sequence[float],
    seeds: Sequence[int] = (0,),
    hidden: Sequence[int] = (64, 64),
    lr: float = 0.1,
    epochs: int | None = None,
    *,
    steps: int | None = None,
    batch_size: int = 32,
    optimizer: str = "sgd",
    curvature: str = "diagonal",
    rule: str | None = None,
    gamma: float = 1.0,
    estimator: str = "exact",
    n_samples: int | None = None,
    evaluations: int = 10,
    device: str = "auto",
    executor: Executor | None = None,
    shard_size: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    on_progress: Callable[[float], None] | None = None,
) -> SweepResult:
    """Learn the tasks one after the other with EWC, once for every λ and seed.

    Args:
        tasks: in the order of learning, with inputs ``(N, D)`` of one D.
        lambdas: values of λ ≥ 0. They may be huge: the step is proximal.
        seeds: of the initial weights and of the order of the batches.
        hidden: widths of the hidden layers of the fully connected network (ReLU).
        lr, epochs, steps, batch_size, curvature, rule, gamma, estimator, n_samples: as for
            :func:`~ewc_tutorial.course.training.learn` and :class:`~ewc_tutorial.ewc.EWC`; without
            epochs and steps it is ten epochs. Networks whose curvature is no number per weight
            (``kronecker``, ``compact``) train one after the other, which takes as many times as
            long: see ``executor``.
        optimizer: ``"sgd"`` or ``"adam"``, which treat every weight alone, so that members do not
            mix.
        evaluations: about how many times per task the test accuracies are measured.
        device: ``"auto"`` takes the GPU if there is one.
        executor: anything with the ``submit`` of :class:`concurrent.futures.Executor` runs the
            shards: a process pool, Dask's ``client.get_executor()``, an MPI pool. What a broken
            executor left undone is done in this process.
        shard_size: number of λ that train at once. By default all of them, of all seeds together;
            with ``executor`` or ``folder`` all of one seed.
        folder: keeps every finished shard here, and takes from here what an earlier, interrupted
            call with the same arguments has finished.
        progress: show a progress bar.
        on_progress: called with the finished share in [0, 1]; what it raises ends the sweep.

    Raises:
        ValueError: an argument is out of range, and nothing was trained; or ``lr`` is so large
            that weights stop being finite.
    """
    settings = Settings(
        hidden=tuple(hidden),
        lr=lr,
        epochs=10 if epochs is None and steps is None else epochs,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        curvature=curvature,
        rule=_rule(curvature, rule),
        gamma=gamma,
        estimator=estimator,
        n_samples=n_samples,
        evaluations=evaluations,
    )
    lambdas, seeds = sorted({float(lam) for lam in lambdas}), sorted(set(seeds))
    _check(tasks, lambdas, seeds, settings, shard_size)
    device = str(pick_device(device))
    apart = not (shard_size is None and executor is None and folder is None)
    shards = _split(lambdas, seeds, shard_size or len(lambdas)) if apart else [(lambdas, seeds)]
    store = _Store(folder, tasks, settings)
    finished = {i: found for i, shard in enumerate(shards) if (found := store.load(shard))}
    with _Progress(len(shards), progress, on_progress) as bar:
        bar.update(len(finished))
        waiting = [i for i in range(len(shards)) if i not in finished]
        if executor is not None:
            futures = {
                executor.submit(_train_apart, tasks, *shards[i], settings, device): i
                for i in waiting
            }
            for future in as_completed(futures):
                i = futures[future]
                try:
                    finished[i] = store.save(shards[i], future.result())
                except (BrokenExecutor, OSError, EOFError) as error:
                    warnings.warn(
                        f"A worker was lost ({error}); its shard runs in this process.",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                else:
                    bar.update(len(finished))
        for i in waiting:
            if i not in finished:

                def tick(share: float) -> None:
                    bar.update(len(finished) + share)

                result = _train(tasks, *shards[i], settings, device, tick)
                finished[i] = store.save(shards[i], result)
                bar.update(len(finished))
    return SweepResult.merged([finished[i] for i in range(len(shards))])


def _train(
    tasks: Sequence[Task],
    lambdas: Sequence[float],
    seeds: Sequence[int],
    settings: Settings,
    device: str,
    *tick: Callable[[float], None],
) -> SweepResult:
    train = train_stack if settings.curvature in STACKED else train_each
    return train(tasks, lambdas, seeds, settings, device, *tick)


def _train_apart(*arguments: Any) -> SweepResult:
    """Train a shard in a worker.

    A process that was forked after PyTorch had used several threads has only one of them left and
    would wait for the others for ever (pytorch/pytorch#17199); processes that share the cores are
    no faster with more than one each anyway.
    """
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)
    return _train(*arguments)


def _split(lambdas: list[float], seeds: list[int], size: int) -> list[Shard]:
    return [
        (lambdas[start : start + size], [seed])
        for seed in seeds
        for start in range(0, len(lambdas), size)
    ]


class _Store:
    """Finished shards as files, named by everything that they depend on."""

    def __init__(
        self, folder: str | Path | None, tasks: Sequence[Task], settings: Settings
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        data = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
        for task in tasks:
            for tensor in (*task.train.tensors, *task.test.tensors):
                data.update(tensor.cpu().contiguous().numpy().tobytes())
        self._common = data.hexdigest()

    def load(self, shard: Shard) -> SweepResult | None:
        if self._folder is None or not self._path(shard).exists():
            return None
        return SweepResult.load(self._path(shard))

    def save(self, shard: Shard, result: SweepResult) -> SweepResult:
        if self._folder is not None:
            result.save(self._path(shard))
        return result

    def _path(self, shard: Shard) -> Path:
        name = hashlib.sha256(f"{self._common} {json.dumps(shard)}".encode()).hexdigest()
        return self._folder / f"shard-{name[:16]}.npz"


class _Progress:
    """A bar and a callback that hear of the same progress."""

    def __init__(
        self, shards: int, show: bool, on_progress: Callable[[float], None] | None
    ) -> None:
        self._shards = shards
        self._on_progress = on_progress
        self._bar = tqdm(total=100, disable=not show, unit="%", desc="λ sweep", leave=False)

    def update(self, finished: float) -> None:
        share = finished / self._shards
        if (percent := math.floor(100 * share)) > self._bar.n or share == 1:
            self._bar.update(percent - self._bar.n)
        if self._on_progress is not None:
            self._on_progress(share)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _rule(curvature: str, rule: str | None) -> str:
    """Return the rule, or the curvature's own for None."""
    if curvature not in KINDS:
        raise ValueError(f"curvature must be one of {', '.join(KINDS)}, not {curvature!r}.")
    return KINDS[curvature].rules[0] if rule is None else rule


def _check(
    tasks: Sequence[Task],
    lambdas: list[float],
    seeds: list[int],
    settings: Settings,
    shard_size: int | None,
) -> None:
    if not tasks:
        raise ValueError("tasks must hold at least one task, but it is empty.")
    for task in tasks:
        shape = tuple(task.train.tensors[0].shape)
        if len(shape) != 2 or shape[1] != tasks[0].in_features:
            raise ValueError(
                f"tasks must have flat inputs (N, D) of one D, but task {task.name} has {shape}."
            )
        count_steps(len(task.train), settings.batch_size, settings.epochs, settings.steps)
    for name, values in (("lambdas", lambdas), ("seeds", seeds), ("hidden", settings.hidden)):
        if not values:
            raise ValueError(f"{name} must hold at least one value, but it is empty.")
    for lam in lambdas:
        if not math.isfinite(lam) or lam < 0:
            raise ValueError(f"lambdas must be finite and not negative, not {lam!r}.")
    if not math.isfinite(settings.lr) or settings.lr <= 0:
        raise ValueError(f"lr must be a finite positive number, not {settings.lr!r}.")
    rules = KINDS[settings.curvature].rules
    for name, choices in (("optimizer", OPTIMIZERS), ("rule", rules), ("estimator", ESTIMATORS)):
        value = getattr(settings, name)
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
    if settings.curvature == "kronecker" and settings.estimator == "batched":
        raise ValueError("estimator 'batched' has no Kronecker factors: take another one.")
    for name, value in (("evaluations", settings.evaluations), ("shard_size", shard_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value!r}.")
