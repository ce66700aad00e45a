"""What the exercises of notebooks 00 to 04 must notice, beyond what every exercise does."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from ewc_tutorial.course import check, reference
from ewc_tutorial.course.exercises import EXERCISES


def penalty_of(theta, anchor, fisher, lam):
    return reference.ewc_penalty(theta, anchor, fisher, lam)


def by_backward(theta, *others):
    leaves = {name: t.detach().clone().requires_grad_() for name, t in theta.items()}
    penalty_of(leaves, *others).backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def by_attribute(theta, *others):
    for t in theta.values():
        t.requires_grad = True
    penalty_of(theta, *others).backward()
    return {name: t.grad for name, t in theta.items()}


def by_new_leaves(theta, *others):
    leaves = {name: t.clone() for name, t in theta.items()}
    for leaf in leaves.values():
        leaf.requires_grad = True
    found = torch.autograd.grad(penalty_of(leaves, *others), list(leaves.values()))
    return dict(zip(theta, found, strict=True))


def by_functional(theta, *others):
    rows = [
        torch.autograd.functional.jacobian(lambda t, n=n: penalty_of(theta | {n: t}, *others), t)
        for n, t in theta.items()
    ]
    return dict(zip(theta, rows, strict=True))


def by_dual_numbers(theta, *others):
    gradient = {}
    for name, t in theta.items():
        gradient[name] = torch.zeros_like(t)
        for at in range(t.numel()):
            tangent = torch.zeros_like(t)
            tangent.view(-1)[at] = 1.0
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(t, tangent)
                value = penalty_of(theta | {name: dual}, *others)
                slope = torch.autograd.forward_ad.unpack_dual(value).tangent
            gradient[name].view(-1)[at] = slope
    return gradient


FUNCTIONAL = {
    name: (lambda derive: lambda theta, *others: derive(lambda t: penalty_of(t, *others))(theta))(
        getattr(torch.func, name)
    )
    for name in ("grad", "jacrev", "jacfwd")
}
made_before = torch.func.grad(penalty_of)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (by_backward, "requires_grad_"),
        (by_attribute, "backward"),
        (by_new_leaves, "autograd.grad"),
        (by_functional, "autograd.functional.jacobian"),
        (by_dual_numbers, "autograd.forward_ad.make_dual"),
        *[(answer, f"func.{name}") for name, answer in FUNCTIONAL.items()],
        (made_before, "requires_grad_"),
    ],
)
def test_a_gradient_that_must_be_written_down_is_not_taken_by_any_autograd(answer, named):
    theta, *others = EXERCISES["ewc_gradient"].drawn(0)[0]
    torch.testing.assert_close(
        {name: g.detach() for name, g in answer(dict(theta), *others).items()},
        reference.ewc_gradient({n: t.detach() for n, t in theta.items()}, *others),
    )
    verdict = check("ewc_gradient", answer)
    assert not verdict
    assert f"calls `{named}`: this exercise asks for the formula" in verdict.text


def test_second_derivatives_by_autograd_are_not_the_formula_either():
    def by_hessian(theta, x, tau):
        def minus_log_posterior(t):
            z = x @ t
            return torch.nn.functional.softplus(z).sum() + tau * t @ t / 2

        return torch.func.hessian(minus_log_posterior)(theta)

    theta, x, tau = EXERCISES["laplace_precision"].drawn(0)[0]
    expected = reference.laplace_precision(theta, x, tau)
    torch.testing.assert_close(by_hessian(theta, x, tau), expected)
    assert "calls `func.hessian`: this exercise asks" in check("laplace_precision", by_hessian).text


def test_a_rounded_accuracy_is_not_the_accuracy():
    rounded = check("accuracy", lambda z, y: round(reference.accuracy(z, y), 2))
    assert not rounded
    assert "That is rounded" in rounded.text


def test_the_code_of_the_trap_is_named_whatever_its_batch_size():
    def trap(model, x, y, batch_size, zero=True):
        fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        parts = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        model.zero_grad()
        for xs, ys in parts:
            if zero:
                model.zero_grad()
            cross_entropy(model(xs), ys).backward()
            for name, p in model.named_parameters():
                fisher[name] += p.grad**2 / len(parts)
        return fisher

    for batch_size in (2, 3, 4):
        verdict = check("fisher_empirical", partial(trap, batch_size=batch_size))
        assert f"squared means of batches of {batch_size}" in verdict.text
    piled = check("fisher_empirical", partial(trap, batch_size=1, zero=False))
    assert "The gradients pile up" in piled.text
    assert "too small by about the batch size" in check("fisher_from_batches", trap).text
    unzeroed = check("fisher_from_batches", partial(trap, zero=False))
    assert "pile up from batch to batch" in unzeroed.text
