"""The textbook Fisher estimators against closed forms, Jacobians and enumeration, in float64."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch.func import functional_call, jacrev

from ewc_tutorial import fisher_diagonal
from ewc_tutorial.course import mlp, reference


def problem(hidden=(5,), n=7, features=3, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    model = mlp(features, list(hidden), classes, seed=seed).double()
    x = torch.randn(n, features, generator=g, dtype=torch.float64)
    return model, x, torch.randint(classes, (n,), generator=g)


def close(actual, expected):
    assert actual.keys() == expected.keys()
    for name in actual:
        assert not actual[name].requires_grad
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-9, atol=1e-14)


def test_logit_fisher_is_the_curvature_of_logsumexp():
    z = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64)
    p = z.softmax(0)
    hessian = torch.autograd.functional.hessian(lambda v: v.logsumexp(0), z)
    torch.testing.assert_close(reference.logit_fisher(z), hessian)
    torch.testing.assert_close(reference.logit_fisher(z), torch.diag(p) - torch.outer(p, p))
    assert reference.logit_fisher(z.bfloat16()).dtype == torch.bfloat16


def test_score_by_finite_differences():
    model, x, y = problem()
    gradient = reference.score(model, x[0], y[0])
    for name, p in model.named_parameters():
        for index in product(*map(range, p.shape)):
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    p[index] += step
                    values.append(model(x[:1]).log_softmax(1)[0, y[0]].item())
                    p[index] -= step
            slope = (values[0] - values[1]) / 2e-6
            assert gradient[name][index].item() == pytest.approx(slope, abs=1e-7)


def test_the_mean_score_is_zero_under_the_model():
    model, x, _ = problem()
    p = model(x[:1]).softmax(1)[0].detach()
    for name in dict(model.named_parameters()):
        mean = sum(p[c] * reference.score(model, x[0], c)[name] for c in range(len(p)))
        assert mean.abs().max() < 1e-14


def test_softmax_regression_in_closed_form():
    model, x, y = problem(hidden=())
    p = model(x).softmax(1).detach()
    one_hot = torch.nn.functional.one_hot(y, p.shape[1])
    for estimate, squares in (
        (reference.fisher_empirical(model, x, y), (p - one_hot).square()),
        (reference.fisher_exact(model, x), p * (1 - p)),
    ):
        close(estimate, {"0.weight": squares.T @ x.square() / len(x), "0.bias": squares.mean(0)})


def test_exact_is_the_jacobian_around_the_logit_fisher():
    model, x, _ = problem(hidden=(5, 4))
    theta = {name: p.detach() for name, p in model.named_parameters()}
    logits = model(x).detach()
    J = jacrev(lambda t: functional_call(model, t, (x,)))(theta)
    middle = torch.stack([reference.logit_fisher(z) for z in logits])
    expected = {
        name: torch.einsum("nc...,ncd,nd...->...", j, middle, j) / len(x) for name, j in J.items()
    }
    close(reference.fisher_exact(model, x), expected)


def test_argmax_is_empirical_with_the_models_own_labels():
    model, x, y = problem(n=12)
    close(
        reference.fisher_argmax(model, x), reference.fisher_empirical(model, x, model(x).argmax(1))
    )
    assert not (model(x).argmax(1) == y).all()


def test_sampled_draws_one_label_per_sample_from_the_model():
    model, x, _ = problem(hidden=(), n=30)
    found = reference.fisher_sampled(model, x, torch.Generator().manual_seed(3))
    p = model(x).softmax(1).detach()
    g = torch.Generator().manual_seed(3)
    labels = torch.stack([torch.multinomial(row, 1, generator=g)[0] for row in p])
    squares = (torch.nn.functional.one_hot(labels, p.shape[1]) - p).square()
    close(found, {"0.weight": squares.T @ x.square() / len(x), "0.bias": squares.mean(0)})


def test_sampled_converges_to_exact():
    model, x, _ = problem(n=1)
    exact = reference.fisher_exact(model, x)
    sampled = reference.fisher_sampled(model, x.repeat(600, 1), torch.Generator().manual_seed(0))
    for name in exact:
        assert (sampled[name] - exact[name]).abs().max() < 0.15 * exact[name].max()


def test_batches_of_one_are_empirical_and_one_batch_is_the_squared_gradient():
    model, x, y = problem()
    close(
        reference.fisher_batched(model, x, y, batch_size=1), reference.fisher_empirical(model, x, y)
    )
    loss = torch.nn.functional.cross_entropy(model(x), y)
    whole = torch.autograd.grad(loss, list(model.parameters()))
    names = dict(model.named_parameters())
    close(
        reference.fisher_batched(model, x, y, batch_size=len(x)),
        {name: g.square() for name, g in zip(names, whole, strict=True)},
    )


def test_batches_are_of_32_unless_one_says_otherwise():
    model, x, y = problem(n=129)
    found = reference.fisher_batched(model, x, y)
    close(found, reference.fisher_batched(model, x, y, batch_size=32))
    for other in (31, 33, 64):
        with pytest.raises(AssertionError):
            close(found, reference.fisher_batched(model, x, y, batch_size=other))


def test_a_label_too_few_is_an_error():
    model, x, y = problem()
    with pytest.raises(ValueError, match="zip"):
        reference.fisher_empirical(model, x, y[:-1])
    with pytest.raises(ValueError, match="zip"):
        reference.fisher_batched(model, x, y[:-1], batch_size=2)


def test_what_the_notebook_derives_about_batches():
    """E[ḡ²] over all batches of B, drawn without and with replacement, by enumeration."""
    model, x, y = problem(n=6)
    N, B = 6, 3
    empirical = reference.fisher_batched(model, x, y, batch_size=1)
    squared_mean = reference.fisher_batched(model, x, y, batch_size=N)
    for draws, share in (
        (list(combinations(range(N), B)), (N - B) / (N - 1) / B),
        (list(product(range(N), repeat=B)), 1 / B),
    ):
        mean = {name: torch.zeros_like(F) for name, F in empirical.items()}
        for rows in map(list, draws):
            for name, F in reference.fisher_batched(model, x[rows], y[rows], batch_size=B).items():
                mean[name] += F / len(draws)
        derived = {
            name: squared_mean[name] + share * (empirical[name] - squared_mean[name])
            for name in mean
        }
        close(mean, derived)


@pytest.mark.parametrize("estimator", ["exact", "empirical", "argmax", "batched"])
def test_the_package_agrees(estimator):
    model, x, y = problem(hidden=(6, 5), n=37)
    textbook = {
        "exact": lambda: reference.fisher_exact(model, x),
        "empirical": lambda: reference.fisher_empirical(model, x, y),
        "argmax": lambda: reference.fisher_argmax(model, x),
        "batched": lambda: reference.fisher_batched(model, x, y, batch_size=8),
    }[estimator]()
    batch_size = 8 if estimator == "batched" else 10
    close(fisher_diagonal(model, (x, y), estimator, batch_size=batch_size), textbook)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_fisher_from_batches_is_the_mean_of_the_squared_scores_whatever_the_batch_size(batch_size):
    model, x, y = problem()
    jacobian = jacrev(lambda w: functional_call(model, w, (x,)).log_softmax(1))(
        {name: p.detach() for name, p in model.named_parameters()}
    )
    expected = {
        name: torch.stack([J[n, y[n]] for n in range(len(x))]).square().mean(0)
        for name, J in jacobian.items()
    }
    close(reference.fisher_from_batches(model, x, y, batch_size), expected)
