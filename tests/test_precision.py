"""Devices without float64, as Apple's: double precision only after the way to the CPU."""

from __future__ import annotations

import sys

import pytest
import torch
from fisher_oracle import assert_fisher_close, loop_fisher
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from ewc_tutorial import EWC, diagnose, fisher_diagonal, precision
from ewc_tutorial.course import scenarios, study
from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.sweep import lambda_sweep
from ewc_tutorial.course.tasks import Task
from ewc_tutorial.course.training import learn
from ewc_tutorial.unlearning import TaskMemory


class NoFloat64(TorchDispatchMode):
    """Raises where float64 is made of another type, but in the one place that goes to the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = (
            {t.dtype for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}
            for tree in ((args, kwargs), out)
        )
        new = torch.float64 in made and given and torch.float64 not in given
        if new and not _inside(precision.double):
            raise TypeError(f"{func} makes float64")
        return out


def _inside(function):
    frame = sys._getframe()
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


@pytest.fixture(autouse=True)
def apple(monkeypatch):
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {"cpu"})


def data(n=64):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=g), torch.randint(0, 3, (n,), generator=g)


def two_tasks():
    x, y = data()
    return [Task(n, TensorDataset(x, y), TensorDataset(x, y), (0, 1, 2)) for n in "AB"]


def diagnosed(curvature="diagonal"):
    model = mlp(6, [8], 3, seed=0)
    ewc = EWC(model, curvature=curvature)
    ewc.consolidate(data())
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}

    def backward():
        loss = nn.functional.cross_entropy(model(data()[0]), data()[1])
        (loss + ewc.penalty()).backward()

    def measure(model, batches):
        return ewc.measure(batches)

    return diagnose(model, ewc, data(), measure=measure, checkpoint=kept, backward=backward, lr=0.1)


def forgotten():
    model = mlp(6, [8], 3, seed=0)
    memory = TaskMemory(EWC(model))
    for name in "AB":
        memory.begin(name)
        with torch.no_grad():
            model[0].weight.mul_(1.1)
        memory.consolidate(data())
    memory.forget("A")


CALLS = {
    **{
        f"consolidate, {rule}": lambda rule=rule: EWC(mlp(6, [8], 3), rule=rule).consolidate(data())
        for rule in ("separate", "latest", "online", "average")
    },
    "Kronecker": lambda: EWC(mlp(6, [8], 3), curvature="kronecker").consolidate(data()),
    "diagnose, Kronecker": lambda: diagnosed("kronecker"),
    "sampled": lambda: fisher_diagonal(mlp(6, [8], 3), data(), "sampled"),
    "gaussian": lambda: fisher_diagonal(
        mlp(6, [8], 3), (data()[0], None), "sampled", likelihood="gaussian"
    ),
    "learn": lambda: learn(model := mlp(6, [8], 3), two_tasks(), EWC(model), epochs=1),
    "diagnose": diagnosed,
    "forget": forgotten,
    **{
        f"sweep, {curvature}": lambda curvature=curvature: lambda_sweep(
            two_tasks(), [0, 1], hidden=(8,), epochs=1, progress=False, curvature=curvature
        )
        for curvature in ("diagonal", "kronecker")
    },
    "bias correction": lambda: scenarios.bias_correction(torch.randn(9, 4), data(9)[1], 2),
    "comparison": lambda: study.probability_of_less(torch.randn(5), torch.randn(4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_nothing_makes_float64_on_the_device(call):
    with NoFloat64():
        CALLS[call]()


def test_the_sums_are_right_in_float32():
    model, (x, y) = mlp(6, [8], 3, seed=0), data()
    with NoFloat64():
        actual = fisher_diagonal(model, (x, y))
    assert_fisher_close(actual, loop_fisher(model, x, y))
