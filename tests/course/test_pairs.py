"""The study over many pairs against the same, one pair and one λ at a time."""

from __future__ import annotations

import math

import pytest
import torch

from ewc_tutorial.course import bayes, pairs

RATIO = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
N_A, N_B, TAU = 40, 20, 0.25


@pytest.fixture(scope="module")
def study():
    return pairs.study_pairs((1.0, 0.5), RATIO, n_pairs=3, n_a=N_A, n_b=N_B, precision=TAU)


def loss(theta, x, y):
    """Minus the log likelihood, sample by sample."""
    total = 0.0
    for row, label in zip(x.tolist(), y.tolist(), strict=True):
        z = sum(t * value for t, value in zip(theta, row, strict=True))
        total += math.log1p(math.exp(-z if label else z))
    return total


def fisher_by_loop(theta, x):
    F = [[0.0, 0.0], [0.0, 0.0]]
    for row in x.tolist():
        p = 1 / (1 + math.exp(-sum(t * v for t, v in zip(theta, row, strict=True))))
        for i in range(2):
            for j in range(2):
                F[i][j] += p * (1 - p) * row[i] * row[j] / len(x)
    return torch.tensor(F, dtype=torch.float64)


def minimum(objective):
    """Pattern search: slow, and without a derivative."""
    at, width = [0.0, 0.0], 1.0
    best = objective(at)
    while width > 1e-7:
        for move in ((width, 0), (-width, 0), (0, width), (0, -width)):
            trial = [at[0] + move[0], at[1] + move[1]]
            value = objective(trial)
            if value < best:
                at, best = trial, value
                break
        else:
            width /= 2
    return torch.tensor(at, dtype=torch.float64)


def test_one_pair_by_hand(study):
    x_a, y_a = bayes.toy_task(N_A, seed=1, angle=15)
    x_b, y_b = bayes.toy_task(N_B, seed=1001, angle=45, weights=(1.0, 0.5), spread=(1.0, 1.0))
    prior = lambda theta: TAU / 2 * (theta[0] ** 2 + theta[1] ** 2)  # noqa: E731
    start = minimum(lambda t: loss(t, x_a, y_a) + prior(t))
    alone = minimum(lambda t: loss(t, x_b, y_b) + prior(t))
    goal = minimum(lambda t: loss(t, x_a, y_a) + loss(t, x_b, y_b) + prior(t))
    P = (N_A + N_B) * fisher_by_loop(goal.tolist(), torch.cat([x_a, x_b])) + TAU * torch.eye(2)
    F = fisher_by_loop(start.tolist(), x_a)

    def distance(theta):
        return math.sqrt((theta - goal) @ P @ (theta - goal))

    def penalised(matrix, lam):
        def objective(theta):
            gap = torch.tensor(theta, dtype=torch.float64) - start
            return loss(theta, x_b, y_b) / N_B + lam / 2 * (gap @ matrix @ gap).item()

        return distance(minimum(objective))

    lam = N_A / N_B
    assert study.alone[1].item() == pytest.approx(distance(alone), abs=1e-4)
    kinds = {
        "full": F + TAU / N_A * torch.eye(2),
        "diagonal": F.diag().diag(),
        "isotropic": F.trace() / 2 * torch.eye(2, dtype=torch.float64),
    }
    for kind, matrix in kinds.items():
        assert study.at(kind)[1].item() == pytest.approx(penalised(matrix, lam), abs=1e-4)
    # Across A's ellipse is the stiff direction; each pull is measured in A's own deviations.
    stretch, directions = torch.linalg.eigh(F)
    pull = (alone - start) @ directions
    expected = abs(pull[1] * stretch[1].sqrt()) / abs(pull[0] * stretch[0].sqrt())
    assert study.across[1].item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_best_ratio_is_where_the_distance_is_least(study):
    for kind, distance in study.distance.items():
        assert distance.shape == (3, 3)
        for best, row in zip(study.best[kind], distance, strict=True):
            assert row[best == RATIO] == row.min()
