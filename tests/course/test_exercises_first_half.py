"""What the exercises of notebooks 00 to 04 must notice, beyond what every exercise does."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from ewc_tutorial.course import check, reference


@pytest.mark.parametrize(
    "differentiate",
    [
        lambda theta: theta.detach().clone().requires_grad_(),
        lambda theta: theta.requires_grad_(),
    ],
)
def test_a_gradient_that_must_be_written_down_is_not_taken_by_backward(differentiate):
    def answer(theta, anchor, fisher, lam):
        leaves = {name: differentiate(t) for name, t in theta.items()}
        reference.ewc_penalty(leaves, anchor, fisher, lam).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    assert "asks for the formula" in check("ewc_gradient", answer).text


def test_a_gradient_by_torch_autograd_is_not_the_formula_either():
    def set_attribute(theta, anchor, fisher, lam):
        for t in theta.values():
            t.requires_grad = True
        energy = reference.ewc_penalty(theta, anchor, fisher, lam)
        return dict(zip(theta, torch.autograd.grad(energy, list(theta.values())), strict=True))

    def functional(theta, anchor, fisher, lam):
        return torch.func.grad(lambda t: reference.ewc_penalty(t, anchor, fisher, lam))(theta)

    for answer in (set_attribute, functional):
        assert "asks for the formula" in check("ewc_gradient", answer).text


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
