"""Importances that rival the Fisher information, against loops over their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.course import importances, mlp, tables, train
from ewc_tutorial.course.referee import REPORTED, runs_of
from ewc_tutorial.course.scenarios import ScenarioNet
from ewc_tutorial.fisher import fisher_diagonal
from experiments import importances as referee

N, CLASSES = 7, 3


def problem(seed=0):
    """A tiny network in float64, with inputs that it is unsure of, and labels."""
    g = torch.Generator().manual_seed(seed)
    model = mlp(4, [5], CLASSES, activation=nn.Tanh, seed=seed).double()
    x = torch.randn(N, 4, generator=g, dtype=torch.float64)
    return model, x, torch.randint(CLASSES, (N,), generator=g)


def by_single_samples(model, x, y, objective, power):
    """Return the mean of |∂ objective(z, y) / ∂θ|^power, one sample and one backward at a time."""
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(x)):
        model.zero_grad()
        objective(model(x[n : n + 1])[0], y[n]).backward()
        for name, p in model.named_parameters():
            sums[name] += p.grad.abs() ** power / len(x)
    model.zero_grad()
    return sums


def same(found, wanted, rtol=1e-10):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-14)


def test_reversed_logits_are_the_squared_gradient_of_a_loss_at_negated_logits():
    model, x, y = problem()

    def loss(z, label):
        exponentials = [math.e ** -z[c] for c in range(CLASSES)]
        return -torch.log(exponentials[label] / sum(exponentials))

    wanted = by_single_samples(model, x, y, loss, 2)
    same(importances.reversed_logits(model, (x, y)), wanted)
    same(importances.reversed_logits(model, (x, y), batch_size=2), wanted)


def test_reversed_logits_see_what_a_sure_network_hides():
    model, x, _ = problem()
    with torch.no_grad():
        model[-1].weight.mul_(3000)
        y = model(x).argmax(1)
    reversed_ = importances.reversed_logits(model, (x, y))
    empirical = fisher_diagonal(model, (x, y), "empirical")
    total = [sum(float(t.sum()) for t in F.values()) for F in (reversed_, empirical)]
    assert total[0] > 1000 * total[1]


def test_memory_aware_is_the_mean_absolute_gradient_of_the_squared_outputs():
    model, x, y = problem(1)
    wanted = by_single_samples(model, x, y, lambda z, _: (z * z).sum(), 1)
    same(importances.memory_aware(model, (x, None)), wanted)
    same(importances.memory_aware(model, (x, y), batch_size=3), wanted)
    assert all(p.grad is None for p in model.parameters())


def test_memory_aware_agrees_with_finite_differences():
    model, x, _ = problem(2)
    found = importances.memory_aware(model, (x[:1], None))["0.weight"]
    weight, h = model[0].weight, 1e-6

    @torch.no_grad()
    def length():
        return float(model(x[:1]).square().sum())

    for i, j in ((0, 0), (3, 2)):
        with torch.no_grad():
            weight[i, j] += h
            up = length()
            weight[i, j] -= 2 * h
            slope = (up - length()) / (2 * h)
            weight[i, j] += h
        assert found[i, j].item() == pytest.approx(abs(slope), rel=1e-5)


def recorded_training(along, ewc=None, steps=6, model_seed=3):
    """Train with plain gradient descent on all samples; return weights and gradients by step."""
    model, x, y = problem(model_seed)
    walker = along(model)
    weights, gradients = [], []

    def on_step(step):
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
        walker(step)

    weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
    train(model, (x, y), steps=steps, lr=0.3, batch_size=N, on_step=on_step, ewc=ewc and ewc(model))
    return walker, weights, gradients


def pulled(model):
    ewc = EWC(model, 2.0)
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    ewc.merge(ones, at={name: p.detach() + 1 for name, p in model.named_parameters()})
    return ewc


@pytest.mark.parametrize("ewc", [None, pulled])
def test_a_path_integral_adds_up_what_each_weight_brought_the_loss_down(ewc):
    xi = 0.02
    walker, weights, gradients = recorded_training(
        lambda model: importances.PathIntegral(model, xi), ewc
    )
    negative = 0
    for name, found in walker.importance().items():
        for i, value in enumerate(found.flatten().tolist()):
            path = [w[name].flatten()[i].item() for w in weights]
            slopes = [g[name].flatten()[i].item() for g in gradients]
            gain = sum(-g * (b - a) for g, a, b in zip(slopes, path, path[1:], strict=False))
            wanted = gain / ((path[-1] - path[0]) ** 2 + xi)
            negative += wanted < 0
            assert value == pytest.approx(max(wanted, 0.0), rel=1e-9, abs=1e-15)
    assert bool(negative) == (ewc is not None)  # descent alone makes no loss worse


def test_a_path_integral_is_the_loss_that_was_lost_for_small_steps():
    model, x, y = problem(3)
    walker = importances.PathIntegral(model, 1e9)  # so that Ω is ω over a number
    losses = train(model, (x, y), steps=400, lr=1e-3, batch_size=N, on_step=walker)
    total = 1e9 * sum(float(omega.sum()) for omega in walker.importance().values())
    assert total == pytest.approx(float(losses[0] - losses[-1]), rel=0.01)


def test_a_second_moment_is_adams_mean_of_squared_gradients():
    model, x, y = problem(4)
    adam, squares = importances.SecondMoment(model), []
    frozen = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    model.register_parameter("unused", frozen)
    train(
        model, (x, y), steps=5, lr=0.01, batch_size=3, optimizer=adam,
        on_step=lambda _: squares.append(
            {n: p.grad.square() for n, p in model.named_parameters() if p.grad is not None}
        ),
    )  # fmt: skip
    found = adam.importance()
    assert not found.pop("unused").any()
    ages = [0.999 ** (len(squares) - 1 - t) for t in range(len(squares))]
    same(
        found,
        {n: sum(a * s[n] for a, s in zip(ages, squares, strict=True)) / sum(ages) for n in found},
    )


def test_a_riemannian_walk_follows_its_definition_over_two_tasks():
    alpha, epsilon, every, steps = 0.9, 1e-3, 2, 4
    model, x, y = problem(5)
    walk = importances.RiemannianWalk(model, every, alpha, epsilon)
    fisher, mean_score = None, None
    for task in range(2):
        labels = (y + task) % CLASSES
        walk.begin(lambda labels=labels: (x, labels))
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        last, gain = dict(start), dict.fromkeys(start, 0.0)
        score = {n: torch.zeros_like(p) for n, p in start.items()}

        def on_step(step, labels=labels, last=last, gain=gain, start=start, score=score):
            nonlocal fisher
            here = {n: p.detach().clone() for n, p in model.named_parameters()}
            slopes = {n: p.grad.clone() for n, p in model.named_parameters()}
            walk(step)
            for n in here:
                gain[n] = gain[n] - slopes[n] * (here[n] - last[n])
                last[n] = here[n]
            if step % every == 0:
                batch = by_single_samples(model, x, labels, _cross_entropy, 2)
                fisher = batch if fisher is None else {
                    n: alpha * batch[n] + (1 - alpha) * fisher[n] for n in batch
                }  # fmt: skip
                for n in here:
                    distance = fisher[n] * (here[n] - start[n]) ** 2 / 2
                    score[n] += gain[n].clamp(min=0) / (distance + epsilon)
                    gain[n], start[n] = 0.0, here[n]

        train(model, (x, labels), steps=steps, lr=0.2, batch_size=N, on_step=on_step)
        mean_score = score if mean_score is None else {
            n: (mean_score[n] + score[n]) / 2 for n in score
        }  # fmt: skip
        top = [max(float(t.max()) for t in part.values()) for part in (fisher, mean_score)]
        found = walk.importance()
        same(found, {n: fisher[n] / top[0] + mean_score[n] / top[1] for n in fisher}, rtol=1e-8)
        assert all((t >= 0).all() for t in found.values())


def _cross_entropy(z, label):
    return z.logsumexp(0) - z[label]


def surface(rows, setting, method, peak):
    """Answer what a search wants with a bump around ``peak``, until it wants no more."""
    while True:
        known = set(rows[["lr", "lam"]].itertuples(index=False, name=None))
        new = [c for c in referee.wanted(rows, setting, method) if c not in known]
        if not new:
            return rows
        rows = pd.concat([rows, pd.DataFrame([
            {"setting": setting, "method": method, "lr": lr, "lam": lam, "seed": seed,
             "average_accuracy": -abs(math.log10(lam / peak[1])) - abs(math.log10(lr / peak[0]))}
            for lr, lam in new for seed in referee.SEARCH])])  # fmt: skip


@pytest.mark.parametrize("peak", [(1e-3, 3.2e5), (3e-3, 100.0), (1e-2, 0.01)])
def test_the_search_finds_a_peak_and_ends(peak):
    none = pd.DataFrame(columns=referee.COLUMNS).astype({"average_accuracy": float})
    rows = surface(none, "permuted-digits", "exact", peak)
    assert referee.ranked(rows, referee.SEARCH)[0] == peak
    assert len(rows) < 2 * 30


def test_further_seeds_decide_and_reported_ones_do_not():
    def row(lam, seed, accuracy):
        return {"setting": "permuted-digits", "method": "exact", "lr": 1e-3, "lam": lam,
                "seed": seed, "average_accuracy": accuracy}  # fmt: skip

    rows = pd.DataFrame(
        [row(lam, 100, luck) for lam, luck in ((1.0, 0.9), (10.0, 0.8), (100.0, 0.7))]
        + [row(1.0, 102, 0.5), row(10.0, 102, 0.6)]
        + [row(1.0, 0, 0.99), row(100.0, 0, 0.99), row(10.0, 0, 0.4)]
    )
    found = runs_of(rows, REPORTED)
    assert list(found.lam) == [10.0]
    assert list(found.average_accuracy) == [0.4]


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["permuted-digits", "split-digits"])
def test_lambda_zero_is_plain_training_for_every_method(setting, monkeypatch):
    quick = {name: replace(s, steps=12) for name, s in referee.SETTINGS.items()}
    monkeypatch.setattr(referee, "SETTINGS", quick)
    plain = referee.learn(setting, "plain", 3e-3, 0.0, 7)
    for method in ("exact", "Squisher", "MAS", "SI", "RWalk", "EWC-DR", "averaging", "path"):
        assert referee.learn(setting, method, 3e-3, 0.0, 7) == plain


def test_averaging_at_lambda_one_is_the_mean_of_all_tasks_weights(monkeypatch):
    monkeypatch.setattr(
        referee, "SETTINGS",
        {"permuted-digits": replace(referee.SETTINGS["permuted-digits"], steps=5)},
    )  # fmt: skip
    networks, ends = [], []
    build, trained = referee.network, referee.train
    monkeypatch.setattr(
        referee, "network", lambda *args: networks.append(build(*args)) or networks[-1]
    )

    def keeping(model, *args, **options):
        trained(model, *args, **options)
        ends.append([p.detach().clone() for p in model.parameters()])

    monkeypatch.setattr(referee, "train", keeping)
    referee.learn("permuted-digits", "averaging", 3e-3, 1.0, 7)
    for p, *parts in zip(networks[0].parameters(), *ends, strict=True):
        torch.testing.assert_close(p.detach(), sum(parts) / 3)


def test_a_split_setting_protects_what_tasks_share_and_no_head():
    net = referee.network("split-digits", 0)
    assert isinstance(net, ScenarioNet)
    assert all(name.startswith("backbone") for name in referee.penalty_of("SI", net, 1.0).names)


@pytest.mark.parametrize("setting", list(referee.SETTINGS))
def test_the_table_holds_what_the_search_asked_for_and_every_reported_seed(setting):
    rows = tables.load("importances")
    s = referee.SETTINGS[setting]
    for method in referee.METHODS:
        mine = rows[(rows.setting == setting) & (rows.method == method)]
        have = set(mine[["lr", "lam", "seed"]].itertuples(index=False, name=None))
        asked = referee.wanted(rows, setting, method)
        assert {(*cell, seed) for cell in asked for seed in referee.SEARCH} <= have
        if s.decide:
            last = referee.ranked(mine, referee.SEARCH)[: referee.FINALISTS]
            assert {(*cell, seed) for cell in last for seed in referee.DECIDE} <= have
        assert list(runs_of(mine, REPORTED).index) == list(range(s.report))
    assert not rows.duplicated(referee.KEY).any()
