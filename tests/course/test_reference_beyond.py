"""The textbook functions of notebook 13 against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from ewc_tutorial.course import reference
from ewc_tutorial.course.models import mlp
from ewc_tutorial.ewc import EWC


def second_moments(size: int, seed: int) -> torch.Tensor:
    rows = torch.randn(20, size, generator=torch.Generator().manual_seed(seed)).double() + 0.5
    return rows.T @ rows / 20


@pytest.mark.parametrize("size", [1, 3, 6])
def test_mean_over_signs_against_all_signs(size):
    F, step = second_moments(size, 0), torch.arange(1.0, size + 1).double()
    all_signs = itertools.product((-1.0, 1.0), repeat=size)
    each = [(lambda v: 0.5 * v @ F @ v)(step * torch.tensor(s).double()).item() for s in all_signs]
    assert reference.mean_over_signs(F, step) == pytest.approx(sum(each) / len(each))


@pytest.mark.parametrize("size", [2, 3])
def test_blindness_against_a_search_of_all_directions(size):
    F = second_moments(size, 1) * torch.logspace(0, 1, size).outer(torch.logspace(0, 1, size))
    steps = torch.randn(200_000, size, generator=torch.Generator().manual_seed(2)).double()
    steps = steps / F.diagonal().sqrt()
    ratios = (steps @ F * steps).sum(1) / (steps**2 @ F.diagonal())
    assert reference.blindness(F) == pytest.approx(ratios.max().item(), rel=1e-3)
    assert reference.blindness(torch.eye(3)) == pytest.approx(1)


def test_layer_factors_against_the_package():
    model = mlp(5, [4], 3, seed=0).double()
    x = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)).double()
    hidden = torch.relu(model[0](x)).detach()
    p = (hidden @ model[2].weight.T + model[2].bias).softmax(1).detach()
    g = torch.eye(3).double()[None] - p[:, None, :]  # of log p_c by the logits
    A, G = reference.layer_factors(hidden, g, p)
    measured = EWC(model, curvature="kronecker").measure((x, None), "exact")
    torch.testing.assert_close(A, measured["2.weight:A"].double(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(G, measured["2.weight:G"].double(), rtol=1e-5, atol=1e-7)


def test_kronecker_step_against_the_dense_system():
    W, anchor = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3)).double()
    A, G = second_moments(4, 4), second_moments(3, 5)
    found = reference.kronecker_step(W, anchor, A, G, lam=7.0, lr=0.3)
    S = torch.kron(G, A)
    system = torch.eye(12).double() / 0.3 + 7.0 * S
    right = W.flatten() / 0.3 + 7.0 * S @ anchor.flatten()
    torch.testing.assert_close(found.flatten(), torch.linalg.solve(system, right))
