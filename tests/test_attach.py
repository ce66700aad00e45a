"""EWC.attach: the proximal step in an optimizer's own scale rests where the objective does."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn, optim

from ewc_tutorial.ewc import EWC

# Short memories, so that they forget the way and settle within a few hundred steps.
adam = partial(optim.Adam, lr=0.1, betas=(0.8, 0.95))
rmsprop = partial(optim.RMSprop, lr=0.05, alpha=0.95)
OPTIMIZERS = {
    "SGD": partial(optim.SGD, lr=0.2),
    "SGD, momentum": partial(optim.SGD, lr=0.05, momentum=0.8),
    "SGD, Nesterov": partial(optim.SGD, lr=0.05, momentum=0.8, nesterov=True),
    "SGD, dampening": partial(optim.SGD, lr=0.1, momentum=0.8, dampening=0.5),
    "Adam": adam,
    "Adam, amsgrad": partial(adam, amsgrad=True, lr=0.3),
    "Adam, large ε": partial(adam, eps=0.1),
    "AdamW": partial(optim.AdamW, lr=0.1, betas=(0.8, 0.95), weight_decay=0.0),
    "RMSprop": rmsprop,
    "RMSprop, centered": partial(rmsprop, centered=True),
    "RMSprop, momentum": partial(rmsprop, momentum=0.5),
    "Adagrad": partial(optim.Adagrad, lr=2.0),
    "Adagrad, decay": partial(optim.Adagrad, lr=2.0, lr_decay=1e-3),
}


class Weights(nn.Module):
    """Two vectors of weights, the second with a learning rate of its own in some tests."""

    def __init__(self, n: int = 3) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(n, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(n, generator=g, dtype=torch.float64))

    def flat(self) -> torch.Tensor:
        return torch.cat([self.a, self.b])


def problem(lam: float = 2.0):
    """Return a model, its EWC, the loss ½(θ − t)ᵀH(θ − t), and the minimum of both together."""
    g = torch.Generator().manual_seed(1)
    model = Weights()
    ewc = EWC(model, lam)
    S = torch.tensor([0.0, 0.01, 0.3, 1.0, 2.0, 30.0], dtype=torch.float64)
    mu = model.flat().detach()
    ewc.merge({"a": S[:3], "b": S[3:]})
    root = torch.randn(6, 6, generator=g, dtype=torch.float64)
    H = torch.eye(6, dtype=torch.float64) + 0.1 * (root + root.T)  # well conditioned
    t = torch.randn(6, generator=g, dtype=torch.float64)
    minimum = torch.linalg.solve(H + lam * S.diag(), H @ t + lam * S * mu)

    def loss() -> torch.Tensor:
        away = model.flat() - t
        return 0.5 * away @ H @ away

    return model, ewc, loss, minimum


def descend(optimizer, loss, steps=500):
    """Train at a constant rate, then at one that falls by 5 % a step."""
    falling = optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.95 ** max(0, i - steps // 2))
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        falling.step()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lam"), [(name, 2.0) for name in OPTIMIZERS] + [("SGD", 1e8), ("Adam", 1e8)]
)
def test_training_ends_where_loss_plus_penalty_is_least(name, lam):
    model, ewc, loss, minimum = problem(lam)
    optimizer = OPTIMIZERS[name](model.parameters())
    ewc.attach(optimizer)
    descend(optimizer, loss)
    torch.testing.assert_close(model.flat().detach(), minimum, rtol=0, atol=1e-4)


def test_the_plain_step_after_adam_ends_elsewhere():
    model, ewc, loss, minimum = problem()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    optimizer.register_step_post_hook(lambda opt, *_: ewc.proximal_step_(opt.param_groups[0]["lr"]))
    descend(optimizer, loss)
    assert (model.flat() - minimum).abs().max() > 0.1


def test_each_group_has_its_own_rate_and_a_scheduler_is_followed():
    model, ewc, loss, _ = problem()
    groups = [{"params": [model.a], "lr": 0.1}, {"params": [model.b], "lr": 0.03}]
    optimizer = optim.SGD(groups)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
    ewc.attach(optimizer)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(5):
        optimizer.zero_grad()
        loss().backward()
        for (name, p), rate in zip(model.named_parameters(), (0.1, 0.03), strict=True):
            rate *= 0.1 ** (step // 2)
            pull = rate * ewc.lam * ewc.importance[name]
            ahead = expected[name] - rate * p.grad
            expected[name] = (ahead + pull * ewc.anchor[name]) / (1 + pull)
        optimizer.step()
        scheduler.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_one_step_of_adam_is_the_formula(amsgrad):
    """θ ← (dθ + ηλSμ) / (d + ηλS), d being Adam's denominator as its paper writes it."""
    model, ewc, loss, _ = problem()
    alone = copy.deepcopy(model)
    optimizer = optim.Adam(model.parameters(), lr=0.05, betas=(0.8, 0.9), eps=1e-3, amsgrad=amsgrad)
    ewc.attach(optimizer)
    loss().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    for (name, before), p, g in zip(
        alone.named_parameters(), model.parameters(), gradients, strict=True
    ):
        d = g.abs() + 1e-3  # v̂ = g² after the first step
        ahead = before.detach() - 0.05 * g / d
        pull = 0.05 * ewc.lam * ewc.importance[name]
        wanted = (d * ahead + pull * ewc.anchor[name]) / (d + pull)
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-10, atol=1e-12)


def test_under_accumulation_there_is_one_proximal_step_per_optimizer_step():
    ends = []
    for parts in (1, 4):
        model, ewc, loss, _ = problem()
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        ewc.attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(parts):
                (loss() / parts).backward()
            optimizer.step()
        ends.append(model.flat().detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_gradient_scaler_skips_moves_nothing(fused):
    model, ewc, _, _ = problem(1e3)
    optimizer = optim.Adam(model.parameters(), lr=0.1, fused=fused)
    ewc.attach(optimizer)
    with torch.no_grad():
        model.a.add_(1)
    before = model.flat().detach()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model.flat().sum() * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.flat(), before)
    optimizer.zero_grad()
    scaler.scale(model.flat().sum()).backward()
    scaler.step(optimizer)
    assert not torch.equal(model.flat(), before)


def test_one_call_lasts_for_all_later_tasks():
    """After two tasks training ends where both quadratics and the loss are least together."""
    model, ewc, loss, _ = problem()
    optimizer = optim.SGD(model.parameters(), lr=0.2)
    ewc.attach(optimizer)
    descend(optimizer, loss, steps=20)
    g = torch.Generator().manual_seed(3)
    ewc.merge({name: torch.rand(3, generator=g, dtype=torch.float64) for name in "ab"})
    with pytest.raises(ValueError, match="not attached yet"):
        ewc.attach(optimizer)
    optimizer = optim.SGD(model.parameters(), lr=0.2)  # one more optimizer is no second pull
    ewc.attach(optimizer)
    descend(optimizer, loss)
    S, mu = (torch.cat([*part.values()]) for part in (ewc.importance, ewc.anchor))
    away = (model.flat() - mu).detach()
    gradients = torch.cat(torch.autograd.grad(loss(), [model.a, model.b]))
    torch.testing.assert_close(gradients, -ewc.lam * S * away, rtol=0, atol=1e-4)


def test_removing_the_handle_and_leaving_the_block_end_it():
    model, ewc, loss, _ = problem(1e8)
    plain = copy.deepcopy(model)
    for how in ("remove", "block"):
        model.load_state_dict(plain.state_dict())
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        if how == "block":
            with ewc.attach(optimizer):
                pass
        else:
            ewc.attach(optimizer).remove()
        optimizer.zero_grad()
        loss().backward()
        gradient = model.b.grad.clone()
        optimizer.step()
        torch.testing.assert_close(model.b.detach(), plain.b.detach() - 0.1 * gradient)


def test_before_the_first_task_and_at_lambda_zero_nothing_is_pulled():
    model, ewc, loss, _ = problem(0.0)
    fresh = EWC(model, lam=5.0)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    ewc.attach(optimizer)
    fresh.attach(optimizer)
    before = model.flat().detach()
    loss().backward()
    gradient = torch.cat([model.a.grad, model.b.grad])
    optimizer.step()
    torch.testing.assert_close(model.flat().detach(), before - 0.1 * gradient)


def test_weights_that_get_no_gradient_and_weights_of_other_models_are_no_obstacle():
    model, ewc, _, _ = problem(1e6)
    other = nn.Linear(2, 2)
    optimizer = optim.Adam([*model.parameters(), *other.parameters()], lr=0.1, eps=0.0)
    ewc.attach(optimizer)
    anchor = model.b.detach().clone()
    with torch.no_grad():
        model.b.add_(1.0)
    before = copy.deepcopy(other.state_dict())
    model.a.sum().backward()  # neither b nor the other model
    optimizer.step()
    torch.testing.assert_close(model.b.detach(), anchor)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_a_weight_without_importance_goes_where_the_optimizer_takes_it():
    model, ewc, _, _ = problem(1e8)
    alone = copy.deepcopy(model)
    for m in (model, alone):
        m.a.grad = torch.ones_like(m.a)
        m.b.grad = torch.ones_like(m.b)
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    ewc.attach(optimizer)
    optimizer.step()
    optim.Adam(alone.parameters(), lr=0.1).step()
    assert model.a[0] == alone.a[0]  # S = 0
    assert (model.b - alone.b).abs().min() > 0.09


def test_what_cannot_be_right_is_refused():
    model, ewc, _, _ = problem()
    with pytest.raises(ValueError, match=r"How NAdam scales.*take one of SGD, Adam, AdamW"):
        ewc.attach(optim.NAdam(model.parameters()))
    with pytest.raises(TypeError, match=r"one of torch.optim's, not list"):
        ewc.attach([])
    with pytest.raises(ValueError, match="trains no parameter that this EWC protects"):
        ewc.attach(optim.SGD(copy.deepcopy(model).parameters(), lr=0.1))

    optimizer = optim.SGD(model.parameters(), lr=0.1)
    handle = ewc.attach(optimizer)
    with pytest.raises(ValueError, match=r"optimizer must be .* not attached yet.*remove\(\) it"):
        ewc.attach(optimizer, every=3)
    handle.remove()
    ewc.attach(optimizer)

    class Sideways(optim.SGD):
        """A subclass may do anything in its step."""

    with pytest.raises(ValueError, match="How Sideways scales"):
        ewc.attach(Sideways(model.parameters(), lr=0.1))
