"""Fully connected networks of one shape, trained as one: the inner loop of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.recorder import Recorder
from ewc_tutorial.course.sweep.result import SweepResult
from ewc_tutorial.course.tasks import Task, joined
from ewc_tutorial.course.training import batches, count_steps
from ewc_tutorial.ewc import EWC
from ewc_tutorial.fisher import fisher_diagonal
from ewc_tutorial.precision import double

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}
#: The share of the weights that counts as important: those with the largest Fisher of task A.
IMPORTANT = 0.1
#: Activations of one layer, over all members, that test images may take at a time: on a CPU they
#: had better stay in its cache.
_TEST_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}


@dataclass(frozen=True)
class Settings:
    """Everything but λ, seeds and data that the result of a sweep depends on."""

    hidden: tuple[int, ...]
    lr: float
    epochs: int | None
    steps: int | None
    batch_size: int
    optimizer: str
    curvature: str
    rule: str
    gamma: float
    estimator: str
    n_samples: int | None
    evaluations: int

    def budgets(self, tasks: Sequence[Task]) -> list[int]:
        """Return the number of training steps on each task."""
        return [
            count_steps(len(task.train), self.batch_size, self.epochs, self.steps) for task in tasks
        ]


class StackedMLP(nn.Module):
    """M networks as built by :func:`~ewc_tutorial.course.models.mlp` with ReLU, computed together.

    Its parameters are theirs, stacked: weights ``(M, out, in)`` and biases ``(M, 1, out)``.
    """

    def __init__(self, members: Sequence[nn.Sequential]) -> None:
        super().__init__()
        layers = list(
            zip(
                *([m for m in member if isinstance(m, nn.Linear)] for member in members),
                strict=True,
            )
        )
        self.weights = nn.ParameterList(
            torch.stack([m.weight.detach() for m in layer]) for layer in layers
        )
        self.biases = nn.ParameterList(
            torch.stack([m.bias.detach() for m in layer]).unsqueeze(1) for layer in layers
        )

    def __len__(self) -> int:
        return len(self.weights[0])

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(M, B, C)``.

        Args:
            x: ``(G, B, D)``; each of the G groups of M / G neighbouring members shares its input,
                so that the first layer, usually the largest, is one product per group.
        """
        return self._layers(x)[-1]

    @torch.no_grad()
    def set_gradients_(self, x: Tensor, y: Tensor) -> None:
        """Set each parameter's ``.grad`` to that of its member's own mean cross-entropy.

        Written out, since on networks this small autograd's bookkeeping costs as much as the
        products: x ``(G, B, D)``, y ``(G, B)``.
        """
        *activations, logits = self._layers(x)
        groups, batch, _ = x.shape
        labels = y.repeat_interleave(len(self) // groups, dim=0).unsqueeze(-1)
        g = logits.softmax(-1).scatter_add_(-1, labels, logits.new_full(labels.shape, -1.0))
        g /= batch
        for layer in reversed(range(1, len(self.weights))):
            h = activations[layer - 1]
            self.weights[layer].grad = g.mT @ h
            self.biases[layer].grad = g.sum(1, keepdim=True)
            g = (g @ self.weights[layer]).mul_(h > 0)
        self.biases[0].grad = g.sum(1, keepdim=True)
        # All members of a group beside each other, as their shared input wants it.
        g = g.view(groups, -1, batch, g.shape[-1]).transpose(2, 3).reshape(groups, -1, batch)
        self.weights[0].grad = (g @ x).view_as(self.weights[0])

    def _layers(self, x: Tensor) -> list[Tensor]:
        """Return the hidden layers after their ReLU, each ``(M, B, width)``, and the logits."""
        groups, batch, _ = x.shape
        weight = self.weights[0]
        h = x @ weight.reshape(groups, -1, weight.shape[-1]).mT
        h = h.view(groups, batch, -1, weight.shape[1]).transpose(1, 2).flatten(0, 1)
        layers = [h + self.biases[0]]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            layers.append(torch.baddbmm(bias, layers[-1].relu_(), weight.mT))
        return layers

    def repeated(self, times: int) -> StackedMLP:
        """Return a stack in which each member stands ``times`` times, next to each other."""
        twin = StackedMLP.__new__(StackedMLP)
        nn.Module.__init__(twin)
        twin.weights, twin.biases = (
            nn.ParameterList(p.detach().repeat_interleave(times, dim=0) for p in parameters)
            for parameters in (self.weights, self.biases)
        )
        return twin

    def member(self, index: int) -> nn.Sequential:
        """Return one member as a network of its own."""
        widths = [self.weights[0].shape[2], *(w.shape[1] for w in self.weights)]
        model = mlp(widths[0], widths[1:-1], widths[-1], seed=0).to(self.weights[0].device)
        linear = [m for m in model if isinstance(m, nn.Linear)]
        with torch.no_grad():
            for layer, weight, bias in zip(linear, self.weights, self.biases, strict=True):
                layer.weight.copy_(weight[index])
                layer.bias.copy_(bias[index, 0])
        return model


#: The curvatures that are a number per weight, which is the same number in a stack.
STACKED = ("diagonal", "identity")


def train_stack(
    tasks: Sequence[Task],
    lambdas: Sequence[float],
    seeds: Sequence[int],
    settings: Settings,
    device: str,
    tick: Callable[[float], None] = lambda _: None,
) -> SweepResult:
    """Learn the tasks with every λ and seed in one stack; the arguments are checked already.

    Args:
        tick: called after each step with the finished share in [0, 1].
    """
    tasks = [task.to(device) for task in tasks]
    S, L, T = len(seeds), len(lambdas), len(tasks)
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    labels = [torch.Generator().manual_seed(seed) for seed in seeds]
    classes = 1 + max(max(task.classes) for task in tasks)
    stack = StackedMLP(
        [mlp(tasks[0].in_features, settings.hidden, classes, seed=seed) for seed in seeds]
    ).to(device)
    ewc: EWC | None = None
    moved: list[dict[str, np.ndarray]] = []
    x_test, y_test = joined(tasks, "test")
    sizes = [len(task.test) for task in tasks]
    record = Recorder(
        lambda: _members(_accuracies(stack, x_test, y_test, sizes), S, L), settings.evaluations
    )
    budgets = settings.budgets(tasks)
    for index, task in enumerate(tasks):
        budget = budgets[index]
        x, y = task.train.tensors
        streams = [batches(len(x), settings.batch_size, order) for order in orders]
        optimizer = OPTIMIZERS[settings.optimizer](stack.parameters(), lr=settings.lr)
        if ewc is not None:
            ewc.attach(optimizer)
        with record.training(budget):
            for step in range(1, budget + 1):
                rows = torch.stack([next(stream) for stream in streams]).to(device)
                stack.set_gradients_(x[rows], y[rows])
                optimizer.step()
                record(step)
                tick((record.done + step) / sum(budgets))
        if not all(p.isfinite().all() for p in stack.parameters()):
            raise ValueError(f"lr={settings.lr:g} made weights that are not finite: lower it.")
        with record.consolidating():
            if index == 0 or index < T - 1:
                # How far the important weights move is told by the first task's F, whatever holds
                # them.
                if index == 0 or settings.curvature == "diagonal":
                    fisher = fishers(stack, task, settings, labels)
                if ewc is None:
                    # Up to here λ changed nothing; from here the members of a seed part.
                    stack = stack.repeated(L)
                    fisher = {n: F.repeat_interleave(L, dim=0) for n, F in fisher.items()}
                    labels = [_copy(g) for g in labels for _ in lambdas]
                    ewc = EWC(stack, lam=1.0, rule=settings.rule, gamma=settings.gamma)
                    lam = torch.tensor(list(lambdas) * S, device=device).view(-1, 1, 1)
                # Every rule is linear in F, so each member's own λ can be part of its importance.
                held = fisher
                if settings.curvature == "identity":
                    held = {n: torch.ones_like(F) for n, F in fisher.items()}
                ewc.merge({n: lam * F for n, F in held.items()})
        if index == 0:
            moves = Moves(stack, fisher)
        moved.append({name: _members(v, S, L) for name, v in moves(stack).items()})
    history = record.history(tasks)
    return SweepResult(
        lambdas=np.array(lambdas),
        seeds=np.array(seeds),
        tasks=history.tasks,
        n_train=np.array([len(task.train) for task in tasks]),
        steps=history.steps,
        boundaries=history.boundaries,
        curves=history.curves,
        **{name: np.stack([values[name] for values in moved], axis=2) for name in moved[0]},
        settings=settings.__dict__,
    )


def fishers(
    stack: StackedMLP, task: Task, settings: Settings, generators: Sequence[torch.Generator]
) -> dict[str, Tensor]:
    """Return the Fisher diagonal of each member, stacked under the stack's parameter names."""
    found = [
        list(
            fisher_diagonal(
                stack.member(m),
                task,
                settings.estimator,
                n_samples=settings.n_samples,
                generator=generator,
            ).values()
        )
        for m, generator in enumerate(generators)
    ]
    stacked = [torch.stack(parts) for parts in zip(*found, strict=True)]
    by_name = {}
    for layer in range(len(stack.weights)):
        by_name[f"weights.{layer}"] = stacked[2 * layer]
        by_name[f"biases.{layer}"] = stacked[2 * layer + 1].unsqueeze(1)
    return by_name


def _copy(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().set_state(generator.get_state())


@torch.no_grad()
def _accuracies(stack: StackedMLP, x: Tensor, y: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return every member's accuracy on every task's test images, ``(members, T)``."""
    room = _TEST_ELEMENTS.get(x.device.type, 2**18)
    chunk = max(16, room // (len(stack) * stack.weights[0].shape[1]))
    answers = [stack(images.unsqueeze(0)).argmax(-1) for images in x.split(chunk)]
    right = double(torch.cat(answers, dim=1) == y)
    return torch.stack([part.mean(1) for part in right.split(sizes, dim=1)], dim=1)


def _members(values: Tensor, S: int, L: int) -> np.ndarray:
    """Return ``(L, S, …)`` of ``(S, …)``, shared by the members of a seed, or ``(S·L, …)``."""
    array = double(values).cpu().numpy()
    array = array.reshape(S, -1, *array.shape[1:])
    return np.moveaxis(np.broadcast_to(array, (S, L, *array.shape[2:])), 0, 1).copy()


class Moves:
    """Measures how far the weights are from where the first task left them.

    Args:
        stack: the members after the first task.
        fisher: that of the first task.
    """

    @torch.no_grad()
    def __init__(self, stack: StackedMLP, fisher: dict[str, Tensor]) -> None:
        self._anchor = [w.clone() for w in stack.weights]
        F = [fisher[f"weights.{i}"] for i in range(len(stack.weights))]
        self._fisher = torch.cat([f.flatten(1) for f in F], dim=1)
        rank = round((1 - IMPORTANT) * self._fisher.shape[1])
        self._important = self._fisher > self._fisher.kthvalue(rank, dim=1, keepdim=True).values

    @torch.no_grad()
    def __call__(self, stack: StackedMLP) -> dict[str, Tensor]:
        """Return what :class:`SweepResult` holds of it, for each member."""
        offsets = [w - a for w, a in zip(stack.weights, self._anchor, strict=True)]
        squares = torch.cat([d.square().flatten(1) for d in offsets], dim=1)
        drift = [
            d.flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)
            for d, a in zip(offsets, self._anchor, strict=True)
        ]
        on = self._important
        return {
            "drift": torch.stack(drift, dim=1),
            "fisher_drift": (self._fisher * squares).sum(1),
            "important_move": (squares * on).sum(1).div(on.sum(1)).sqrt(),
            "unimportant_move": (squares * ~on).sum(1).div((~on).sum(1)).sqrt(),
        }
