"""Three kinds of incremental learning: what the network is told, and which logits compete.

The same split digits are learned in three ways (van de Ven, Tuytelaars and Tolias 2022):

    task    the task is known: one head per task, only its logits compete;
    domain  the task is not known, but all tasks have the same labels: one shared head;
    class   the task is not known and has its own labels: one head that grows, all logits compete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.recorder import History, Recorder
from ewc_tutorial.course.tasks import Task, joined, split_tasks
from ewc_tutorial.course.training import OptimizerFactory, accuracies, train
from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.precision import double
from ewc_tutorial.randomness import as_generator

SCENARIOS = ("task", "domain", "class")
#: The Fisher information is measured once, after a task, or all along its training.
FISHER_AT = ("end", "during")

#: The course's network and budget for five tasks of two digits, with Adam: one learning rate for
#: all methods, as in the published table (``experiments/scenario_search.py`` has others).
HIDDEN, STEPS, BATCH_SIZE, LR = (64, 64), 100, 32, 5e-3
#: The best λ for EWC on the seeds 100-102, of the powers of ten from 1 to a million; in the
#: class-incremental scenario none is better than no penalty, and this is as good as any.
LAMBDAS = {"task": 1e2, "domain": 1e3, "class": 1e2}


class ScenarioNet(nn.Module):
    """A shared backbone with the head, or heads, of a scenario.

    ``forward`` returns the logits that compete in the task :attr:`current`: those of its head
    (``task``), of the shared head (``domain``), or of all classes seen so far (``class``). So
    cross-entropy, :func:`~ewc_tutorial.fisher.fisher_diagonal` and accuracies need not know of
    scenarios.

    Args:
        backbone: maps inputs to features ``(N, features)``.
        features: their number.
        n_tasks, classes_per_task: T and K.
        scenario: one of :data:`SCENARIOS`.
        grow: of the scenario ``class``; false makes all T·K rows of the head at once and lets
            them compete from the beginning.
        seed: of the heads' initial weights.

    Raises:
        ValueError: the scenario is unknown.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        n_tasks: int,
        classes_per_task: int,
        scenario: str,
        *,
        grow: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if scenario not in SCENARIOS:
            raise ValueError(f"scenario must be one of {', '.join(SCENARIOS)}, not {scenario!r}.")
        self.backbone = backbone
        self.scenario = scenario
        self.n_tasks, self.classes_per_task = n_tasks, classes_per_task
        self.grow = grow and scenario == "class"
        self.current = 0
        # Row i of a layer made from one seed is the same in every scenario.
        rows = mlp(features, [], n_tasks * classes_per_task, seed=seed)[0]
        self._fresh = (rows.weight.detach(), rows.bias.detach())
        if scenario == "task":
            self.heads = nn.ModuleList(
                self._rows(task * classes_per_task, classes_per_task) for task in range(n_tasks)
            )
        else:
            whole = scenario == "class" and not grow
            self.head = self._rows(0, (n_tasks if whole else 1) * classes_per_task)

    def _rows(self, first: int, count: int) -> nn.Linear:
        weight, bias = (values[first : first + count] for values in self._fresh)
        layer = nn.Linear(weight.shape[1], count)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer

    @property
    def exclude(self) -> str | None:
        """What an :class:`EWC` on this network should leave out: heads that nothing else moves."""
        return "heads.*" if self.scenario == "task" else None

    def begin(self, task: int) -> bool:
        """Get ready for learning ``task``; return whether the head has grown."""
        self.current = task
        wanted = (task + 1) * self.classes_per_task
        if not self.grow or wanted <= self.head.out_features:
            return False
        weight, bias = (values[self.head.out_features : wanted] for values in self._fresh)
        self.head = grow_linear(self.head, weight, bias)
        return True

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        return (self.heads[self.current] if self.scenario == "task" else self.head)(features)

    def all_logits(self, x: Tensor) -> Tensor:
        """Return the logits of all heads side by side, ``(N, T·K)`` with heads per task."""
        features = self.backbone(x)
        if self.scenario != "task":
            return self.head(features)
        return torch.cat([head(features) for head in self.heads], dim=1)


def grow_linear(layer: nn.Linear, weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return ``layer`` with further outputs: its rows first, ``weight`` and ``bias`` below them.

    An :class:`EWC` on the model must then be told: ``ewc.grow_()``. So must an optimizer: make a
    new one.
    """
    device, dtype = layer.weight.device, layer.weight.dtype
    grown = nn.Linear(
        layer.in_features, layer.out_features + len(weight), device=device, dtype=dtype
    )
    with torch.no_grad():
        grown.weight.copy_(torch.cat([layer.weight, weight.to(layer.weight)]))
        grown.bias.copy_(torch.cat([layer.bias, bias.to(layer.bias)]))
    return grown


def masked_log_probs(logits: Tensor, active: Tensor) -> Tensor:
    """Return log-probabilities among the active classes; −∞ for the others.

    Args:
        logits: ``(N, C)``.
        active: boolean, ``(C,)`` or one row per sample ``(N, C)``.
    """
    return logits.masked_fill(~active, -torch.inf).log_softmax(dim=1)


class MovingFisher:
    """The mean Fisher diagonal along a training run, at the weights of that moment.

    Call it after training steps: ``train(…, on_step=moving)``. Each measurement takes the next
    batch of an own random order of the data, so it sees what a training step sees.

    Args:
        model: the network in training.
        data: its training data.
        every: measure after every so many steps.
        batch_size: samples per measurement.
        estimator: as for :func:`~ewc_tutorial.fisher.fisher_diagonal`; ``batched`` squares the
            gradient of each measurement's whole batch, as public code often does.
        generator: draws the batches, and the labels of ``sampled``.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Task | TensorDataset,
        every: int = 1,
        batch_size: int = 32,
        estimator: str = "exact",
        generator: torch.Generator | int | None = None,
    ) -> None:
        part = data.train if isinstance(data, Task) else data
        self._x, self._y = part.tensors
        self._model, self._every, self._size = model, every, batch_size
        self._estimator = estimator
        self._generator = as_generator(generator)
        self._sums: dict[str, Tensor] = {}
        #: Number of measurements so far.
        self.count = 0

    def __call__(self, step: int) -> None:
        if step % self._every:
            return
        rows = torch.randperm(len(self._x), generator=self._generator)[: self._size]
        rows = rows.to(self._x.device)
        fisher = fisher_diagonal(
            self._model,
            (self._x[rows], self._y[rows]),
            self._estimator,
            batch_size=self._size,
            generator=self._generator,
        )
        for name, F in fisher.items():
            self._sums[name] = self._sums[name] + F if self.count else F
        self.count += 1

    def mean(self) -> dict[str, Tensor]:
        """Return the mean of all measurements.

        Raises:
            ValueError: there was none.
        """
        if not self.count:
            raise ValueError("There was no measurement: fewer steps were taken than `every`.")
        return {name: total / self.count for name, total in self._sums.items()}


def learn_scenario(
    net: ScenarioNet,
    tasks: Sequence[Task],
    ewc: EWC | None = None,
    *,
    joint: bool = False,
    steps: int = STEPS,
    lr: float = LR,
    batch_size: int = BATCH_SIZE,
    optimizer: OptimizerFactory = torch.optim.Adam,
    update: str = "proximal",
    estimator: str = "exact",
    fisher_at: str = "end",
    every: int = 5,
    n_samples: int | None = None,
    fisher_batch_size: int | None = None,
    evaluations: int = 10,
    seed: int = 0,
) -> History:
    """Learn tasks one after the other, in place.

    What :func:`~ewc_tutorial.course.training.learn` is for one fixed head, this is for heads that
    change with the task.

    Accuracies are those of the scenario: with the task's own head, with the shared head, or among
    all classes seen so far (so a task still to come has the accuracy 0).

    Args:
        net: a network of as many tasks.
        tasks: with labels from 0 in each task, or, in the scenario ``class``, the classes' own.
        ewc: a penalty on ``net``; its protected part may grow with the head.
        joint: train on all tasks so far, in as many steps. Cannot be combined with ``ewc``.
        steps: per task.
        lr, batch_size, optimizer, update, estimator, evaluations, seed: as there.
        fisher_at: ``"end"`` measures the Fisher information after each task, ``"during"`` takes
            the mean over the task's training, measured after ``every`` steps.
        n_samples, fisher_batch_size: samples, and samples at a time, of the measurement at the
            end; see :func:`~ewc_tutorial.fisher.fisher_diagonal`.

    Raises:
        ValueError: an argument is out of range or tasks and network do not fit.
    """
    if len(tasks) != net.n_tasks:
        raise ValueError(f"The network has {net.n_tasks} tasks, but there are {len(tasks)}.")
    if joint and ewc is not None:
        raise ValueError("joint=True trains without a penalty: pass ewc=None with it.")
    if fisher_at not in FISHER_AT:
        raise ValueError(f"fisher_at must be one of {', '.join(FISHER_AT)}, not {fisher_at!r}.")
    own_labels = net.scenario == "class"
    for index, task in enumerate(tasks):
        first = index * net.classes_per_task if own_labels else 0
        if not all(first <= label < first + net.classes_per_task for label in task.classes):
            raise ValueError(
                f"Task {task.name!r} has the labels {task.classes}, but in the scenario "
                f"{net.scenario!r} task {index} must have {first} to "
                f"{first + net.classes_per_task - 1}."
            )
    order, labels, moving_order = (as_generator(seed) for _ in range(3))
    net.begin(0)
    record = Recorder(lambda: scenario_accuracies(net, tasks), evaluations)
    options = {"steps": steps, "lr": lr, "batch_size": batch_size, "optimizer": optimizer}
    for index, task in enumerate(tasks):
        if net.begin(index) and ewc is not None:
            ewc.grow_()
        moving = None
        if ewc is not None and fisher_at == "during":
            moving = MovingFisher(net, task, every, batch_size, estimator, moving_order)

        def on_step(step: int, moving: MovingFisher | None = moving) -> None:
            if moving is not None:
                moving(step)
            record(step)

        with record.training(steps):
            if joint:
                model, data, loss = joint_problem(net, tasks[: index + 1])
                train(model, data, loss=loss, generator=order, on_step=on_step, **options)
            else:
                train(
                    net, task, ewc=ewc, update=update, generator=order, on_step=on_step, **options
                )
        with record.consolidating():
            if moving is not None:
                ewc.merge(moving.mean())
            elif ewc is not None:
                ewc.consolidate(
                    task,
                    estimator,
                    n_samples=n_samples,
                    batch_size=fisher_batch_size,
                    generator=labels,
                )
    return record.history(tasks)


def scenario_accuracies(net: ScenarioNet, tasks: Sequence[Task]) -> list[float]:
    """Return the test accuracy on each task as its scenario asks; ``net.current`` is restored."""
    current = net.current
    found = []
    try:
        for index, task in enumerate(tasks):
            if net.scenario == "task":
                net.current = index
            found += accuracies(net, [task.test.tensors])
    finally:
        net.current = current
    return found


class _AllHeads(nn.Module):
    def __init__(self, net: ScenarioNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.all_logits(x)


def joint_problem(
    net: ScenarioNet, tasks: Sequence[Task]
) -> tuple[nn.Module, TensorDataset, Callable[[Tensor, Tensor], Tensor]]:
    """Return model, data and loss for learning all these tasks at once, each with its own head."""
    x, y = joined(tasks, "train")
    if net.scenario != "task":
        return net, TensorDataset(x, y), functional.cross_entropy
    size = net.classes_per_task
    y = y + torch.cat([torch.full((len(t.train),), i * size).to(y) for i, t in enumerate(tasks)])

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        columns = torch.arange(logits.shape[1], device=y.device)
        active = columns // size == (y // size)[:, None]
        return functional.nll_loss(masked_log_probs(logits, active), y)

    return _AllHeads(net), TensorDataset(x, y), loss


def scenario_net(
    scenario: str, seed: int = 0, hidden: Sequence[int] = HIDDEN, **options: Any
) -> ScenarioNet:
    """Build the course's network for five tasks of two digits.

    The backbone's initial weights and those of each class's row depend on ``seed`` alone, not on
    the scenario.
    """
    trunk = mlp(64, hidden[:-1], hidden[-1], seed=seed)
    return ScenarioNet(
        nn.Sequential(*trunk, nn.ReLU()), hidden[-1], 5, 2, scenario, seed=seed + 1, **options
    )


def scenario_tasks(scenario: str, seed: int = 0) -> list[Task]:
    """Return five tasks of two digits, with the labels that the scenario asks for."""
    return split_tasks(5, seed=seed, relabel=scenario != "class")


def run_scenario(
    scenario: str, method: str, seed: int = 0, lam: float | None = None, **options: Any
) -> tuple[ScenarioNet, History]:
    """Learn five tasks of two digits with one method, from a new network.

    Args:
        scenario: one of :data:`SCENARIOS`.
        method: ``"plain"``, ``"EWC"`` or ``"joint"``.
        seed: of the split, the initial weights and the order of the batches.
        lam: λ instead of the one that the search chose.
        options: ``grow`` of :class:`ScenarioNet`; all others for :func:`learn_scenario`.

    Returns:
        The trained network and what was recorded.
    """
    if method not in ("plain", "EWC", "joint"):
        raise ValueError(f"method must be plain, EWC or joint, not {method!r}.")
    net = scenario_net(scenario, seed, grow=options.pop("grow", True))
    ewc = None
    if method == "EWC":
        ewc = EWC(net, LAMBDAS[scenario] if lam is None else lam, exclude=net.exclude)
    options = {"joint": method == "joint", "seed": seed} | options
    return net, learn_scenario(net, scenario_tasks(scenario, seed), ewc, **options)


def task_confusion(logits: Tensor, y: Tensor, per_task: int) -> np.ndarray:
    """Return how often samples of each task are given to a class of each task, ``(T, T)``.

    Rows are the true tasks and sum to one; columns are the tasks of the answers.
    """
    n_tasks = -(-logits.shape[1] // per_task)
    counts = torch.zeros(n_tasks, n_tasks, dtype=torch.float64)
    pairs = torch.stack([y // per_task, logits.argmax(1) // per_task]).cpu()
    for true, answer in pairs.T:
        counts[true, answer] += 1
    return (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()


def bias_correction(logits: Tensor, y: Tensor, per_task: int) -> Tensor:
    """Return one number per task, repeated for its classes, that added to the logits fits best.

    The fit minimises the cross-entropy on data of *all* tasks, which a continual learner does not
    have: it tells how much of a failure lies in the head's bias, and is no method.
    (Wu et al. 2019, *Large scale incremental learning*, correct a bias in this way from stored
    samples.)
    """
    device = logits.device
    logits = double(logits.detach())
    y = y.to(logits.device)
    n_tasks = logits.shape[1] // per_task
    offsets = torch.zeros(n_tasks, dtype=torch.float64, device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([offsets], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(logits + offsets.repeat_interleave(per_task), y)
        value.backward()
        return value

    optimizer.step(loss)
    return offsets.detach().repeat_interleave(per_task).float().to(device)
