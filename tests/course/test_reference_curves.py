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
from ewc_tutorial.course.exercises import runs

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


RIGHT = [[0.95, 0.1, 0.1], [0.85, 0.9, 0.1], [0.7, 0.8, 0.9]]
WRONG = {
    0: [[0.95, 0.1, 0.1], [0.6, 0.95, 0.1], [0.4, 0.6, 0.95]],
    1: [[0.95, 0.1, 0.1], [0.85, 0.9, 0.1], [0.85, 0.4, 0.95]],
    2: [[0.95, 0.1, 0.1], [0.95, 0.15, 0.1], [0.95, 0.15, 0.1]],
    3: [[0.95, 0.95, 0.95], [0.85, 0.85, 0.85], [0.6, 0.6, 0.6]],
}


@pytest.mark.parametrize("bug", WRONG)
@pytest.mark.parametrize("guilty", range(3))
def test_the_bug_of_a_run_is_read_off_its_matrix(bug, guilty):
    R = torch.tensor([WRONG[bug] if run == guilty else RIGHT for run in range(3)])
    assert reference.run_and_bug(R) == (guilty, bug)


def test_three_runs_without_a_bug_are_an_error():
    with pytest.raises(ValueError, match="R must hold a run with one of the four bugs"):
        reference.run_and_bug(torch.tensor([RIGHT] * 3))


@pytest.mark.slow
@pytest.mark.parametrize("bug", range(len(runs.BUGS)))
def test_each_bug_of_a_real_run_shows_where_it_should(bug):
    """Held against the right run of the same seed: the same tasks, weights and batches."""
    R, right = runs.accuracy_matrix(3, bug).numpy(), runs.accuracy_matrix(3).numpy()
    assert R[0, 0] == right[0, 0]  # until the first task is learned nothing is wrong
    worse = right - R
    if bug == 0:
        assert worse[1, 0] > 0.1
    elif bug == 1:
        np.testing.assert_array_equal(R[1], right[1])
        assert worse[2, 1] > 0.1
    elif bug == 2:
        assert R[1:, 1:].max() < 0.5 < R[:, 0].min()
    else:
        assert (np.ptp(R, axis=1) == 0).all()
        np.testing.assert_array_equal(R.diagonal(), right.diagonal())


@pytest.mark.slow
def test_three_runs_are_two_right_ones_and_the_wrong_one_somewhere():
    places = {
        int((trio[:, 1:, 1:].amax((1, 2)) < 0.5).nonzero().item())
        for trio in (runs.three_runs(seed, 2) for seed in range(4))
    }
    assert len(places) > 1
