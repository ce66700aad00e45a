"""The textbook functions of notebook 01 against torch.distributions and autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, MultivariateNormal, kl_divergence

from ewc_tutorial.course import reference


def draw(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def log_p(theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return Bernoulli(logits=x @ theta).log_prob(y)


@pytest.mark.parametrize("D", [1, 2, 5])
def test_kl_of_gaussians_is_that_of_torch(D):
    means, roots = draw(2, D, seed=D), draw(2, D, D, seed=D + 10)
    P, Q = roots @ roots.mT + torch.eye(D, dtype=torch.float64)
    expected = kl_divergence(
        MultivariateNormal(means[0], precision_matrix=P),
        MultivariateNormal(means[1], precision_matrix=Q),
    )
    found = reference.gaussian_kl(means[0], P, means[1], Q)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert abs(reference.gaussian_kl(means[0], P, means[0], P)) < 1e-12


@pytest.mark.parametrize(("D", "N", "tau"), [(2, 7, 0.3), (3, 20, 1.7), (1, 1, 0.1)])
def test_laplace_precision_is_the_hessian_of_the_negative_log_posterior(D, N, tau):
    theta, x, y = draw(D, seed=1), draw(N, D, seed=2), (draw(N, seed=3) > 0).double()
    prior = MultivariateNormal(
        torch.zeros(D, dtype=torch.float64),
        precision_matrix=tau * torch.eye(D, dtype=torch.float64),
    )
    expected = torch.autograd.functional.hessian(
        lambda at: -log_p(at, x, y).sum() - prior.log_prob(at), theta
    )
    found = reference.laplace_precision(theta, x, tau)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("D", "N"), [(2, 8), (4, 11), (1, 1)])
def test_logistic_fisher_is_the_mean_squared_score_over_the_models_own_labels(D, N):
    theta, x = draw(D, seed=4), draw(N, D, seed=5)
    expected = torch.zeros(D, dtype=torch.float64)
    for row in x:
        for label in torch.tensor([0.0, 1.0], dtype=torch.float64):
            score = torch.autograd.functional.jacobian(lambda at: log_p(at, row, label), theta)  # noqa: B023
            expected += log_p(theta, row, label).exp() * score.square() / N
    for y in (torch.zeros(N), torch.ones(N), torch.zeros(0)):
        found = reference.logistic_fisher(theta, x, y)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("D", [1, 2, 4])
def test_the_nearest_lambda_is_that_of_many_gradient_steps(D):
    """EWC and joint training as loops of gradient steps, each distance term by term."""
    F, H = (r @ r.mT + torch.eye(D, dtype=torch.float64) for r in draw(2, D, D, seed=D))
    theta_a, theta_b = draw(2, D, seed=D + 10)
    n_a, n_b, lambdas = 300, 100, torch.logspace(-2, 2, 9, dtype=torch.float64)

    def descend(gradient, stiffest: float):
        theta = theta_a.clone()
        for _ in range(6000):
            theta = theta - gradient(theta) / stiffest
        return theta

    pull = lambda theta: H @ (theta - theta_b)  # noqa: E731
    joint = descend(
        lambda t: n_a * F @ (t - theta_a) + n_b * pull(t), float((n_a * F + n_b * H).trace())
    )
    found = []
    for lam in lambdas.tolist():
        end = descend(
            lambda t, lam=lam: pull(t) + lam * F.diag() * (t - theta_a),
            float(H.trace() + lam * F.diag().sum()),
        )
        gap = (end - joint).tolist()
        P = (n_a * F + n_b * H).tolist()
        found.append(sum(gap[i] * P[i][j] * gap[j] for i in range(D) for j in range(D)))
    expected = lambdas[found.index(min(found))].item()
    assert reference.nearest_lambda(F, theta_a, H, theta_b, n_a, n_b, lambdas) == expected


def test_with_one_weight_the_nearest_lambda_is_that_of_bayes():
    F, H, lambdas = (torch.tensor([[v]]).double() for v in (3.0, 0.5, 0.0))
    a, b = torch.tensor([1.0]).double(), torch.tensor([-2.0]).double()
    lambdas = torch.tensor([0.1, 1.0, 2.5, 4.0, 50.0]).double()
    assert reference.nearest_lambda(F, a, H, b, 500, 200, lambdas) == 2.5
