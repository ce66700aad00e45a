"""The course's default protocol: one network, one budget, and each method's learning rate and λ.

Nothing here is chosen by taste. ``experiments/protocol_search.py`` tries networks, budgets,
learning rates and λ on three permuted digit tasks, keeps every run in the table
``protocol_search``, and gives each method the values that suit it best; the network and the budget
are the cheapest with which EWC comes within 0.02 of its best. The seeds of that search (100–102)
are not those of the notebooks (0–4), on which the average accuracy is 0.63 for plain fine-tuning,
0.76 for L2, 0.91 for EWC and 0.96 for joint training (standard errors at most 0.012).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.tasks import Task
from ewc_tutorial.course.training import History, learn
from ewc_tutorial.ewc import EWC, L2

#: The methods that the course compares, in the order in which it names them.
METHODS = ("plain", "L2", "EWC", "joint")


@dataclass(frozen=True)
class Setting:
    """What a method was given by the search: its learning rate, and λ if it has a penalty."""

    lr: float
    lam: float = 0.0


@dataclass(frozen=True)
class Protocol:
    """A network and a budget that all methods share, and what each method chose for itself.

    Attributes:
        hidden: widths of the hidden layers.
        epochs: passes through a task's training data.
        batch_size: samples per step.
        settings: per method of :data:`METHODS` its learning rate and λ.
    """

    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    settings: dict[str, Setting] = field(hash=False)

    def model(self, tasks: Sequence[Task], seed: int = 0) -> nn.Sequential:
        """Build the untrained network for these tasks."""
        classes = 1 + max(max(task.classes) for task in tasks)
        return mlp(tasks[0].in_features, self.hidden, classes, seed=seed)

    def run(
        self,
        method: str,
        tasks: Sequence[Task],
        seed: int = 0,
        lam: float | None = None,
        **options: Any,
    ) -> History:
        """Learn the tasks one after the other with one method, from a new network.

        Args:
            method: one of :data:`METHODS`.
            tasks: in the order of learning.
            seed: of the initial weights and of the order of the batches, the same for all methods.
            lam: λ instead of the one that the search chose.
            options: for :func:`~ewc_tutorial.course.training.learn`, ahead of the protocol's own.

        Raises:
            ValueError: the method is unknown.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
        setting = self.settings[method]
        model = self.model(tasks, seed)
        penalty = {"EWC": EWC, "L2": L2}.get(method)
        budget = {"lr": setting.lr, "batch_size": self.batch_size, "epochs": self.epochs}
        if "steps" in options:
            del budget["epochs"]
        return learn(
            model,
            tasks,
            penalty(model, setting.lam if lam is None else lam) if penalty else None,
            joint=method == "joint",
            seed=seed,
            **(budget | options),
        )


#: Three and more permuted digit tasks.
PROTOCOL = Protocol(
    hidden=(256, 256),
    epochs=10,
    batch_size=32,
    settings={
        "plain": Setting(lr=0.1),
        "L2": Setting(lr=0.2, lam=0.03),
        "EWC": Setting(lr=0.3, lam=100.0),
        "joint": Setting(lr=0.2),
    },
)
