"""Train one task, or a sequence of them, and record what is remembered.

Every method of a comparison runs through the same two functions with the same budget: the same
initial weights, batches in the same order and the same number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset
from tqdm.auto import trange

from ewc_tutorial.course.recorder import History, Recorder
from ewc_tutorial.course.tasks import Task, joined
from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher.samples import make_samples
from ewc_tutorial.randomness import as_generator

#: How the penalty enters a step: after it (stable at every λ), as a gradient, or in the loss.
UPDATES = ("proximal", "gradient", "loss")

OptimizerFactory = Callable[..., torch.optim.Optimizer]


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
    every: int | None = None,
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
        update: ``"proximal"`` (:meth:`EWC.attach`), ``"gradient"`` (:meth:`EWC.add_gradient_`) or
            ``"loss"`` (:meth:`EWC.penalty`).
        every: steps for each proximal step, as for :meth:`EWC.attach`.
        loss: the mean loss of a batch from its logits and labels.
        generator: draws the order of the batches; a number seeds a new one, ``None`` means 0.
        on_step: called with the number of steps taken after each.
        progress: show a progress bar.

    Returns:
        The mean loss of each step's batch without the penalty, ``(steps,)``.

    Raises:
        ValueError: an argument is out of range, ``ewc`` protects another model, ``update`` is
            ``"proximal"`` with an optimizer that :meth:`EWC.attach` does not know, or the loss
            stops being finite.
    """
    if update not in UPDATES:
        raise ValueError(f"update must be one of {', '.join(UPDATES)}, not {update!r}.")
    device = _device_of(model)
    x, y = (t.to(device) for t in _training_part(data))
    steps = count_steps(len(x), batch_size, epochs, steps)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optim = optimizer(parameters, lr=lr)
    if isinstance(ewc, EWC) and not {*ewc.weights().values()} <= {*model.parameters()}:
        raise ValueError(
            "ewc protects another model than the one that is trained, or a copy of it: make it "
            "with EWC(model)."
        )
    attached = ewc.attach(optim, every) if ewc is not None and update == "proximal" else None
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
            losses[step] = value.detach()
            if on_step is not None:
                on_step(step + 1)
    finally:
        model.train(was_training)
        if attached is not None:
            attached.remove()
    if not losses.isfinite().all():
        first = int((~losses.isfinite()).nonzero()[0])
        raise ValueError(
            f"The loss stopped being finite at step {first + 1} with lr={lr:g}"
            + (f" and lam={ewc.lam:g}, update={update!r}" if ewc is not None else "")
            + ": lower lr"
            + (
                ", or use update='proximal', which is stable at every λ."
                if ewc is not None and attached is None
                else "."
            )
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
    device = _device_of(model)
    tasks = [task.to(device) for task in tasks]
    tests = [task.test.tensors for task in tasks]
    # One stream of batches, and another one for labels, so that a method that draws labels sees
    # the same batches as one that does not.
    order, labels = as_generator(seed), as_generator(seed)
    record = Recorder(lambda: accuracies(model, tests), evaluations)
    for index, task in enumerate(tasks):
        budget = count_steps(len(task.train), batch_size, epochs, steps)
        with record.training(budget):
            train(
                model,
                TensorDataset(*joined(tasks[: index + 1], "train")) if joint else task,
                steps=budget,
                lr=lr,
                batch_size=batch_size,
                optimizer=optimizer,
                ewc=ewc,
                update=update,
                generator=order,
                on_step=record,
                progress=progress,
            )
        with record.consolidating():
            if ewc is not None:
                ewc.consolidate(task, estimator, n_samples=n_samples, generator=labels)
    return record.history(tasks)


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


def batches(n: int, batch_size: int, generator: torch.Generator | int | None) -> Iterator[Tensor]:
    """Yield row numbers for ever: each epoch a new permutation, cut into full batches."""
    batch_size, generator = min(batch_size, n), as_generator(generator)
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


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    if parameter is None or not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have at least one trainable parameter, but it has none.")
    return parameter.device
