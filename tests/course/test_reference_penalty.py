"""The textbook functions of notebook 03 against independent oracles, and the package with them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.course import reference
from ewc_tutorial.course.models import mlp


def springs(seed: int = 0):
    """Return θ, θ* and F of a small network, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (3, 2), "0.bias": (3,), "2.weight": (2, 3), "2.bias": (2,)}

    def draw():
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes.items()
        }

    return draw(), draw(), {name: value.square() for name, value in draw().items()}


def penalty_by_loop(theta, anchor, fisher, lam):
    total = 0.0
    for name in theta:
        for t, a, F in zip(
            theta[name].flatten().tolist(),
            anchor[name].flatten().tolist(),
            fisher[name].flatten().tolist(),
            strict=True,
        ):
            total += 0.5 * lam * F * (t - a) * (t - a)
    return total


@pytest.mark.parametrize("lam", [0.0, 1.0, 250.0])
def test_penalty_is_the_loop_over_single_weights(lam):
    theta, anchor, fisher = springs()
    expected = penalty_by_loop(theta, anchor, fisher, lam)
    assert float(reference.ewc_penalty(theta, anchor, fisher, lam)) == pytest.approx(
        expected, rel=1e-12
    )


def test_gradient_is_the_finite_difference_of_the_penalty():
    theta, anchor, fisher = springs(1)
    gradient = reference.ewc_gradient(theta, anchor, fisher, 3.0)
    for name, value in theta.items():
        for index in np.ndindex(*value.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = copy.deepcopy(theta)
                moved[name][index] += step
                ends.append(penalty_by_loop(moved, anchor, fisher, 3.0))
            slope = (ends[0] - ends[1]) / 2e-5
            assert float(gradient[name][index]) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_names_without_weights_do_not_count():
    theta, anchor, fisher = springs()
    more = {"frozen": torch.ones(2, dtype=torch.float64)}
    for function, further in (
        (reference.ewc_penalty, (2.0,)),
        (reference.ewc_gradient, (2.0,)),
        (reference.proximal_step, (2.0, 0.1)),
    ):
        expected = function(theta, anchor, fisher, *further)
        for others in ((anchor | more, fisher), (anchor, fisher | more)):
            torch.testing.assert_close(function(theta, *others, *further), expected)


def test_collapse_needs_an_anchor_for_each_fisher():
    F = torch.ones(3)
    with pytest.raises(ValueError, match="zip"):
        reference.collapse_quadratics([F, F], [F])


numbers = st.floats(-10, 10, allow_subnormal=False)
positive = st.floats(1e-3, 1e3)


@given(numbers, numbers, st.floats(0, 1e3), st.floats(0, 1e3), positive)
@settings(deadline=None)
def test_proximal_step_is_the_lowest_point_of_its_parabola(theta, anchor, fisher, lam, lr):
    def height(at):
        return lam / 2 * fisher * (at - anchor) ** 2 + (at - theta) ** 2 / (2 * lr)

    one = {
        k: {"w": torch.tensor([v], dtype=torch.float64)}
        for k, v in (("theta", theta), ("anchor", anchor), ("fisher", fisher))
    }
    found = float(reference.proximal_step(**one, lam=lam, lr=lr)["w"])
    for step in (1e-2, 1e-4):
        assert height(found) <= height(found + step)
        assert height(found) <= height(found - step)
    slack = 1e-9 * (abs(theta) + abs(anchor))
    assert min(theta, anchor) - slack <= found <= max(theta, anchor) + slack


def test_proximal_step_ends_at_the_anchor_or_stays():
    theta, anchor, fisher = springs(2)
    far = reference.proximal_step(theta, anchor, fisher, lam=1e12, lr=0.1)
    stay = reference.proximal_step(theta, anchor, fisher, lam=0.0, lr=0.1)
    for name in theta:
        torch.testing.assert_close(far[name], anchor[name], rtol=0, atol=1e-6)
        assert torch.equal(stay[name], theta[name])


@given(st.integers(1, 6), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_collapse_equals_the_sum_everywhere(n_tasks, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = [
        torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2 * n_tasks + 1)
    ]
    theta, anchors = draw[0], draw[1 : n_tasks + 1]
    fishers = [value.square() + 1e-3 for value in draw[n_tasks + 1 :]]
    S, mu, c = reference.collapse_quadratics(fishers, anchors)
    expected = sum(
        float(f) * (float(t) - float(a)) ** 2
        for F, anchor in zip(fishers, anchors, strict=True)
        for t, a, f in zip(theta, anchor, F, strict=True)
    )
    assert float((S * (theta - mu) ** 2).sum() + c) == pytest.approx(expected, rel=1e-10)


def displaced_ewc(lam: float) -> tuple[nn.Module, EWC, tuple]:
    """Return a network away from its anchor, its EWC, and (θ, θ*, F) for the reference."""
    model = mlp(4, [5], 3, seed=0).double()
    ewc = EWC(model, lam=lam)
    generator = torch.Generator().manual_seed(1)
    fisher = {
        name: torch.rand(p.shape, generator=generator, dtype=torch.float64)
        for name, p in model.named_parameters()
    }
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
    ewc.merge(fisher)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    return model, ewc, (theta, anchor, fisher)


def test_the_package_agrees_with_the_textbook():
    lam, lr = 7.0, 0.3
    model, ewc, springs = displaced_ewc(lam)
    torch.testing.assert_close(
        ewc.penalty().detach(), reference.ewc_penalty(*springs, lam), rtol=1e-12, atol=0
    )
    ewc.add_gradient_()
    gradient = reference.ewc_gradient(*springs, lam)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradient[name], rtol=1e-12, atol=1e-12)
    ewc.proximal_step_(lr)
    stepped = reference.proximal_step(*springs, lam, lr)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), stepped[name], rtol=1e-12, atol=1e-12)


def test_the_package_collapses_as_the_textbook_does():
    model, ewc, (theta, anchor, fisher) = displaced_ewc(1.0)
    second = {name: F.flip(0) + 0.1 for name, F in fisher.items()}
    ewc.merge(second)
    for name in theta:
        S, mu, _ = reference.collapse_quadratics(
            [fisher[name].flatten(), second[name].flatten()],
            [anchor[name].flatten(), theta[name].flatten()],
        )
        torch.testing.assert_close(ewc.importance[name].flatten(), S)
        torch.testing.assert_close(ewc.anchor[name].flatten(), mu)
    constant = sum(
        reference.collapse_quadratics(
            [fisher[n].flatten(), second[n].flatten()], [anchor[n].flatten(), theta[n].flatten()]
        )[2]
        for n in theta
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(ewc.anchor[name])
    assert ewc.penalty().item() == pytest.approx(0.5 * float(constant), rel=1e-9)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_convert_lambda_makes_two_objectives_the_same_up_to_a_factor(seed):
    """Both gradients, written out for one weight with a quadratic loss per sample."""
    draw = np.random.default_rng(seed)
    n_old, n_new = draw.integers(2, 9, 2)
    targets, squares = draw.normal(size=n_new), draw.uniform(0.1, 2, n_old)
    theta, anchor, lam = draw.normal(size=3)
    names = ("half", "sum_loss", "sum_fisher")
    theirs, ours = ({name: bool(draw.integers(2)) for name in names} for _ in range(2))

    def objective(at, lam, convention):
        losses = [(at - target) ** 2 for target in targets]
        loss = sum(losses) if convention["sum_loss"] else sum(losses) / n_new
        F = sum(squares) if convention["sum_fisher"] else sum(squares) / n_old
        penalty = lam * F * (at - anchor) ** 2
        return loss + (penalty / 2 if convention["half"] else penalty)

    converted = reference.convert_lambda(abs(lam), theirs, ours, int(n_old), int(n_new))
    factors = []
    for at in (theta, theta + 1, theta - 2):
        slopes = [
            objective(at + 1e-3, value, convention) - objective(at - 1e-3, value, convention)
            for value, convention in ((abs(lam), theirs), (converted, ours))
        ]
        factors.append(slopes[0] / slopes[1])
    assert factors == pytest.approx(
        [float(n_new) ** (theirs["sum_loss"] - ours["sum_loss"])] * 3, rel=1e-6
    )
