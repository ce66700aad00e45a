"""Exercises of notebook 01."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ewc_tutorial.course import reference
from ewc_tutorial.course.exercises.core import AUTOGRAD, Exercise


def _numbers(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=_numbers(seed), dtype=torch.float64)


# --- KL between two Gaussians -----------------------------------------------------------------


def _gaussian_pairs(seed: int = 0) -> list[tuple[Any, ...]]:
    cases = []
    for D in (1, 2, 3):
        roots = _randn(2, D, D, seed=100 * seed + D)
        eye = torch.eye(D, dtype=torch.float64)
        P, Q = roots @ roots.mT + eye * torch.tensor([0.5, 2.0])[:, None, None]
        means = _randn(2, D, seed=100 * seed + D + 10)
        cases.append((means[0], P, means[1], Q))
    return cases


def _terms(m_p: Tensor, P: Tensor, m_q: Tensor, Q: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    gap = m_q - m_p
    trace = torch.trace(Q @ torch.linalg.inv(P))
    return trace, gap @ Q @ gap, torch.logdet(P) - torch.logdet(Q), len(gap)


def _kl_without_half(m_p: Tensor, P: Tensor, m_q: Tensor, Q: Tensor) -> Tensor:
    trace, distance, log_volumes, D = _terms(m_p, P, m_q, Q)
    return trace - D + distance + log_volumes


def _kl_without_dimension(m_p: Tensor, P: Tensor, m_q: Tensor, Q: Tensor) -> Tensor:
    trace, distance, log_volumes, _ = _terms(m_p, P, m_q, Q)
    return (trace + distance + log_volumes) / 2


def _kl_with_flipped_volumes(m_p: Tensor, P: Tensor, m_q: Tensor, Q: Tensor) -> Tensor:
    trace, distance, log_volumes, D = _terms(m_p, P, m_q, Q)
    return (trace - D + distance - log_volumes) / 2


def _kl_in_metric_of_p(m_p: Tensor, P: Tensor, m_q: Tensor, Q: Tensor) -> Tensor:
    trace, _, log_volumes, D = _terms(m_p, P, m_q, Q)
    gap = m_q - m_p
    return (trace - D + gap @ P @ gap + log_volumes) / 2


def _kl_of_covariances(m_p: Tensor, P: Tensor, m_q: Tensor, Q: Tensor) -> Tensor:
    return reference.gaussian_kl(m_p, torch.linalg.inv(P), m_q, torch.linalg.inv(Q))


# --- The precision of a Laplace approximation -------------------------------------------------


def _posteriors(seed: int = 0) -> list[tuple[Any, ...]]:
    return [
        (_randn(D, seed=100 * seed + k), 1.5 * _randn(N, D, seed=100 * seed + k + 10), tau)
        for D, N, tau, k in ((2, 7, 0.25, 4), (2, 20, 2.0, 5), (3, 5, 0.5, 6))
    ]


def _data_part(theta: Tensor, x: Tensor) -> Tensor:
    return reference.laplace_precision(theta, x, 0.0)


def _eye(theta: Tensor) -> Tensor:
    return torch.eye(len(theta), dtype=theta.dtype)


def _precision_of_mean(theta: Tensor, x: Tensor, tau: float) -> Tensor:
    return _data_part(theta, x) / len(x) + tau * _eye(theta)


def _precision_with_variance(theta: Tensor, x: Tensor, tau: float) -> Tensor:
    return _data_part(theta, x) + _eye(theta) / tau


def _precision_with_prior_per_sample(theta: Tensor, x: Tensor, tau: float) -> Tensor:
    return _data_part(theta, x) + len(x) * tau * _eye(theta)


def _precision_inverted(theta: Tensor, x: Tensor, tau: float) -> Tensor:
    return torch.linalg.inv(reference.laplace_precision(theta, x, tau))


def _precision_unweighted(theta: Tensor, x: Tensor, tau: float) -> Tensor:
    return x.mT @ x + tau * _eye(theta)


def _precision_with_p(theta: Tensor, x: Tensor, tau: float) -> Tensor:
    p = torch.sigmoid(x @ theta)
    return x.mT @ (p[:, None] * x) + tau * _eye(theta)


def _precision_diagonal(theta: Tensor, x: Tensor, tau: float) -> Tensor:
    return reference.laplace_precision(theta, x, tau).diag()


# --- The diagonal Fisher information ----------------------------------------------------------


def _logistic_data(seed: int = 0) -> list[tuple[Any, ...]]:
    cases = []
    for D, N, k in ((2, 8, 7), (2, 30, 8), (4, 11, 9)):
        first = 100 * seed + k
        theta, x = _randn(D, seed=first), _randn(N, D, seed=first + 10)
        y = (torch.rand(N, generator=_numbers(first + 20), dtype=torch.float64) < 0.5).double()
        cases.append((theta, x, y))
    return cases


def _fisher_summed(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return len(x) * reference.logistic_fisher(theta, x, y)


def _scores(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (y - torch.sigmoid(x @ theta))[:, None] * x


def _fisher_empirical(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _scores(theta, x, y).square().mean(0)


def _fisher_empirical_summed(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _scores(theta, x, y).square().sum(0)


def _fisher_batched(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _scores(theta, x, y).mean(0).square()


def _fisher_argmax(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _scores(theta, x, (x @ theta > 0).to(x)).square().mean(0)


def _fisher_linear_in_x(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(x @ theta)
    return ((p * (1 - p))[:, None] * x).mean(0)


def _fisher_matrix(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _data_part(theta, x) / len(x)


# --- The λ of a diagonal ------------------------------------------------------------------------


def _two_parabolas(seed: int = 0) -> list[tuple[Any, ...]]:
    """Return pairs of tasks: weights that act together, that work against each other, and any."""
    generator = _numbers(1000 + seed)
    lambdas = torch.logspace(-3, 3, 97, dtype=torch.float64)
    cases: list[tuple[Any, ...]] = []
    for D, together in ((4, 1.0), (4, -1.0), (3, 0.0), (5, 0.0)):
        roots = torch.randn(2, D, 2 * D, generator=generator, dtype=torch.float64)
        F, H = roots @ roots.mT / (2 * D)
        scale = torch.randn(D, generator=generator, dtype=torch.float64).exp()
        theta_a, theta_b = torch.randn(2, D, generator=generator, dtype=torch.float64)
        if together:  # one direction, in which the effects add up, is stiff, or else soft
            v = torch.ones(D, 1, dtype=torch.float64) / D**0.5
            soft = torch.eye(D, dtype=torch.float64) - 0.8 * v @ v.mT
            F = F + 20 * v @ v.mT if together > 0 else 5 * soft @ F @ soft
            theta_b = theta_a + 2 * v[:, 0] + 0.3 * theta_b
        F = scale[:, None] ** 0.5 * F * scale**0.5  # important weights and others
        n_a, n_b = torch.randint(100, 1000, (2,), generator=generator).tolist()
        cases.append((F, theta_a, H, theta_b, n_a, n_b, n_a / n_b * lambdas))
    return cases


def _nearest(
    spring: Callable[[Tensor], Tensor] = lambda F: torch.diag(F.diag()),
    metric: Callable[[Tensor, Tensor], Tensor] = lambda A, B: A + B,
    counts: bool = True,
    target: str = "joint",
    index: bool = False,
) -> Callable[..., float]:
    """Return a ``nearest_lambda`` with another spring, metric, sample count, target or result."""

    def choose(
        F: Tensor, theta_a: Tensor, H: Tensor, theta_b: Tensor, n_a: int, n_b: int, lambdas: Tensor
    ) -> float:
        A, B = (n_a * F, n_b * H) if counts else (F, H)
        joint = torch.linalg.solve(A + B, A @ theta_a + B @ theta_b)
        goal = theta_a if target == "A" else joint
        springs = lambdas[:, None, None] * spring(F)
        pulls = H @ theta_b + springs @ theta_a
        gaps = torch.linalg.solve(H + springs, pulls[..., None])[..., 0] - goal
        at = int(torch.einsum("li,ij,lj->l", gaps, metric(A, B), gaps).argmin())
        return at if index else float(lambdas[at])

    return choose


EXERCISES: dict[str, Exercise] = {
    "gaussian_kl": Exercise(
        answer=reference.gaussian_kl,
        cases=_gaussian_pairs,
        mistakes={
            "This is KL(q ‖ p): p and q have changed places. The expectation is taken under p.": (
                lambda m_p, P, m_q, Q: reference.gaussian_kl(m_q, Q, m_p, P)
            ),
            "This is twice the KL: the factor ½ is missing.": _kl_without_half,
            "The − D is missing: this KL of a Gaussian to itself would be D/2, not zero.": (
                _kl_without_dimension
            ),
            "The log-determinants have the wrong sign. The narrower p is, the larger log det P "
            "and the KL.": _kl_with_flipped_volumes,
            "The distance between the means is measured with P. It is q that is surprised, so it "
            "takes Q.": _kl_in_metric_of_p,
            "You took precisions for covariances: the one is the inverse of the other.": (
                _kl_of_covariances
            ),
        },
    ),
    "laplace_precision": Exercise(
        answer=reference.laplace_precision,
        cases=_posteriors,
        forbidden=AUTOGRAD,
        mistakes={
            "The data's part is a mean over the samples. A posterior multiplies likelihoods, so "
            "its precision needs the sum: N times as much.": _precision_of_mean,
            "The prior is missing: its precision τ belongs on the diagonal.": (
                lambda theta, x, tau: _data_part(theta, x)
            ),
            "τ is the prior's precision already; you added 1/τ, its variance.": (
                _precision_with_variance
            ),
            "The prior is counted once per sample. It enters the posterior once.": (
                _precision_with_prior_per_sample
            ),
            "This is the covariance, the inverse of the precision.": _precision_inverted,
            "The weights p(1 − p) are missing: this is the Hessian of a linear regression.": (
                _precision_unweighted
            ),
            "The weights are p, not p(1 − p): a sample that the model is sure about, either way, "
            "has no curvature.": _precision_with_p,
            "This is the diagonal alone; the question was for the whole matrix.": (
                _precision_diagonal
            ),
        },
    ),
    "logistic_fisher": Exercise(
        answer=reference.logistic_fisher,
        cases=_logistic_data,
        mistakes={
            "This is the sum over the samples. In this course F is their mean; N_A goes into λ.": (
                _fisher_summed
            ),
            "You took the residual y − p at the data's labels: that is the empirical Fisher. The "
            "Fisher information takes the expectation over the model's own labels, which turns "
            "(y − p)² into p(1 − p).": _fisher_empirical,
            "Two slips: the labels are the data's (the empirical Fisher), and the samples are "
            "summed, not averaged.": _fisher_empirical_summed,
            "You averaged the gradients first and squared then. Near an optimum they cancel, and "
            "almost nothing is left: square each sample's score before the mean.": _fisher_batched,
            "You took the label that the model finds likeliest, not the expectation over both.": (
                _fisher_argmax
            ),
            "x enters once, not squared: the score is (label − p) x, and the whole of it is "
            "squared.": _fisher_linear_in_x,
            "This is the whole matrix; the question was for its diagonal.": _fisher_matrix,
        },
    ),
    "nearest_lambda": Exercise(
        answer=reference.nearest_lambda,
        cases=_two_parabolas,
        mistakes={
            "That is N_A/N_B, right for the whole F. EWC has kept its diagonal only, and which λ "
            "suits that, the experiment tells.": (
                lambda F, theta_a, H, theta_b, n_a, n_b, lambdas: n_a / n_b
            ),
            "Your springs are all alike, as in L2. EWC has the diagonal of F.": _nearest(
                lambda F: F.diag().mean() * torch.eye(len(F), dtype=F.dtype)
            ),
            "Your distance treats all directions alike. Measure it with the joint precision "
            "N_A F + N_B H, in which a stiff direction counts more.": _nearest(
                metric=lambda A, B: torch.eye(len(A), dtype=A.dtype)
            ),
            "Your distance is what the end costs A. The joint posterior has the precision of both, "
            "N_A F + N_B H.": _nearest(metric=lambda A, B: A),
            "The numbers of samples are missing in the joint optimum and its precision: F and H "
            "are means.": _nearest(counts=False),
            "That is the λ that ends nearest to A's own optimum. All data together would end "
            "between the two.": _nearest(target="A"),
            "That is the index of the λ: return the λ that stands there.": _nearest(index=True),
        },
    ),
}
