"""What a run in which tasks are learned one after the other is remembered by.

Every such run of the course, be it one network, one with heads that grow, or many that train as
one, measures at the same moments and keeps its arrays in the same order: evaluations first, tasks
last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

    from ewc_tutorial.course.tasks import Task


@dataclass(frozen=True, eq=False)
class History:
    """What a :class:`Recorder` kept, for T tasks evaluated at E moments.

    One run has no further axes. Networks that train as one have theirs in front, here as "…".

    Attributes:
        tasks: names of the tasks.
        steps: ``(E,)`` training steps taken so far, over all tasks; starts at 0.
        curves: ``(…, E, T)`` test accuracy on every task, those still to come included.
        boundaries: ``(T,)`` the step at which each task's training ended.
        train_seconds: ``(T,)`` wall-clock seconds of training on each task.
        consolidate_seconds: ``(T,)`` the same for measuring and merging the Fisher information.
    """

    tasks: tuple[str, ...]
    steps: NDArray[np.int64]
    curves: NDArray[np.float64]
    boundaries: NDArray[np.int64]
    train_seconds: NDArray[np.float64]
    consolidate_seconds: NDArray[np.float64]

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """``(…, T, T)`` the matrix R: accuracy on task j after learning task i."""
        return self.curves[..., np.searchsorted(self.steps, self.boundaries), :]

    @property
    def before(self) -> NDArray[np.float64]:
        """``(…, T)`` accuracies of the untrained network."""
        return self.curves[..., 0, :]

    @property
    def mean_so_far(self) -> NDArray[np.float64]:
        """``(…, T)`` mean accuracy over all tasks learned so far, after each task."""
        seen = np.tril(np.ones((len(self.tasks),) * 2))
        return (self.accuracy * seen).sum(axis=-1) / seen.sum(axis=-1)

    def to_frame(self) -> pd.DataFrame:
        """Return one run's curves as a tidy table with the columns step, task, accuracy, seen."""
        import pandas as pd

        starts = np.concatenate([[0], self.boundaries[:-1]])
        return pd.DataFrame(
            {
                "step": np.repeat(self.steps, len(self.tasks)),
                "task": np.tile(self.tasks, len(self.steps)),
                "accuracy": self.curves.ravel(),
                "seen": (self.steps[:, None] > starts[None, :]).ravel(),
            }
        )


class Recorder:
    """Measures at the agreed moments of a run, and before it.

    For each task, train within ``with recorder.training(steps):`` and call ``recorder(step)`` after
    each step, counted from 1; then consolidate within ``with recorder.consolidating():``.

    Args:
        measure: returns the test accuracies at present, ``(…, T)``.
        evaluations: about how many times per task they are measured.

    Raises:
        ValueError: ``evaluations`` is less than one.
    """

    def __init__(self, measure: Callable[[], ArrayLike], evaluations: int) -> None:
        if evaluations < 1:
            raise ValueError(f"evaluations must be at least 1, not {evaluations!r}.")
        self._measure, self._evaluations = measure, evaluations
        self._steps, self._curves = [0], [np.asarray(measure())]
        self._boundaries: list[int] = []
        self._train_seconds: list[float] = []
        self._consolidate_seconds: list[float] = []

    @property
    def done(self) -> int:
        """Steps of all finished tasks together."""
        return self._boundaries[-1] if self._boundaries else 0

    @contextmanager
    def training(self, steps: int) -> Iterator[None]:
        """Time the training on the next task, of so many steps, less what measuring takes."""
        self._due = evaluation_steps(steps, self._evaluations)
        self._paused = 0.0
        start = time.perf_counter()
        yield
        self._train_seconds.append(time.perf_counter() - start - self._paused)
        self._boundaries.append(self.done + steps)

    def __call__(self, step: int) -> None:
        """Measure, if it is time to; ``step`` counts the steps of the task in training."""
        if step in self._due:
            start = time.perf_counter()
            self._steps.append(self.done + step)
            self._curves.append(np.asarray(self._measure()))
            self._paused += time.perf_counter() - start

    @contextmanager
    def consolidating(self) -> Iterator[None]:
        """Time what is done between two tasks."""
        start = time.perf_counter()
        yield
        self._consolidate_seconds.append(time.perf_counter() - start)

    def history(self, tasks: Sequence[Task]) -> History:
        """Return everything measured, for these tasks, all of which were trained."""
        return History(
            tasks=tuple(task.name for task in tasks),
            steps=np.array(self._steps),
            curves=np.stack(self._curves, axis=-2),
            boundaries=np.array(self._boundaries),
            train_seconds=np.array(self._train_seconds),
            consolidate_seconds=np.array(self._consolidate_seconds),
        )


def evaluation_steps(budget: int, evaluations: int) -> set[int]:
    """Return the steps of a task after which accuracies are measured, its last one included."""
    every = max(1, round(budget / evaluations))
    return {*range(every, budget + 1, every), budget}
