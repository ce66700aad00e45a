"""Metrics against hand-computed matrices and properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ewc_tutorial.course.metrics import (
    average_accuracy,
    backward_transfer,
    disagreement,
    fisher_overlap,
    forgetting,
    forward_transfer,
    mean_kl,
)

R = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 1.0]]


def test_by_hand():
    assert average_accuracy(R) == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    assert forgetting(R) == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert backward_transfer(R) == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert forward_transfer(R, [0.1, 0.15, 0.1]) == pytest.approx(((0.2 - 0.15) + (0.3 - 0.1)) / 2)


def test_forgetting_takes_the_best_earlier_stage_not_the_diagonal():
    better_later = [[0.5, 0.0, 0.0], [0.9, 0.8, 0.0], [0.4, 0.8, 0.9]]
    assert forgetting(better_later) == pytest.approx((0.9 - 0.4 + 0.0) / 2)


def test_a_single_task_forgets_and_transfers_nothing():
    assert (
        forgetting([[0.9]]) == backward_transfer([[0.9]]) == forward_transfer([[0.9]], [0.1]) == 0
    )


diagonals = arrays(np.float64, 6, elements=st.floats(0, 1e3)).filter(lambda F: F.sum() > 1e-6)


@given(diagonals, diagonals, st.floats(1e-3, 1e3))
def test_overlap_is_the_sum_of_geometric_means(F1, F2, scale):
    # 1 − ½ Σ (√a − √b)² with Σa = Σb = 1 is Σ √(ab).
    expected = np.sqrt(F1 / F1.sum() * F2 / F2.sum()).sum()
    assert fisher_overlap(F1, F2) == pytest.approx(expected, abs=1e-9)
    assert fisher_overlap(scale * F1, F2) == pytest.approx(fisher_overlap(F2, F1), abs=1e-9)
    assert fisher_overlap(F1, F1) == pytest.approx(1)


def test_disjoint_diagonals_overlap_nowhere_and_dicts_are_one_diagonal():
    one = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([[0.0]])}
    other = {"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([[3.0]])}
    assert fisher_overlap(one, other) == pytest.approx(0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: average_accuracy([[1, 2]]), "R must be a square accuracy matrix"),
        (lambda: forward_transfer(R, [0.1]), r"before must have shape \(3,\)"),
        (lambda: fisher_overlap([0, 0], [1, 1]), "F1 must be finite, not negative, and not all"),
        (lambda: fisher_overlap([1, 1], [1, -1]), "F2 must be finite"),
        (lambda: fisher_overlap([1, 1], [1]), "as many entries, not 2 and 1"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_disagreement_counts_other_classes():
    p = [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 5.0], [1.0, 0.0, 0.0]]
    q = [[9.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 0.1], [0.0, 1.0, 0.0]]
    assert disagreement(p, q) == 0.5
    with pytest.raises(ValueError, match=r"one shape \(N, C\), not \(4, 3\) and \(2, 3\)"):
        disagreement(p, q[:2])


def test_mean_kl_is_that_of_torch_distributions():
    g = torch.Generator().manual_seed(0)
    p, q = 20 * torch.randn(2, 7, 5, generator=g, dtype=torch.float64)
    categorical = torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(categorical(logits=p), categorical(logits=q))
    assert mean_kl(p, q) == pytest.approx(expected.mean().item(), rel=1e-10)
    assert mean_kl(p, p + 100) == pytest.approx(0, abs=1e-12)
