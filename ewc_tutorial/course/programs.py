"""The fourteen faulty programs of notebook 08, and correct ones, behind one interface.

A test that is written for a :class:`Program` can be run on all of them: which mistakes does it
catch, and does it cry wolf? :data:`FAULTY` and :data:`CORRECT` say what each is made of;
:func:`made` builds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ewc_tutorial.course import bugs
from ewc_tutorial.course.bugs import BUGS, Batch, Springs, Tensors
from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.tasks import permuted_tasks
from ewc_tutorial.course.training import train
from ewc_tutorial.fisher import fisher_diagonal

#: Images of each task, learning rate, λ of the correct programs, and the usual batch.
N, LR, LAM, BATCH = 48, 0.1, 30.0, 8


class WithoutHalf(Springs):
    """Springs whose penalty lacks the ½."""

    def penalty(self) -> Tensor:
        return bugs.missing_half(self.model, self.fisher, self.anchor, self.lam)


class Program:
    """A program with EWC at the moment where task A is learned and B is not.

    Attributes:
        model: the network; in training mode, as it is after training.
        old, new: images and labels ``(x, y)`` of tasks A and B.
        fisher, anchor: what the program keeps of A, tensors by parameter name.
        lam, lr: λ and the learning rate.
    """

    def __init__(
        self,
        model: nn.Module,
        old: Batch,
        new: Batch,
        *,
        estimator: Callable[[nn.Module, Sequence[Batch]], Tensors] = bugs.mean_of_squares,
        of_new: bool = False,
        keep: Callable[[nn.Module], Tensors] = bugs.copied_anchor,
        stored: Callable[[Mapping[str, Tensor]], Tensors] = bugs.same_names,
        springs: type[Springs] = Springs,
        step: Callable[..., None] = bugs.once_per_step,
        scale: float = 1.0,
    ) -> None:
        self.model, self.old, self.new, self.lr = model, old, new, LR
        self._estimator, self._step = estimator, step
        fisher = stored(self.measure(new if of_new else old))
        extra = {"steps": N // BATCH} if springs is bugs.RebuiltEveryEpoch else {}
        self._springs = springs(model, fisher, keep(model), scale * LAM, **extra)
        model.train()

    @property
    def fisher(self) -> Tensors:
        return self._springs.fisher

    @property
    def anchor(self) -> Tensors:
        return self._springs.anchor

    @property
    def lam(self) -> float:
        return self._springs.lam

    def measure(self, data: Batch, batch_size: int = BATCH) -> Tensors:
        """Return F on images and labels ``(x, y)``, measured as this program does it."""
        x, y = data
        batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        return self._estimator(self.model, batches)

    def penalty(self) -> Tensor:
        """Return λ/2 Σ F (θ − θ*)² at the weights of the moment."""
        return self._springs.penalty()

    def backward(self, parts: Sequence[Batch]) -> None:
        """Leave in ``.grad`` what the optimizer sees of one step on these micro-batches."""
        self._step(self.model, parts, self._springs, lambda: None)

    def train_on_new(self, epochs: int = 1) -> None:
        """Train on task B with the penalty."""
        train(
            self.model,
            TensorDataset(*self.new),
            epochs=epochs,
            lr=self.lr / 10,  # so that no mistake ends in infinite weights
            batch_size=BATCH,
            ewc=self._springs,
            update="loss",
            generator=0,
            on_step=getattr(self._springs, "on_step", None),
        )


def without_head(fisher: Mapping[str, Tensor]) -> Tensors:
    """Leave the last layer free, as one does if each task has a head of its own."""
    names = list(fisher)
    return {name: fisher[name] for name in names[:-2]}


def exact(model: nn.Module, batches: Iterable[Batch]) -> Tensors:
    """Take all classes, each with the model's probability, and no labels."""
    x, y = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return fisher_diagonal(model.eval(), (x, y), "exact")


#: What differs from the plain correct program, by the name of the mistake.
FAULTY: dict[str, dict[str, Any]] = {
    **{
        name: {"estimator": bug.wrong}
        for name, bug in BUGS.items()
        if bug.group == "F" and name != "F of the new task"
    },
    "F of the new task": {"of_new": True},
    "live reference": {"keep": bugs.live_reference},
    "anchor rebuilt every epoch": {"springs": bugs.RebuiltEveryEpoch},
    "names that never match": {"stored": bugs.wrapped_names},
    "penalty per micro-batch": {"step": bugs.once_per_micro_batch},
    "missing ½": {"springs": WithoutHalf},
    "λ of another convention": {"scale": 32.0},
}
CORRECT: dict[str, dict[str, Any]] = {
    "empirical F": {},
    "exact F": {"estimator": exact},
    "the head left free": {"stored": without_head},
    "two hidden layers": {"hidden": (24, 24)},
}


def made(name: str, seed: int = 0) -> Program:
    """Return a fresh program with a network and data that the seed draws.

    Raises:
        KeyError: there is no program of that name.
    """
    options = dict({**FAULTY, **CORRECT}[name])
    model, old, new = _learned(options.pop("hidden", (32,)), seed)
    return Program(deepcopy(model), old, new, **options)


@lru_cache(maxsize=4)
def _learned(hidden: tuple[int, ...], seed: int) -> tuple[nn.Module, Batch, Batch]:
    """Return a network that has learned A, and some images of A and B."""
    tasks = permuted_tasks(2, seed=seed)
    model = mlp(64, list(hidden), 10, dropout=0.25, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        train(model, tasks[0], epochs=5, lr=0.1, generator=seed)
    old, new = (tuple(t[:N] for t in task.train.tensors) for task in tasks)
    return model, old, new


def careful_test(program: Program) -> None:
    """Catch all fourteen mistakes, and pass what is correct."""
    model, (x, y), F = program.model, program.old, program.fisher

    def same(a, b):
        return all(torch.allclose(a[n], b[n], rtol=1e-3, atol=1e-7) for n in b)

    once = program.measure((x, y))
    assert same(program.measure((x, y), batch_size=16), once), "F depends on the batch size"
    twice = torch.cat([x, x]), torch.cat([y, y])
    assert same(program.measure(twice), once), "F is no mean over samples"
    model.train()
    assert same(program.measure((x, y)), once), "F depends on the mode"
    top = fisher_diagonal(model.eval(), (x, y), "argmax")
    assert not same(program.measure((x, (y + 1) % 10)), top), "F is that of the top class"

    assert F.keys() <= dict(model.named_parameters()).keys(), "names that the model does not have"
    assert same(once, F), "F is not that of the old task"
    stiffest = max(part.max() for part in F.values())
    assert program.lr * program.lam * stiffest < 2, "λ is too large for this F"

    gradients, start = [], deepcopy(program.anchor)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    expected = program.lam / 2 * sum((part * 0.1**2).sum() for part in F.values())
    assert torch.isclose(program.penalty(), expected, rtol=1e-2), "penalty after a known step"
    for size in (16, 4):
        program.backward(list(zip(x.split(size), y.split(size), strict=True)))
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert same(*gradients), "the step depends on the number of micro-batches"
    program.train_on_new()
    assert same(program.anchor, start), "the anchor moves"
