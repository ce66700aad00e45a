"""The two-weight world: logistic regression so small that Bayes' rule can be carried out exactly.

    p(y = 1 | x, θ) = σ(θᵀx),      y in {0, 1},      prior N(0, I/τ),      no bias.

With two weights a posterior is a picture: it can be computed on a grid, and every approximation on
the way to EWC can be held against it. Everything is in float64. Shapes: inputs ``x`` ``(N, D)``,
labels ``y`` ``(N,)`` in 0 and 1, weights ``(..., D)``; D is two in the notebook and any number here
except for grids. Leading dimensions of :func:`optimum` are independent problems.

Sources: MacKay 2003, *Information Theory, Inference, and Learning Algorithms*, chapters 27
(Laplace's method) and 41 (learning as inference); Kirkpatrick et al. 2017, equations 1–3;
Huszár 2018, *Note on the quadratic penalties in elastic weight consolidation*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

KINDS = ("full", "diagonal", "isotropic")


@dataclass(frozen=True)
class Gaussian:
    """N(mean, precision⁻¹), by its precision matrix: precisions add up when tasks do.

    Attributes:
        mean: (..., D).
        precision: (..., D, D), positive definite.
    """

    mean: Tensor
    precision: Tensor

    @property
    def covariance(self) -> Tensor:
        return torch.linalg.inv(self.precision)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return log N(θ; mean, precision⁻¹) for weights ``(..., D)``."""
        offset = theta - self.mean
        return 0.5 * (
            torch.logdet(self.precision)
            - offset.shape[-1] * math.log(2 * math.pi)
            - _quadratic(self.precision, offset)
        )


def prior(precision: float = 0.25, n_weights: int = 2) -> Gaussian:
    """Return the prior N(0, I/τ) with τ = ``precision``.

    Raises:
        ValueError: the precision is not a finite positive number.
    """
    if not 0 < precision < math.inf:
        raise ValueError(f"precision must be a finite positive number, not {precision!r}.")
    eye = torch.eye(n_weights, dtype=torch.float64)
    return Gaussian(torch.zeros(n_weights, dtype=torch.float64), precision * eye)


def toy_task(
    n_samples: int,
    angle: float,
    weights: tuple[float, float] = (1.0, -0.5),
    spread: tuple[float, float] = (2.0, 0.3),
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draw a task of the two-weight world: inputs ``(N, 2)`` and labels ``(N,)``, both float64.

    Args:
        n_samples: N.
        angle: direction, in degrees, in which the inputs are spread most. That direction of weight
            space is the one that the task determines best.
        weights: the labels are drawn from the logistic regression with these weights.
        spread: standard deviations of the inputs along that direction and across it.
        seed: of the draws. The first N samples are the same whatever ``n_samples`` is.

    Raises:
        ValueError: ``n_samples`` is not a positive whole number.
    """
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
        raise ValueError(f"n_samples must be a positive whole number, not {n_samples!r}.")
    generator = torch.Generator().manual_seed(seed)
    # Three numbers a sample, in blocks: how many are drawn at a time changes what comes out.
    blocks = [
        torch.rand(256, 4, generator=generator, dtype=torch.float64)
        for _ in range(math.ceil(n_samples / 256))
    ]
    u = torch.cat(blocks)[:n_samples]
    radius, turn = (-2 * torch.log1p(-u[:, 0])).sqrt(), 2 * math.pi * u[:, 1]  # Box and Muller
    z = torch.stack([spread[0] * radius * turn.cos(), spread[1] * radius * turn.sin()], dim=1)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x = z @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    y = (u[:, 2] < torch.sigmoid(x @ torch.tensor(weights, dtype=torch.float64))).double()
    return x, y


# --- The model --------------------------------------------------------------------------------


def log_likelihood(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return log p(D given θ) = Σ_n [y_n θᵀx_n − log(1 + exp θᵀx_n)] for weights ``(..., D)``.

    A *sum* over the samples; the course's L is minus this, divided by N.
    """
    return _log_p(theta @ x.mT, y).sum(-1)


def fisher_matrix(theta: Tensor, x: Tensor) -> Tensor:
    """Return F = (1/N) Σ_n p_n (1 − p_n) x_n x_nᵀ, ``(..., D, D)``, p_n = σ(θᵀx_n).

    For logistic regression this is the Hessian of the mean loss, too, whatever the labels are
    (Martens 2020, section 9). Its diagonal is the ``exact`` estimator of ``fisher_diagonal``.
    """
    p = torch.sigmoid((x @ theta.unsqueeze(-1)).squeeze(-1))
    return x.mT @ ((p * (1 - p)).unsqueeze(-1) * x) / x.shape[-2]


def optimum(x: Tensor, y: Tensor, quadratic: Gaussian, tolerance: float = 1e-10) -> Tensor:
    """Return the minimiser of −log p(D given θ) + ½ (θ − μ)ᵀ Λ (θ − μ), ``(..., D)``.

    With the prior as the quadratic this is the MAP estimate; with a Laplace approximation of task
    A's posterior it is where training on B ends. The method is Newton's, with the step halved
    while the objective does not fall. The objective is strictly convex, so there is one answer.

    Args:
        x, y: ``(..., N, D)`` and ``(..., N)``.
        quadratic: mean μ ``(..., D)`` and precision Λ ``(..., D, D)``; the leading dimensions of
            all four broadcast.
        tolerance: on the largest entry of the last Newton step.

    Raises:
        ValueError: labels are not 0 and 1, or shapes do not fit.
        RuntimeError: no finite minimiser was found. It need not exist where Λ is singular.
    """
    _check_data(x, y)
    N, D = x.shape[-2:]
    leading = torch.broadcast_shapes(
        x.shape[:-2], y.shape[:-1], quadratic.mean.shape[:-1], quadratic.precision.shape[:-2]
    )
    precision = quadratic.precision

    def objective(theta: Tensor) -> Tensor:
        logits = (x @ theta.unsqueeze(-1)).squeeze(-1)
        return 0.5 * _quadratic(precision, theta - quadratic.mean) - _log_p(logits, y).sum(-1)

    theta = quadratic.mean.expand(*leading, D).clone()
    value = objective(theta)
    for _ in range(100):
        p = torch.sigmoid((x @ theta.unsqueeze(-1)).squeeze(-1))
        gradient = (x.mT @ (p - y).unsqueeze(-1)).squeeze(-1)
        gradient = gradient + (precision @ (theta - quadratic.mean).unsqueeze(-1)).squeeze(-1)
        hessian = N * fisher_matrix(theta, x) + precision
        step, singular = torch.linalg.solve_ex(hessian, gradient.unsqueeze(-1))
        if singular.any():
            break
        step = step.squeeze(-1)
        if step.abs().max() < tolerance:
            return theta - step
        for _ in range(40):
            trial = objective(theta - step)
            worse = trial > value + 1e-12 * (1 + value.abs())  # rounding is not a rise
            if not worse.any():
                break
            step = torch.where(worse.unsqueeze(-1), step / 2, step)
        theta, value = theta - step, trial
    raise RuntimeError(
        "No finite optimum was found: without a positive definite precision there need not be one "
        "(a line may separate the labels, or the inputs may leave a direction open)."
    )


# --- Gaussian approximations ------------------------------------------------------------------


def laplace(theta: Tensor, x: Tensor, before: Gaussian, kind: str = "full") -> Gaussian:
    """Return the Laplace approximation at the optimum ``theta`` of a posterior.

    The Gaussian with the posterior's mode as its mean and the Hessian of −log posterior there as
    its precision (MacKay 2003, chapter 27),

        P = N·F(θ) + Λ,      Λ the precision of the distribution ``before`` the data.

    Args:
        theta: (D,), the mode.
        x: (N, D), the inputs; for logistic regression the Hessian does not depend on the labels.
        before: the prior, or what an earlier task left.
        kind: ``full``: P. ``diagonal``: its diagonal alone, as in EWC. ``isotropic``: the mean of
            its diagonal times the identity, as in L2. Of all diagonal and of all isotropic
            Gaussians q these are the ones with the smallest KL(q ‖ N(θ, P⁻¹)).

    Raises:
        ValueError: unknown kind.
    """
    return Gaussian(theta, simplify(len(x) * fisher_matrix(theta, x) + before.precision, kind))


def simplify(precision: Tensor, kind: str) -> Tensor:
    """Return the precision ``(D, D)``, its diagonal part, or the isotropic part of that.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}.")
    if kind == "full":
        return precision
    diagonal = precision.diagonal(dim1=-2, dim2=-1)
    if kind == "isotropic":
        diagonal = diagonal.mean(-1, keepdim=True).expand_as(diagonal)
    return torch.diag_embed(diagonal)


def gaussian_kl(p: Gaussian, q: Gaussian) -> Tensor:
    """Return KL(p ‖ q) in nats, with precisions P and Q and means m_p and m_q,

    ½ [ tr(Q P⁻¹) − D + (m_q − m_p)ᵀ Q (m_q − m_p) + log det P − log det Q ].
    """
    # With Cholesky factors, so that nothing is inverted: tr(Q P⁻¹) = ‖L_P⁻¹ L_Q‖².
    factor_p, factor_q = torch.linalg.cholesky(p.precision), torch.linalg.cholesky(q.precision)
    ratio = torch.linalg.solve_triangular(factor_p, factor_q, upper=False)
    log_dets = [f.diagonal(dim1=-2, dim2=-1).log().sum(-1) for f in (factor_p, factor_q)]
    D = p.mean.shape[-1]
    return (
        0.5 * (ratio.square().sum((-2, -1)) - D + _quadratic(q.precision, q.mean - p.mean))
        + log_dets[0]
        - log_dets[1]
    )


# --- Exact posteriors on a grid ---------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """A regular grid of weights, rectangular or sheared.

    Attributes:
        points: (G, G, 2), the weights at the nodes.
        area: of one cell.
    """

    points: Tensor
    area: float

    @classmethod
    def rectangle(
        cls, first: tuple[float, float], second: tuple[float, float], n_points: int = 201
    ) -> Grid:
        """Return the grid over the two ranges of weights; for pictures."""
        ticks = [torch.linspace(*ends, n_points, dtype=torch.float64) for ends in (first, second)]
        points = torch.stack(torch.meshgrid(*ticks, indexing="xy"), dim=-1)
        return cls(points, float((ticks[0][1] - ticks[0][0]) * (ticks[1][1] - ticks[1][0])))

    @classmethod
    def around(cls, gaussian: Gaussian, width: float = 9.0, n_points: int = 101) -> Grid:
        """Return the grid that fits a Gaussian: ± ``width`` standard deviations; for integrals."""
        square = cls.rectangle((-width, width), (-width, width), n_points)
        root = torch.linalg.cholesky(gaussian.covariance)
        return cls(gaussian.mean + square.points @ root.mT, square.area * float(root.det()))

    def normalise(self, log_density: Tensor) -> Tensor:
        """Subtract the constant that makes the density ``(G, G)`` sum to one over the grid.

        log Z is computed as a log-sum-exp, so that nothing underflows. Between smooth densities
        that have vanished at the border the sum equals the integral to many digits.
        """
        return log_density - log_density.flatten().logsumexp(0) - math.log(self.area)

    def posterior(self, before: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return log p(θ given D) ``(G, G)``: Bayes' rule, exactly, at every node.

        Args:
            before: (G, G), log density before the data: of the prior, or of the posterior of an
                earlier task.
            x, y: the data D, (N, 2) and (N,).
        """
        _check_data(x, y)
        return self.normalise(before + log_likelihood(self.points, x, y))

    def expectation(self, log_density: Tensor, values: Tensor) -> Tensor:
        """Return ∫ p(θ) f(θ) dθ for values f ``(G, G)`` or ``(G, G, ...)``."""
        weights = log_density.exp() * self.area
        return torch.einsum("ij,ij...->...", weights, values)

    def kl(self, log_p: Tensor, log_q: Tensor) -> float:
        """Return KL(p ‖ q) = ∫ p (log p − log q) in nats, from two log densities ``(G, G)``."""
        return float(self.expectation(log_p, log_p - log_q))


# --- EWC --------------------------------------------------------------------------------------


def ewc_optimum(
    x: Tensor, y: Tensor, anchor: Tensor, fisher: Tensor, lam: float | Tensor
) -> Tensor:
    """Return the minimiser of L_B(θ) + (λ/2) (θ − θ*_A)ᵀ F (θ − θ*_A), ``(..., D)``.

    L_B is the *mean* loss over task B. Multiplied by N_B this is the objective of :func:`optimum`
    with the precision λ·N_B·F. The diagonal of F gives EWC (Kirkpatrick et al. 2017, equation 3),
    a multiple of the identity L2, all of F the quadratic that EWC approximates (Huszár 2018).

    Args:
        x, y: task B, ``(..., N_B, D)`` and ``(..., N_B)``.
        anchor: θ*_A, ``(..., D)``.
        fisher: F as a matrix, ``(..., D, D)``; :func:`simplify` makes its three kinds.
        lam: λ ≥ 0, a number, or a tensor of the leading dimensions.

    Raises:
        ValueError: λ is negative or not finite.
        RuntimeError: there is no finite optimum (possible for λ = 0).
    """
    lam = torch.as_tensor(lam, dtype=torch.float64)
    if not lam.isfinite().all() or (lam < 0).any():
        raise ValueError(f"lam must be finite and not negative, not {lam.min().item():g}.")
    return optimum(x, y, Gaussian(anchor, x.shape[-2] * lam[..., None, None] * fisher))


# --- Helpers ----------------------------------------------------------------------------------


def _log_p(logits: Tensor, y: Tensor) -> Tensor:
    """Return y z − log(1 + eᶻ) = log σ(±z), + for y = 1, without cancellation."""
    return functional.logsigmoid((2 * y - 1) * logits)


def _quadratic(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return vᵀ M v for ``(..., D)`` and ``(..., D, D)``."""
    return torch.einsum("...i,...ij,...j->...", vector, matrix, vector)


def _check_data(x: Tensor, y: Tensor) -> None:
    if x.ndim < 2 or y.ndim < 1 or x.shape[-2] != y.shape[-1]:
        raise ValueError(
            f"x and y must be of shape (N, D) and (N,), not {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if not ((y == 0) | (y == 1)).all():
        wrong = y[(y != 0) & (y != 1)].flatten()[0].item()
        raise ValueError(f"labels must be 0 and 1, not {wrong!r}.")
