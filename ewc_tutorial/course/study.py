"""The experiment of notebook 11: learn tasks, forget one, and compare with never having met it.

A task's batches depend on the seed and on the task alone, so a network that is retrained without
one task sees for all others the very same batches. Retrained with another ``order``, the same
initial weights see other batches: how much two such networks differ is the yardstick for a network
that should be like them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from ewc_tutorial.course import metrics
from ewc_tutorial.course.protocol import PROTOCOL
from ewc_tutorial.course.tasks import Task, joined, permuted_tasks
from ewc_tutorial.course.training import accuracies, train
from ewc_tutorial.ewc import EWC
from ewc_tutorial.precision import double
from ewc_tutorial.unlearning.memory import TaskMemory

METHODS = ("plain", "EWC")


@dataclass(frozen=True)
class Study:
    """Permuted digit tasks under the course's protocol, learned with or without EWC.

    Attributes:
        n_tasks: number of tasks.
        seed: of the split, the permutations, the initial weights and the batches.
        method: ``"EWC"``, or ``"plain"`` for fine-tuning without a penalty.
        epochs: per task.

    Raises:
        ValueError: the method is unknown.
    """

    n_tasks: int = 3
    seed: int = 0
    method: str = "EWC"
    epochs: int = PROTOCOL.epochs

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}.")

    @property
    def tasks(self) -> list[Task]:
        return permuted_tasks(self.n_tasks, seed=self.seed)

    @property
    def unseen(self) -> Task:
        """A further task of the same kind, which no network of the study has met."""
        return permuted_tasks(self.n_tasks + 1, seed=self.seed)[-1]

    def learn(
        self,
        without: int | None = None,
        order: int = 0,
        init: int | None = None,
        folder: str | None = None,
    ) -> TaskMemory:
        """Learn the tasks one after the other, all but task number ``without``.

        Args:
            without: the task that is left out; ``None`` learns all.
            order: another number gives other batches, from the same initial weights.
            init: seed of the initial weights, if not the study's.
            folder: of the records.
        """
        tasks = self.tasks
        model = PROTOCOL.model(tasks, self.seed if init is None else init)
        memory = TaskMemory(EWC(model, PROTOCOL.settings[self.method].lam), folder)
        for number in range(self.n_tasks):
            if number != without:
                self.learn_one(memory, tasks[number], self.batches(number, order))
        return memory

    def learn_one(
        self, memory: TaskMemory, task: Task, generator: torch.Generator | int | None = None
    ) -> None:
        """Learn one further task with the penalty of ``memory.ewc``, and record it."""
        ewc = memory.ewc
        memory.begin(task.name)
        train(
            ewc.model,
            task,
            epochs=self.epochs,
            lr=PROTOCOL.settings[self.method].lr,
            batch_size=PROTOCOL.batch_size,
            ewc=ewc if ewc.n_tasks and ewc.lam else None,
            generator=generator,
        )
        if ewc.lam:
            memory.consolidate(task)
        else:  # nothing is protected, so nothing need be measured
            memory.merge({name: torch.zeros_like(p) for name, p in ewc.model.named_parameters()})

    def batches(self, number: int, order: int = 0) -> torch.Generator:
        """Return the generator of a task's batches."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + 1009 * order + number)


def repair(model: nn.Module, kept: Sequence[Task], epochs: int = 1, seed: int = 0) -> nn.Module:
    """Return a copy trained for some epochs on the data of all kept tasks together."""
    model = copy.deepcopy(model)
    data = TensorDataset(*joined(kept, "train"))
    setting = PROTOCOL.settings["joint"]
    train(model, data, epochs=epochs, lr=setting.lr, batch_size=PROTOCOL.batch_size, generator=seed)
    return model


def relearn(model: nn.Module, task: Task, steps: Sequence[int], seed: int = 0) -> list[float]:
    """Return the test accuracy on a task after so many steps on it, of a copy; ``steps`` ascend.

    Who has kept something of a task learns it faster the second time.
    """
    model, found = copy.deepcopy(model), []

    def on_step(step: int) -> None:
        if step in steps:
            found.extend(accuracies(model, [task.test.tensors]))

    if 0 in steps:
        on_step(0)
    setting = PROTOCOL.settings["plain"]
    train(
        model,
        task,
        steps=max(steps),
        lr=setting.lr,
        batch_size=PROTOCOL.batch_size,
        generator=seed,
        on_step=on_step,
    )
    return found


def pull(memory: TaskMemory, steps: int) -> nn.Module:
    """Return a copy of the model after steps of EWC's penalty alone, without any data."""
    memory = copy.deepcopy(memory)
    for _ in range(steps):
        memory.ewc.proximal_step_(PROTOCOL.settings["EWC"].lr)
    return memory.ewc.model


@torch.no_grad()
def compare(
    model: nn.Module, gold: nn.Module, tasks: Sequence[Task], forgotten: int
) -> dict[str, float]:
    """Compare a model with one that was retrained without a task.

    Returns:
        ``forgotten`` and ``kept``: test accuracy on the forgotten task, and the mean over the
        others; ``distance``: Euclidean distance of all weights; ``kept_disagreement``: share of the
        kept tasks' test images that the two call different digits; ``forgotten_kl``: mean
        KL(gold ‖ model) on the forgotten task's test images, in nats; ``membership``: the
        probability that a training image of the forgotten task has a lower loss than a test image
        (½ if the model's losses do not tell them apart).
    """
    gone = tasks[forgotten]
    kept = [task for number, task in enumerate(tasks) if number != forgotten]
    right = accuracies(model, [task.test.tensors for task in tasks])
    images, _ = joined(kept, "test")
    x, y = gone.test.tensors
    x_train, y_train = gone.train.tensors
    losses = [
        functional.cross_entropy(model(inputs), labels, reduction="none")
        for inputs, labels in ((x_train, y_train), (x, y))
    ]
    return {
        "forgotten": right.pop(forgotten),
        "kept": sum(right) / len(right),
        "distance": distance(model, gold),
        "kept_disagreement": metrics.disagreement(model(images), gold(images)),
        "forgotten_kl": metrics.mean_kl(gold(x), model(x)),
        "membership": probability_of_less(*losses),
    }


@torch.no_grad()
def known(model: nn.Module, task: Task, unseen: Task) -> float:
    """Return how well the model's loss tells a task from one that it has never met.

    It is the probability that a test image of the task has a lower loss than a test image of the
    unseen one, the area under the curve of a membership test for whole tasks: near 1 if the model
    knows the task, ½ if the loss says nothing. Below ½ it says just as much: the model is *worse*
    on the task than on one that it never met.
    """
    losses = [
        functional.cross_entropy(model(x), y, reduction="none")
        for x, y in (task.test.tensors, unseen.test.tensors)
    ]
    return probability_of_less(*losses)


def probability_of_less(values: Tensor, others: Tensor) -> float:
    """Return how often a value is less than one of the others; half of the ties count.

    Args:
        values, others: ``(N,)`` and ``(M,)``; all N·M pairs are compared.
    """
    difference = values[:, None] - others[None, :]
    return (double(difference < 0) + 0.5 * double(difference == 0)).mean().item()


def distance(model: nn.Module, other: nn.Module) -> float:
    """Return the Euclidean distance between the weights of two networks of one shape."""
    return float((flat(model) - flat(other)).norm())


def flat(model: nn.Module) -> Tensor:
    """Return all parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])
