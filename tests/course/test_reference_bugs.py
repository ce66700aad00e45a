"""The textbook functions of notebook 08 against autograd and the EWC class, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.course import reference


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_an_accumulated_gradient_is_that_of_the_whole_batch(parts):
    generator = torch.Generator().manual_seed(parts)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y, anchor, fisher, lam = draw(12, 3), draw(12), draw(3), draw(3).square(), 2.5
    theta = draw(3).requires_grad_()

    def task_gradient(xs: torch.Tensor, ys: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(((xs @ theta - ys) ** 2).mean(), theta)[0]

    micro = [task_gradient(*part) for part in zip(x.chunk(parts), y.chunk(parts), strict=True)]
    loss = ((x @ theta - y) ** 2).mean() + lam / 2 * (fisher * (theta - anchor) ** 2).sum()
    (expected,) = torch.autograd.grad(loss, theta)
    found = reference.accumulated_gradient(micro, theta.detach(), anchor, fisher, lam)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("old", "new"), [(1, 3), (2, 5), (3, 3)])
def test_the_penalty_of_a_grown_head_is_that_of_the_ewc_class(old, new):
    generator = torch.Generator().manual_seed(old)
    fisher = torch.rand(old, 4, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, old, bias=False).double())
    anchor = model[0].weight.detach().clone()
    ewc = EWC(model, lam=3.0)
    ewc.merge({"0.weight": fisher})
    model[0] = nn.Linear(4, new, bias=False).double()
    ewc.grow_()
    found = reference.grown_head_penalty(model[0].weight.detach(), anchor, fisher, 3.0)
    torch.testing.assert_close(found, ewc.penalty().detach())
