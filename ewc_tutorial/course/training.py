"""Train one task, or a sequence of them, and record what is remembered.

Every method of a comparison runs through the same two functions with the same budget: the same
initial weights, batches in the same order and the same number of steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from tqdm.auto import trange

from ewc_tutorial.course.tasks import Task
from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher.samples import make_samples

if TYPE_CHECKING:
    import pandas as pd

#: How the penalty enters a step: after it (stable at every λ), as a gradient, or in the loss.
UPDATES = ("proximal", "gradient", "loss")

OptimizerFactory = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class History:
    """What :func:`learn` recorded, for T tasks evaluated at E moments.

    Attributes:
        tasks: names of the tasks.
        steps: ``(E,)`` training steps taken so far, over all tasks; starts at 0.
        curves: ``(E, T)`` test accuracy on every task, those still to come included.
        boundaries: ``(T,)`` the step at which each task's training ended.
        accuracy: ``(T, T)`` the matrix R: accuracy on task j after learning task i.
        train_seconds: ``(T,)`` wall-clock seconds of training on each task.
        consolidate_seconds: ``(T,)`` the same for measuring and merging the Fisher information.
    """

    tasks: tuple[str, ...]
    steps: NDArray[np.int64]
    curves: NDArray[np.float64]
    boundaries: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    train_seconds: NDArray[np.float64]
    consolidate_seconds: NDArray[np.float64]

    @property
    def before(self) -> NDArray[np.float64]:
        """``(T,)`` accuracies of the untrained network."""
        return self.curves[0]

    @property
    def mean_so_far(self) -> NDArray[np.float64]:
        """``(T,)`` mean accuracy over all tasks learned so far, after each task."""
        seen = np.tril(np.ones_like(self.accuracy))
        return (self.accuracy * seen).sum(axis=1) / seen.sum(axis=1)

    def to_frame(self) -> pd.DataFrame:
        """Return the curves as a tidy table with the columns step, task, accuracy and seen."""
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


def train(
    model: nn.Module,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float = 0.1,
    batch_size: int = 32,
    optimizer: OptimizerFactory = torch.optim.SGD,
    ewc: EWC | None = None,
    update: str = "proximal",
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    generator: torch.Generator | int | None = None,
    on_step: Callable[[int], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Train ``model`` on one task, in place.

    Args:
        model: maps inputs to logits ``(N, C)``; its training mode is restored afterwards.
        data: a task, whose training part is used, or other data in any form that
            :func:`~ewc_tutorial.fisher.fisher_diagonal` takes; it is read once and held in memory.
        epochs, steps: give one of them. An epoch is ⌊N / batch_size⌋ steps: the rest, other
            samples each time, is left out. A step on a handful of samples would throw the weights
            about as far as one on a full batch, just before they are evaluated or consolidated.
        lr: learning rate η.
        batch_size: number of samples per step; all N if there are fewer.
        optimizer: called as ``optimizer(parameters, lr=lr)``.
        ewc: the penalty on leaving earlier tasks; ``None`` for plain fine-tuning.
        update: ``"proximal"``, ``"gradient"`` or ``"loss"``: the three ways of :class:`EWC`.
        loss: the mean loss of a batch from its logits and labels.
        generator: draws the order of the batches; a number seeds a new one, ``None`` means 0.
        on_step: called with the number of steps taken after each.
        progress: show a progress bar.

    Returns:
        The mean loss of each step's batch without the penalty, ``(steps,)``.

    Raises:
        ValueError: an argument is out of range, or the loss stops being finite.
    """
    if update not in UPDATES:
        raise ValueError(f"update must be one of {', '.join(UPDATES)}, not {update!r}.")
    device = _device_of(model)
    x, y = (t.to(device) for t in _training_part(data))
    steps = count_steps(len(x), batch_size, epochs, steps)
    if not isinstance(generator, torch.Generator):
        generator = torch.Generator().manual_seed(generator or 0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optim = optimizer(parameters, lr=lr)
    losses = torch.empty(steps, device=device)
    was_training = model.training
    model.train()
    try:
        stream = batches(len(x), batch_size, generator)
        for step in trange(steps, disable=not progress, leave=False):
            rows = next(stream).to(device)
            value = loss(model(x[rows]), y[rows])
            optim.zero_grad()
            if ewc is None or update != "loss":
                value.backward()
            else:
                (value + ewc.penalty()).backward()
            if ewc is not None and update == "gradient":
                ewc.add_gradient_()
            optim.step()
            if ewc is not None and update == "proximal":
                ewc.proximal_step_(lr)
            losses[step] = value.detach()
            if on_step is not None:
                on_step(step + 1)
    finally:
        model.train(was_training)
    if not losses.isfinite().all():
        first = int((~losses.isfinite()).nonzero()[0])
        raise ValueError(
            f"The loss stopped being finite at step {first + 1} with lr={lr:g}"
            + (f" and lam={ewc.lam:g}, update={update!r}" if ewc is not None else "")
            + ": lower lr, or use update='proximal', which is stable at every λ."
        )
    return losses


def learn(
    model: nn.Module,
    tasks: Sequence[Task],
    ewc: EWC | None = None,
    *,
    joint: bool = False,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float = 0.1,
    batch_size: int = 32,
    optimizer: OptimizerFactory = torch.optim.SGD,
    update: str = "proximal",
    estimator: str = "exact",
    n_samples: int | None = None,
    evaluations: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> History:
    """Learn tasks one after the other, in place, and evaluate on all of them all along.

    The methods of the course: ``ewc=None`` is plain fine-tuning; an :class:`~ewc_tutorial.ewc.EWC`
    or :class:`~ewc_tutorial.ewc.L2` is consolidated after each task; ``joint=True`` trains on the
    data of all tasks so far, the upper bound, in as many steps as the others take.

    Args:
        model: maps the inputs of every task to logits ``(N, C)``.
        tasks: in the order of learning.
        ewc: a penalty on this model.
        joint: train on all tasks so far. Cannot be combined with ``ewc``.
        epochs, steps: the budget per task, as in :func:`train`.
        lr, batch_size, optimizer, update: as in :func:`train`; each task gets a new optimizer.
        estimator, n_samples: as in :func:`~ewc_tutorial.fisher.fisher_diagonal`.
        evaluations: about how many times per task the test accuracies are measured.
        seed: of the order of the batches and of sampled labels.
        progress: show a progress bar per task.

    Raises:
        ValueError: an argument is out of range, there are no tasks, or the loss stops being finite.
    """
    if not tasks:
        raise ValueError("tasks must hold at least one task, but it is empty.")
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(
                "tasks must be of the class Task, which has training and test data, not a "
                f"{type(task).__name__}; train(model, data) takes data alone."
            )
    if joint and ewc is not None:
        raise ValueError("joint=True trains without a penalty: pass ewc=None with it.")
    if evaluations < 1:
        raise ValueError(f"evaluations must be at least 1, not {evaluations!r}.")
    device = _device_of(model)
    tasks = [task.to(device) for task in tasks]
    tests = [task.test.tensors for task in tasks]
    # One stream of batches, and another one for labels, so that a method that draws labels sees
    # the same batches as one that does not.
    order = torch.Generator().manual_seed(seed)
    labels = torch.Generator().manual_seed(seed)
    done = 0
    moments, curves = [0], [accuracies(model, tests)]
    boundaries, train_seconds, consolidate_seconds = [], [], []

    for index, task in enumerate(tasks):
        budget = count_steps(len(task.train), batch_size, epochs, steps)
        due = set(evaluation_steps(budget, evaluations))
        watch = StopWatch()

        def evaluate(step: int, done=done, due=due, watch=watch) -> None:
            if step in due:
                with watch.paused():
                    moments.append(done + step)
                    curves.append(accuracies(model, tests))

        train(
            model,
            _union(tasks[: index + 1]) if joint else task,
            steps=budget,
            lr=lr,
            batch_size=batch_size,
            optimizer=optimizer,
            ewc=ewc,
            update=update,
            generator=order,
            on_step=evaluate,
            progress=progress,
        )
        train_seconds.append(watch.seconds())
        watch = StopWatch()
        if ewc is not None:
            ewc.consolidate(task, estimator, n_samples=n_samples, generator=labels)
        consolidate_seconds.append(watch.seconds())
        done += budget
        boundaries.append(done)

    curves_array = np.array(curves)
    ends = np.searchsorted(moments, boundaries)
    return History(
        tasks=tuple(task.name for task in tasks),
        steps=np.array(moments),
        curves=curves_array,
        boundaries=np.array(boundaries),
        accuracy=curves_array[ends],
        train_seconds=np.array(train_seconds),
        consolidate_seconds=np.array(consolidate_seconds),
    )


def evaluation_steps(budget: int, evaluations: int) -> list[int]:
    """Return the steps of a task after which accuracies are measured, its last one included."""
    every = max(1, round(budget / evaluations))
    return sorted({*range(every, budget + 1, every), budget})


@torch.no_grad()
def accuracies(model: nn.Module, parts: Iterable[Sequence[Tensor]]) -> list[float]:
    """Return the accuracy in [0, 1] on each ``(x, y)``, in eval mode; the mode is restored."""
    was_training = model.training
    model.eval()
    try:
        return [
            sum(
                (model(xs).argmax(1) == ys).sum().item()
                for xs, ys in zip(x.split(4096), y.split(4096), strict=True)
            )
            / len(y)
            for x, y in parts
        ]
    finally:
        model.train(was_training)


def batches(n: int, batch_size: int, generator: torch.Generator) -> Iterable[Tensor]:
    """Yield row numbers for ever: each epoch a new permutation, cut into full batches."""
    batch_size = min(batch_size, n)
    while True:
        rows = torch.randperm(n, generator=generator)
        yield from rows[: n - n % batch_size].split(batch_size)


def count_steps(n: int, batch_size: int, epochs: int | None, steps: int | None) -> int:
    """Return the number of steps that a budget means for ``n`` samples; errors as :func:`train`."""
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"Give exactly one of epochs and steps, not epochs={epochs!r} and steps={steps!r}."
        )
    for name, value in (("batch_size", batch_size), ("epochs", epochs), ("steps", steps)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive whole number, not {value!r}.")
    if n == 0:
        raise ValueError("data must hold at least one sample, but it is empty.")
    return steps if steps is not None else epochs * max(1, n // batch_size)


class StopWatch:
    """Counts wall-clock seconds, less those spent paused."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def paused(self) -> StopWatch:
        return self

    def __enter__(self) -> None:
        self._pause = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._start += time.perf_counter() - self._pause


def pick_device(device: str = "auto") -> torch.device:
    """Return the device that ``"auto"`` means: the GPU if there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _training_part(data: Any) -> tuple[Tensor, Tensor]:
    """Return all inputs and labels of the data."""
    batches = list(make_samples(data, None, torch.Generator()).batches(None))
    if not batches:
        raise ValueError("data must hold at least one sample, but it is empty.")
    inputs, labels = zip(*batches, strict=True)
    if not all(isinstance(x, Tensor) for x in inputs) or not all(y is not None for y in labels):
        raise TypeError("data must have inputs in one tensor and labels, to train on.")
    y = torch.cat(labels)
    # Losses want whole numbers as int64.
    return torch.cat(inputs), y if y.is_floating_point() else y.long()


def _union(tasks: Sequence[Task]) -> TensorDataset:
    pairs = zip(*(task.train.tensors for task in tasks), strict=True)
    return TensorDataset(*(torch.cat(parts) for parts in pairs))


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    if parameter is None or not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have at least one trainable parameter, but it has none.")
    return parameter.device
