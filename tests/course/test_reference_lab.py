"""The textbook functions of notebook 05 against SciPy and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ewc_tutorial.course import reference


@pytest.mark.parametrize("n_seeds", [2, 3, 8])
@pytest.mark.parametrize("seed", range(8))
def test_the_smallest_good_lambda_by_the_standard_error_of_scipy(n_seeds, seed):
    rng = np.random.default_rng(seed)
    lambdas = rng.permutation([0.0, 1.0, 3.0, 10.0, 30.0, 100.0])
    runs = rng.uniform(0.7, 0.8, (6, 1)) + 0.05 * rng.standard_normal((6, n_seeds))
    means = runs.mean(axis=1)
    limit = means.max() - stats.sem(runs[means.argmax()])
    expected = lambdas[means >= limit].min()
    found = reference.smallest_good_lambda(torch.from_numpy(lambdas), torch.from_numpy(runs))
    assert found == expected
    assert isinstance(found, float)


def test_the_best_lambda_is_good_when_its_runs_do_not_scatter():
    accuracies = torch.tensor([[0.5, 0.5], [0.75, 0.75], [0.625, 0.625]])
    assert reference.smallest_good_lambda(torch.tensor([1.0, 2.0, 3.0]), accuracies) == 2.0


def test_one_lambda_for_each_row_of_accuracies():
    with pytest.raises(ValueError, match="zip"):
        reference.smallest_good_lambda(torch.tensor([1.0, 2.0]), torch.ones(3, 2))


@pytest.mark.parametrize("smaller_by", [1.0, 4.5, 32.0])
@pytest.mark.parametrize("felt", [0.0, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 250.0, 1000.0])
def test_a_prediction_is_numpys_interpolation_in_log_lambda(felt, smaller_by):
    lambdas = np.array([0.0, 0.1, 1.0, 10.0, 1000.0])
    values = np.array([0.5, 0.55, 0.7, 0.9, 0.6])
    expected = (
        np.interp(felt, lambdas, values)
        if felt < 0.1
        else np.interp(np.log(felt), np.log(lambdas[1:]), values[1:])
    )
    grids = [(lambdas, values)] + ([(lambdas[1:], values[1:])] if felt >= 0.1 else [])
    for grid in grids:
        case = (*map(torch.from_numpy, grid), smaller_by, felt * smaller_by)
        assert float(reference.predicted_accuracy(*case)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lam", [0.05, 0.3])
def test_a_grid_in_single_precision_costs_no_digits(lam):
    lambdas = torch.tensor([0.0, 0.1, 0.7])
    values = torch.tensor([0.5, 0.9, 0.6], dtype=torch.float64)
    found = reference.predicted_accuracy(lambdas, values, 1.0, lam)
    exact = reference.predicted_accuracy(lambdas.double(), values, 1.0, lam)
    assert float(found) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("felt", [0.5, 101.0])
def test_what_the_sweep_does_not_reach_is_an_error(felt):
    grid = torch.tensor([1.0, 10.0, 100.0])
    words = f"^lam / smaller_by must be in 1.0 to 100.0, not {felt}.$"
    with pytest.raises(ValueError, match=words):
        reference.predicted_accuracy(grid, grid.neg(), 2.0, 2 * felt)
