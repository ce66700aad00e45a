"""Trainings at one λ and seed each: made on any executor, and kept in a file as they finish."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ewc_tutorial.choice.springs import predicted_rise
from ewc_tutorial.evaluation import per_sample
from ewc_tutorial.ewc import EWC
from ewc_tutorial.files import replace_file

#: Data, or a metric of the model.
Measured = Any


@dataclass(frozen=True)
class Run:
    """What one training came to.

    Attributes:
        lam, seed: what it was called with.
        old, new: the metric on old and on new validation data; ``old`` is None without such data.
        predicted: the rise of the old loss that the penalty foretells, in nats; None if the
            training returned no EWC.
    """

    lam: float
    seed: int
    old: float | None
    new: float
    predicted: float | None


@dataclass(frozen=True)
class Trial:
    """Trains and evaluates once; it can be sent to another process if its parts can."""

    train: Callable[[float, int], Any]
    new: Measured
    old: Measured
    one_thread: bool = False

    def __call__(self, lam: float, seed: int) -> Run:
        if self.one_thread:
            # A process that was forked after PyTorch had used several threads has one of them left
            # and would wait for the others for ever (pytorch/pytorch#17199).
            torch.set_num_threads(1)
        found = self.train(lam, seed)
        ewc = found if isinstance(found, EWC) else None
        model = found if ewc is None else ewc.model
        return Run(
            lam,
            seed,
            None if self.old is None else _measure("old", self.old, model),
            _measure("new", self.new, model),
            None if ewc is None or not ewc.n_tasks else predicted_rise(ewc),
        )


def _measure(argument: str, measured: Measured, model: Any) -> float:
    if callable(measured):
        return float(measured(model))
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"train must return a model or an EWC where {argument} is data, not a "
            f"{type(model).__name__}."
        )
    return float(per_sample(model, measured).correct.mean())


class Trainings:
    """All runs so far, by (λ, seed).

    Args:
        trial: makes one.
        executor: makes several at once; None for one after the other in this process.
        path: of a CSV file with a row for each finished run, which is read if it is there.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, trial: Trial, executor: Executor | None, path: Path | None) -> None:
        self._trial, self._executor, self._path = trial, executor, path
        self._finished = {} if path is None else _read(path, trial.old is not None)
        #: Those that were asked for.
        self.runs: dict[tuple[float, int], Run] = {}

    def missing(self, wanted: Iterable[tuple[float, int]]) -> int:
        """Return how many of these are not among :attr:`runs` yet."""
        return sum(key not in self.runs for key in wanted)

    def ensure(self, wanted: Iterable[tuple[float, int]]) -> None:
        """Make those that are not finished.

        Raises:
            RuntimeError: one of them failed; the others that had been finished are in the file.
        """
        wanted = list(wanted)
        todo = [key for key in wanted if key not in self._finished]
        if self._executor is not None and todo:
            todo = self._on_the_executor(todo)
        for key in todo:
            self._take(key, partial(self._trial, *key))
        self.runs |= {key: self._finished[key] for key in wanted}

    def _on_the_executor(self, todo: list[tuple[float, int]]) -> list[tuple[float, int]]:
        """Return those that got lost with their worker."""
        assert self._executor is not None  # asked above
        futures: dict[Future[Run], tuple[float, int]] = {}
        lost = []
        try:
            for key in todo:
                futures[self._executor.submit(self._trial, *key)] = key
            for future in as_completed(futures):
                try:
                    self._take(futures[future], future.result)
                except BrokenExecutor as error:
                    lost.append(futures[future])
                    reason = error
        except BrokenExecutor as error:  # it broke before all were handed over
            lost, reason = [key for key in todo if key not in self._finished], error
        finally:
            for future in futures:
                future.cancel()
        if lost:
            warnings.warn(
                f"A worker was lost ({reason}); {len(lost)} trainings run in this process.",
                RuntimeWarning,
                stacklevel=4,
            )
        return lost

    def _take(self, key: tuple[float, int], result: Callable[[], Run]) -> None:
        try:
            self._finished[key] = result()
        except BrokenExecutor:
            raise
        except Exception as error:
            kept = "" if self._path is None else f" What had been finished is in {self._path}."
            raise RuntimeError(
                f"The training at λ = {key[0]:g} with seed {key[1]} failed "
                f"({type(error).__name__}: {error}).{kept}"
            ) from error
        if self._path is not None:
            _write(self._path, self._finished.values())


_COLUMNS = [field.name for field in fields(Run)]


def _write(path: Path, runs: Iterable[Run]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    # repr keeps every digit, so that a λ is found again; None becomes an empty cell.
    writer.writerows([v if v is None else repr(v) for v in astuple(run)] for run in runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.getvalue().encode())


def _read(path: Path, with_old: bool) -> dict[tuple[float, int], Run]:
    if not path.exists():
        return {}

    def number(cell: str) -> float | None:
        return float(cell) if cell else None

    found = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != _COLUMNS:
            raise ValueError(
                f"file must hold runs of choose_lambda, with the columns {', '.join(_COLUMNS)}, "
                f"but {path} has {', '.join(reader.fieldnames or ['none'])}."
            )
        for row in reader:
            try:
                lam, new = float(row["lam"]), float(row["new"])
                run = Run(lam, int(row["seed"]), number(row["old"]), new, number(row["predicted"]))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}, is no run ({error}).") from None
            if (run.old is not None) != with_old:
                raise ValueError(
                    f"file {path} holds runs {'without' if with_old else 'with'} old validation "
                    "data: take another one for this question."
                )
            found[run.lam, run.seed] = run
    return found
