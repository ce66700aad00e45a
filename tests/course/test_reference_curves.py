"""The textbook functions of notebook 04 against the package, closed forms and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.course import metrics, reference

ACCURACY = st.floats(0, 1, width=32)
MATRICES = st.integers(2, 6).flatmap(lambda n: arrays(np.float64, (n, n), elements=ACCURACY))
DIAGONALS = arrays(np.float64, 8, elements=st.floats(0, 100).map(lambda v: 0.0 if v < 1e-3 else v))


@given(MATRICES)
@settings(max_examples=40, deadline=None)
def test_the_metrics_of_the_package_are_the_textbook_ones(R):
    R = np.ascontiguousarray(R)
    for textbook, fast in (
        (reference.average_accuracy, metrics.average_accuracy),
        (reference.forgetting, metrics.forgetting),
        (reference.backward_transfer, metrics.backward_transfer),
    ):
        assert fast(R) == pytest.approx(textbook(torch.from_numpy(R)), abs=1e-12)


@given(DIAGONALS, DIAGONALS)
@settings(max_examples=40, deadline=None)
def test_the_overlap_of_the_package_is_the_textbook_one(F1, F2):
    if not F1.any() or not F2.any():
        return
    textbook = reference.fisher_overlap(torch.from_numpy(F1.copy()), torch.from_numpy(F2.copy()))
    assert metrics.fisher_overlap(F1, F2) == pytest.approx(textbook.item(), abs=1e-9)


def test_the_overlap_is_the_bhattacharyya_coefficient():
    F1, F2 = torch.rand(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = ((F1 / F1.sum()) * (F2 / F2.sum())).sqrt().sum()
    assert reference.fisher_overlap(F1, F2).item() == pytest.approx(product.item())


def test_what_was_never_forgotten_counts_as_backward_transfer():
    R = torch.tensor([[0.5, 0.1], [0.7, 0.9]])
    assert reference.average_accuracy(R) == pytest.approx(0.8)
    assert reference.forgetting(R) == pytest.approx(-0.2)
    assert reference.backward_transfer(R) == pytest.approx(0.2)


def test_the_descent_ends_at_the_weighted_mean_of_both_optima():
    anchor = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    target = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    fisher = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    lam, lr = 4.0, 0.1
    theta = reference.descend_with_ewc(lambda t: t - target, anchor, fisher, lam, lr, 400)
    # A gradient step and a proximal step stand still where the gradients of both terms cancel.
    optimum = (target + lam * fisher * anchor) / (1 + lam * fisher)
    torch.testing.assert_close(theta, optimum, atol=1e-12, rtol=0)


def test_a_descent_of_no_steps_is_a_copy_of_the_anchor():
    anchor = torch.ones(2)
    reference.descend_with_ewc(lambda t: t, anchor, torch.ones(2), 1.0, 0.1, steps=0).zero_()
    assert anchor.tolist() == [1.0, 1.0]


def test_the_descent_takes_the_steps_of_the_ewc_class():
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    anchor = model.weight.detach().clone().flatten()
    fisher = torch.tensor([0.1, 1.0, 0.0], dtype=torch.float64)
    ewc = EWC(model, lam=3.0)
    ewc.merge({"weight": fisher.view(1, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(15):
        optimizer.zero_grad()
        ((model(x) - 1) ** 2).mean().backward()
        optimizer.step()
        ewc.proximal_step_(0.1)
    theta = reference.descend_with_ewc(
        lambda t: 2 * x.T @ (x @ t - 1) / len(x), anchor, fisher, 3.0, 0.1, 15
    )
    torch.testing.assert_close(model.weight.detach().flatten(), theta)
