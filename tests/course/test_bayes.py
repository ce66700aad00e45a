"""The two-weight world against automatic differentiation, SciPy, sampling and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.distributions import MultivariateNormal, kl_divergence

from ewc_tutorial.course import reference
from ewc_tutorial.course.bayes import (
    KINDS,
    Gaussian,
    Grid,
    ewc_optimum,
    fisher_matrix,
    gaussian_kl,
    laplace,
    log_likelihood,
    optimum,
    prior,
    simplify,
    toy_task,
)
from ewc_tutorial.fisher import fisher_diagonal


def tasks(n_a=40, n_b=25, seed=0):
    return toy_task(n_a, 15, seed=seed), toy_task(n_b, 80, (1.0, 0.5), (1, 1), seed=seed + 100)


def both(a, b):
    return torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])


def loss_by_loop(theta, x, y):
    """−log p(D | θ), one sample at a time, from the definition of σ."""
    total = 0.0
    for x_n, y_n in zip(x, y, strict=True):
        p = 1 / (1 + torch.exp(-(theta * x_n).sum()))
        total = total - torch.log(p if y_n == 1 else 1 - p)
    return total


def random_gaussian(seed, D=2):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(D, D, generator=generator, dtype=torch.float64)
    mean = torch.randn(D, generator=generator, dtype=torch.float64)
    return Gaussian(mean, root @ root.mT + 0.5 * torch.eye(D, dtype=torch.float64))


# --- Data and model ---------------------------------------------------------------------------


def test_toy_task_is_what_it_says():
    x, y = toy_task(20_000, 30, (1.0, -0.5), (2.0, 0.3), seed=3)
    assert x.shape == (20_000, 2)
    assert y.shape == (20_000,)
    assert x.dtype == y.dtype == torch.float64
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    along, across = x @ torch.tensor([c, s]).double(), x @ torch.tensor([-s, c]).double()
    assert along.std().item() == pytest.approx(2.0, rel=0.03)
    assert across.std().item() == pytest.approx(0.3, rel=0.03)
    assert np.corrcoef(along, across)[0, 1] == pytest.approx(0, abs=0.03)
    p = torch.sigmoid(x @ torch.tensor([1.0, -0.5]).double())
    assert (y - p).mean().item() == pytest.approx(0, abs=0.015)
    assert ((y - p)[:, None] * x).mean(0).abs().max() < 0.03


def test_toy_task_grows_without_changing_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    x, y = toy_task(700, 15, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    for n in (1, 255, 256, 257):
        fewer_x, fewer_y = toy_task(n, 15, seed=5)
        assert torch.equal(fewer_x, x[:n])
        assert torch.equal(fewer_y, y[:n])
    assert not torch.equal(toy_task(700, 15, seed=6)[0], x)


def test_log_likelihood_is_the_sum_over_single_samples():
    (x, y), _ = tasks()
    thetas = torch.tensor([[0.3, -1.0], [2.0, 0.5], [0.0, 0.0]]).double()
    expected = torch.stack([-loss_by_loop(theta, x, y) for theta in thetas])
    torch.testing.assert_close(log_likelihood(thetas, x, y), expected)
    assert log_likelihood(thetas.reshape(3, 1, 2), x, y).shape == (3, 1)
    assert log_likelihood(thetas[2], x, y).item() == pytest.approx(-len(x) * math.log(2))


@pytest.mark.parametrize("labels", ["data", "flipped"])
def test_fisher_is_the_hessian_of_the_mean_loss_whatever_the_labels(labels):
    (x, y), _ = tasks()
    theta = torch.tensor([0.7, -0.4]).double()
    labels = y if labels == "data" else 1 - y
    hessian = torch.autograd.functional.hessian(lambda t: loss_by_loop(t, x, labels), theta)
    torch.testing.assert_close(fisher_matrix(theta, x), hessian / len(x))


def test_fisher_agrees_with_the_textbook_and_with_the_package():
    (x, y), _ = tasks()
    theta = torch.tensor([0.7, -0.4]).double()
    F = fisher_matrix(theta, x)
    torch.testing.assert_close(F.diag(), reference.logistic_fisher(theta, x, y))
    torch.testing.assert_close(
        len(x) * F + 0.3 * torch.eye(2), reference.laplace_precision(theta, x, 0.3)
    )
    model = torch.nn.Linear(2, 1, bias=False).double()
    model.weight.data[0] = theta
    measured = fisher_diagonal(model, (x, y[:, None]), likelihood="bernoulli")
    torch.testing.assert_close(measured["weight"][0], F.diag())


# --- Optima -----------------------------------------------------------------------------------


def test_optimum_agrees_with_scipy():
    (x, y), _ = tasks()
    quadratic = random_gaussian(1)
    mean, precision = quadratic.mean.numpy(), quadratic.precision.numpy()

    def objective(theta):
        z = x.numpy() @ theta
        gap = theta - mean
        return np.logaddexp(0, z).sum() - (y.numpy() * z).sum() + gap @ precision @ gap / 2

    expected = minimize(objective, np.zeros(2), method="Nelder-Mead", tol=1e-10).x
    np.testing.assert_allclose(optimum(x, y, quadratic), expected, atol=1e-6)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 60),
    scale=st.floats(0.01, 30),
    tau=st.floats(1e-3, 1e3),
    far=st.floats(-50, 50),
)
@settings(max_examples=100, deadline=None)
def test_optimum_has_no_gradient_left_wherever_it_starts(seed, n, scale, tau, far):
    x, y = toy_task(n, 40, seed=seed)
    x = scale * x
    quadratic = Gaussian(torch.tensor([far, -far]).double(), tau * torch.eye(2).double())
    theta = optimum(x, y, quadratic)
    residual = torch.sigmoid(x @ theta) - y
    data_part, prior_part = x.mT @ residual, tau * (theta - quadratic.mean)
    size = (x.abs().mT @ residual.abs() + prior_part.abs()).max()
    assert (data_part + prior_part).abs().max() <= 1e-7 * (1 + size)


def test_optimum_is_found_where_the_objective_is_all_but_zero():
    # One sample that is right by 18 nats: rounding must not look like a rising objective.
    x, y = torch.tensor([[1.9515, 1.2485]]).double(), torch.tensor([1.0]).double()
    far = Gaussian(torch.tensor([26.0, -26.0]).double(), torch.eye(2).double())
    torch.testing.assert_close(optimum(x, y, far), far.mean, rtol=1e-8, atol=0)


def test_log_likelihood_keeps_its_digits_for_large_logits():
    x, theta = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[30.0, 0.0]]).double()
    right = log_likelihood(theta, x, torch.tensor([1.0]).double()).item()
    assert right == pytest.approx(-math.exp(-30), rel=1e-9)
    assert log_likelihood(theta, x, torch.tensor([0.0]).double()).item() == pytest.approx(-30)


def test_optimum_does_many_problems_at_once():
    pairs = [tasks(seed=seed)[0] for seed in range(3)]
    x, y = (torch.stack(t) for t in zip(*pairs, strict=True))
    lam = torch.tensor([0.1, 1.0, 10.0, 100.0]).double()
    quadratic = Gaussian(torch.ones(2).double(), lam[:, None, None] * torch.eye(2).double())
    together = optimum(x[:, None], y[:, None], quadratic)
    assert together.shape == (3, 4, 2)
    for i, (x_i, y_i) in enumerate(pairs):
        for j, precision in enumerate(quadratic.precision):
            alone = optimum(x_i, y_i, Gaussian(quadratic.mean, precision))
            torch.testing.assert_close(together[i, j], alone)


def test_optimum_that_does_not_exist_is_an_error():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    nothing = Gaussian(torch.zeros(2).double(), torch.zeros(2, 2).double())
    with pytest.raises(RuntimeError, match="No finite optimum"):
        optimum(x, torch.tensor([1.0, 0.0]).double(), nothing)


def test_ewc_optimum_minimises_kirkpatricks_objective():
    (x_a, y_a), (x, y) = tasks()
    anchor = optimum(x_a, y_a, prior())
    F = fisher_matrix(anchor, x_a).diag().numpy()

    def objective(theta):
        z = x.numpy() @ theta
        mean_loss = np.mean(np.logaddexp(0, z) - y.numpy() * z)
        return mean_loss + 0.7 / 2 * np.sum(F * (theta - anchor.numpy()) ** 2)

    expected = minimize(objective, np.zeros(2), method="Nelder-Mead", tol=1e-10).x
    found = ewc_optimum(x, y, anchor, torch.diag(torch.as_tensor(F)), 0.7)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ewc_optimum_goes_from_b_alone_to_the_anchor():
    (x_a, y_a), (x, y) = tasks()
    anchor = optimum(x_a, y_a, prior())
    F = simplify(fisher_matrix(anchor, x_a), "diagonal")
    alone = optimum(x, y, Gaussian(anchor, torch.zeros(2, 2).double()))
    ends = ewc_optimum(x, y, anchor, F, torch.tensor([0.0, 1e12]).double())
    torch.testing.assert_close(ends, torch.stack([alone, anchor]))


def test_bayes_fixes_lambda_at_the_ratio_of_the_sample_counts():
    (x_a, y_a), (x, y) = tasks()
    anchor = optimum(x_a, y_a, prior())
    posterior = laplace(anchor, x_a, prior())
    expected = optimum(x, y, posterior)
    F_with_prior = posterior.precision / len(x_a)
    torch.testing.assert_close(ewc_optimum(x, y, anchor, F_with_prior, len(x_a) / len(x)), expected)


# --- Gaussians --------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [1, 2, 4])
def test_kl_of_gaussians_agrees_with_torch_and_the_textbook(D):
    p, q = random_gaussian(1, D), random_gaussian(2, D)
    expected = kl_divergence(
        *(MultivariateNormal(g.mean, precision_matrix=g.precision) for g in (p, q))
    )
    torch.testing.assert_close(gaussian_kl(p, q), expected)
    torch.testing.assert_close(
        reference.gaussian_kl(p.mean, p.precision, q.mean, q.precision), expected
    )
    assert gaussian_kl(p, p).item() == pytest.approx(0, abs=1e-12)


def test_log_prob_and_covariance_agree_with_torch():
    p = random_gaussian(3)
    theta = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    expected = MultivariateNormal(p.mean, covariance_matrix=p.covariance).log_prob(theta)
    torch.testing.assert_close(p.log_prob(theta), expected)


@given(seed=st.integers(0, 1000), factors=st.tuples(*[st.floats(0.3, 3)] * 3))
@settings(max_examples=40, deadline=None)
def test_simplified_precisions_are_the_nearest_of_their_kind(seed, factors):
    full = random_gaussian(seed, 3)
    best = {kind: Gaussian(full.mean, simplify(full.precision, kind)) for kind in KINDS}
    scaled = torch.tensor(factors).double()
    for kind, other in (
        ("diagonal", scaled * best["diagonal"].precision.diag()),
        ("isotropic", scaled[0] * best["isotropic"].precision.diag()),
    ):
        rival = Gaussian(full.mean, torch.diag(other))
        assert gaussian_kl(best[kind], full) <= gaussian_kl(rival, full) + 1e-12
    kls = [gaussian_kl(best[kind], full).item() for kind in KINDS]
    assert kls == sorted(kls)


def test_simplify_works_on_stacks():
    stack = torch.stack([random_gaussian(seed).precision for seed in range(4)])
    for kind in KINDS:
        expected = torch.stack([simplify(one, kind) for one in stack])
        assert torch.equal(simplify(stack, kind), expected)


# --- Grids ------------------------------------------------------------------------------------


def test_grid_integrates_gaussians():
    p, q = random_gaussian(4), random_gaussian(5)
    for grid in (Grid.around(p), Grid.rectangle((-14, 16), (-13, 15), 601)):
        log_p = grid.normalise(p.log_prob(grid.points) + 5.0)
        torch.testing.assert_close(log_p, p.log_prob(grid.points))
        torch.testing.assert_close(grid.expectation(log_p, grid.points), p.mean)
        gap = grid.points - p.mean
        second = grid.expectation(log_p, gap[..., :, None] * gap[..., None, :])
        torch.testing.assert_close(second, p.covariance)
        assert grid.kl(log_p, q.log_prob(grid.points)) == pytest.approx(gaussian_kl(p, q).item())


def test_grid_posterior_agrees_with_importance_sampling():
    (x, y), _ = tasks(n_a=12)
    before = prior(1.0)
    grid = Grid.rectangle((-6, 6), (-6, 6), 301)
    log_p = grid.posterior(before.log_prob(grid.points), x, y)
    draws = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0)).double()
    weights = log_likelihood(draws, x, y).softmax(0)
    torch.testing.assert_close(
        grid.expectation(log_p, grid.points), weights @ draws, atol=0.01, rtol=0
    )


@given(cut=st.integers(0, 40), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_sequential_bayes_is_exact_in_any_order(cut, seed):
    x, y = both(*tasks(25, 15, seed))
    grid = Grid.rectangle((-5, 5), (-5, 5), 41)
    log_prior = grid.normalise(prior().log_prob(grid.points))
    at_once = grid.posterior(log_prior, x, y)
    first, second = (x[:cut], y[:cut]), (x[cut:], y[cut:])
    for parts in ((first, second), (second, first)):
        belief = log_prior
        for part in parts:
            belief = grid.posterior(belief, *part)
        assert (belief.exp() - at_once.exp()).abs().max() < 1e-9
        torch.testing.assert_close(belief, at_once, atol=1e-9, rtol=1e-9)


def test_posterior_of_thousands_of_samples_does_not_underflow():
    x, y = toy_task(3000, 15)
    grid = Grid.rectangle((-5, 5), (-5, 5), 51)
    log_p = grid.posterior(prior().log_prob(grid.points), x, y)
    assert log_p.isfinite().all()
    assert log_p.min() < -1000
    assert log_p.exp().sum().item() * grid.area == pytest.approx(1.0)


# --- Laplace ----------------------------------------------------------------------------------


def test_laplace_is_the_curvature_of_the_log_posterior_at_its_mode():
    (x, y), _ = tasks()
    before = random_gaussian(6)
    mode = optimum(x, y, before)
    hessian = torch.autograd.functional.hessian(
        lambda t: loss_by_loop(t, x, y) - before.log_prob(t), mode
    )
    approximation = laplace(mode, x, before)
    torch.testing.assert_close(approximation.precision, hessian)
    assert torch.equal(approximation.mean, mode)


def test_laplace_of_no_information_is_the_prior():
    x, y = torch.zeros(3, 2).double(), torch.tensor([0.0, 1.0, 1.0]).double()
    before = random_gaussian(7)
    mode = optimum(x, y, before)
    torch.testing.assert_close(mode, before.mean)
    torch.testing.assert_close(laplace(mode, x, before).precision, before.precision)


@pytest.mark.slow
def test_laplace_error_falls_as_one_over_n():
    errors = []
    for n in (512, 2048):
        total = 0.0
        for seed in range(8):
            x, y = toy_task(n, 15, seed=seed)
            approximation = laplace(optimum(x, y, prior()), x, prior())
            grid = Grid.around(approximation, n_points=61)
            exact = grid.posterior(prior().log_prob(grid.points), x, y)
            total += grid.kl(exact, approximation.log_prob(grid.points))
        errors.append(total)
    assert math.log(errors[1] / errors[0], 4) == pytest.approx(-1, abs=0.1)


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prior(-1.0), "precision must be a finite positive number, not -1.0"),
        (lambda: prior(math.nan), "precision .* not nan"),
        (lambda: toy_task(0, 15), "n_samples must be a positive whole number, not 0"),
        (lambda: toy_task(2.5, 15), "n_samples .* not 2.5"),
        (lambda: simplify(torch.eye(2), "diag"), "kind must be one of full, .* not 'diag'"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_data_is_named():
    (x, y), _ = tasks()
    grid = Grid.rectangle((-1, 1), (-1, 1), 11)
    for call in (
        lambda x, y: optimum(x, y, prior()),
        lambda x, y: grid.posterior(torch.zeros(11, 11), x, y),
    ):
        with pytest.raises(ValueError, match=r"labels must be 0 and 1, not -1\.0"):
            call(x, 2 * y - 1)
        with pytest.raises(ValueError, match=r"not \(40, 2\) and \(39,\)"):
            call(x, y[1:])


@pytest.mark.parametrize("lam", [-1.0, math.nan, math.inf])
def test_bad_lambda_is_named(lam):
    (x, y), _ = tasks()
    with pytest.raises(ValueError, match="lam must be finite and not negative"):
        ewc_optimum(x, y, torch.zeros(2).double(), torch.eye(2).double(), lam)
