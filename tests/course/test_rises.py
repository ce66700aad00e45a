"""Rises against the Fisher matrix written out, in float64, and against finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import functional_call, jacrev
from torch.nn import functional

from ewc_tutorial.course import mlp, reference
from ewc_tutorial.course.rises import half_quadratic, rises


def problem():
    g = torch.Generator().manual_seed(0)
    model = mlp(3, [4], 3, seed=0).double()
    x = torch.randn(6, 3, generator=g, dtype=torch.float64)
    y = torch.randint(3, (6,), generator=g)
    step = {
        name: 0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64)
        for name, p in model.named_parameters()
    }
    return model, x, y, step


def moved(model, step):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            p += step[name]
    return other


def by_matrix(model, x, step):
    """½ vᵀFv from the scores of every sample and class, one outer product after the other."""
    v = torch.cat([part.flatten() for part in step.values()])
    F = torch.zeros(len(v), len(v), dtype=v.dtype)
    for one in x:
        p = model(one[None]).softmax(1)[0].detach()
        for label in range(len(p)):
            score = reference.score(model, one, label)
            g = torch.cat([part.flatten() for part in score.values()])
            F += p[label] * torch.outer(g, g) / len(x)
    return (0.5 * v @ F @ v).item()


def test_the_whole_quadratic_is_that_of_the_matrix():
    model, x, _, step = problem()
    assert half_quadratic(model, x, step).item() == pytest.approx(by_matrix(model, x, step))


def test_it_can_be_differentiated_by_the_step():
    model, x, _, step = problem()
    name = "0.bias"
    gradient = jacrev(lambda v: half_quadratic(model, x, step | {name: v}))(step[name])
    for i in range(len(step[name])):
        nudge = torch.zeros_like(step[name])
        nudge[i] = 1e-5
        ends = [half_quadratic(model, x, step | {name: step[name] + s * nudge}) for s in (1, -1)]
        assert gradient[i].item() == pytest.approx((ends[0] - ends[1]).item() / 2e-5, rel=1e-6)


def test_rises():
    model, x, y, step = problem()
    fisher = reference.fisher_exact(model, x)
    found = rises(model, moved(model, step), x, y, fisher)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    ends = [
        functional.cross_entropy(
            functional_call(model, {n: w + t * step[n] for n, w in weights.items()}, (x,)), y
        ).item()
        for t in (0, 1)
    ]
    diagonal = sum((fisher[n] * step[n] ** 2).sum().item() for n in step) / 2
    expected = ends[1] - ends[0], by_matrix(model, x, step), diagonal
    assert found == pytest.approx(expected)


def test_nothing_rises_without_a_step():
    model, x, y, _ = problem()
    assert rises(model, copy.deepcopy(model), x, y, reference.fisher_exact(model, x)) == (0, 0, 0)
