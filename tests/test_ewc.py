"""EWC against brute force: a stored quadratic per task, finite differences, closed forms."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ewc_tutorial.course.models import mlp
from ewc_tutorial.ewc import EWC, L2, RULES


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return mlp(3, [4], 2, activation=nn.Tanh, seed=seed).to(dtype)


def random_fisher(model: nn.Module, seed: int, sparse: bool = True) -> dict[str, torch.Tensor]:
    """Positive numbers over several orders of magnitude, some of them exactly zero."""
    g = torch.Generator().manual_seed(seed)
    fisher = {}
    for name, p in model.named_parameters():
        F = 10 ** (4 * torch.rand(p.shape, generator=g, dtype=p.dtype) - 3)
        if sparse:
            F[torch.rand(p.shape, generator=g) < 0.3] = 0
        fisher[name] = F
    return fisher


def move(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g, dtype=p.dtype))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def after_tasks(n_tasks: int, rule: str, lam: float = 3.0, gamma: float = 1.0):
    """Consolidate random tasks; return model, EWC and the list of (F, θ*) that went in."""
    model = network()
    ewc = EWC(model, lam, rule, gamma)
    stored = []
    for task in range(n_tasks):
        move(model, seed=10 + task)
        fisher = random_fisher(model, seed=task)
        stored.append((fisher, snapshot(model)))
        ewc.merge(fisher)
    move(model, seed=99)
    return model, ewc, stored


def brute_force_penalty(model, stored, rule, lam, gamma=1.0):
    """The definition of each rule, written with every task's quadratic kept."""
    theta = snapshot(model)
    last = stored[-1][1]
    T = len(stored)
    total = 0.0
    for t, (fisher, anchor) in enumerate(stored):
        center = anchor if rule == "separate" else last
        weight = {"separate": 1, "latest": 1, "online": gamma ** (T - 1 - t), "average": 1 / T}[
            rule
        ]
        for name, F in fisher.items():
            total += weight * (F * (theta[name] - center[name]) ** 2).sum().item()
    return lam / 2 * total


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n_tasks", [1, 2, 5])
def test_the_penalty_is_the_definition(rule, n_tasks):
    gamma = 0.7 if rule == "online" else 1.0
    model, ewc, stored = after_tasks(n_tasks, rule, lam=3.0, gamma=gamma)
    expected = brute_force_penalty(model, stored, rule, 3.0, gamma)
    assert ewc.penalty().item() == pytest.approx(expected, rel=1e-12)


def test_the_constant_of_the_collapse_is_included():
    model, ewc, stored = after_tasks(3, "separate", lam=1.0)
    with torch.no_grad():
        for p, mu in zip(model.parameters(), ewc.anchor.values(), strict=True):
            p.copy_(mu)
    # At the common minimum the true sum is what the tasks disagree by, not zero.
    assert ewc.penalty().item() > 0.1
    assert ewc.penalty().item() == pytest.approx(
        brute_force_penalty(model, stored, "separate", 1.0), rel=1e-12
    )


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_that_of_finite_differences(rule):
    model, ewc, _ = after_tasks(3, rule)
    ewc.penalty().backward()
    for p in model.parameters():
        for i in range(p.numel()):
            flat, h = p.data.view(-1), 1e-5
            value = flat[i].item()
            flat[i] = value + h
            up = ewc.penalty().item()
            flat[i] = value - h
            down = ewc.penalty().item()
            flat[i] = value
            assert p.grad.view(-1)[i].item() == pytest.approx((up - down) / (2 * h), abs=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_add_gradient_is_the_gradient_of_the_penalty(rule):
    model, ewc, _ = after_tasks(3, rule)
    x = torch.randn(5, 3, dtype=torch.float64)
    (model(x).square().sum() + ewc.penalty()).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    ewc.add_gradient_()
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-12)


def test_steps_see_what_is_changed_in_place():
    """What a step keeps between calls must not outlive the S and μ that it was computed from."""
    model, ewc, _ = after_tasks(2, "separate")
    for step in (ewc.add_gradient_, lambda: ewc.proximal_step_(0.1)):
        step()
        for S, mu in zip(ewc.importance.values(), ewc.anchor.values(), strict=True):
            S.mul_(3)
            mu.add_(1)
        other = copy.deepcopy((model, ewc))
        model.zero_grad()
        step()
        fresh = EWC(other[0], ewc.lam)
        fresh.load_state_dict(other[1].state_dict())
        other[0].zero_grad()
        fresh.add_gradient_() if step == ewc.add_gradient_ else fresh.proximal_step_(0.1)
        for p, q in zip(model.parameters(), other[0].parameters(), strict=True):
            assert torch.equal(p, q)
            assert p.grad is None or torch.equal(p.grad, q.grad)


def test_the_float32_gradient_errs_by_a_rounding_of_the_weight():
    """Against float64 at weights that have hardly moved, where λS(θ − μ) cancels most."""
    model = network(dtype=torch.float32)
    ewc = EWC(model, lam=1e6)
    ewc.merge({n: F.float() for n, F in random_fisher(network(), seed=0).items()})
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 1e-5)
    ewc.add_gradient_()
    for name, p in model.named_parameters():
        S, mu = ewc.importance[name].double(), ewc.anchor[name].double()
        exact = ewc.lam * S * (p.double() - mu)
        ulp = torch.finfo(torch.float32).eps * p.double().abs()
        assert ((p.grad.double() - exact).abs() <= 2 * ewc.lam * S * ulp).all()


def test_add_gradient_reaches_parameters_that_the_loss_does_not():
    model, ewc, _ = after_tasks(1, "separate")
    ewc.add_gradient_()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    ewc.penalty().backward()
    for p, g in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, g)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1e8), st.floats(1e-6, 10), st.integers(0, 5))
def test_the_proximal_step_is_its_closed_form_at_every_strength(lam, lr, seed):
    model = network(seed)
    ewc = EWC(model, lam)
    fisher = random_fisher(model, seed)
    anchor = snapshot(model)
    ewc.merge(fisher)
    move(model, seed + 1)
    before = snapshot(model)
    ewc.proximal_step_(lr)
    for name, p in model.named_parameters():
        x = lr * lam * fisher[name]
        torch.testing.assert_close(
            p.detach(), (before[name] + x * anchor[name]) / (1 + x), rtol=1e-9, atol=1e-12
        )


def test_the_proximal_step_minimises_what_it_claims_to():
    model, ewc, _ = after_tasks(2, "separate", lam=5.0)
    lr, start = 0.3, [p.detach().clone() for p in model.parameters()]
    ewc.proximal_step_(lr)
    near = sum((p - s).square().sum() for p, s in zip(model.parameters(), start, strict=True))
    grads = torch.autograd.grad(ewc.penalty() + near / (2 * lr), list(model.parameters()))
    assert max(g.abs().max() for g in grads) < 1e-10


def test_a_changed_lr_or_lam_is_seen_by_the_next_proximal_step():
    model, ewc, _ = after_tasks(1, "separate", lam=1.0)
    twin, twin_ewc = copy.deepcopy((model, ewc))
    ewc.proximal_step_(0.1)
    ewc.lam = 7.0
    ewc.proximal_step_(0.1)
    ewc.proximal_step_(0.01)
    for lam, lr in ((1.0, 0.1), (7.0, 0.1), (7.0, 0.01)):
        x = {n: lr * lam * S for n, S in twin_ewc.importance.items()}
        with torch.no_grad():
            for n, p in twin.named_parameters():
                p.copy_((p + x[n] * twin_ewc.anchor[n]) / (1 + x[n]))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_memory_does_not_grow_with_the_tasks(rule):
    _, one, _ = after_tasks(1, rule)
    _, many, _ = after_tasks(9, rule)
    assert [b.shape for b in one.buffers()] == [b.shape for b in many.buffers()]


def test_before_the_first_task_everything_is_zero():
    model = network()
    ewc = EWC(model, lam=1e8)
    before = snapshot(model)
    assert ewc.penalty().item() == 0
    ewc.add_gradient_()
    ewc.proximal_step_(0.1)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_consolidate_takes_the_fisher_of_the_data_at_the_present_weights():
    model = mlp(3, [], 2, seed=0).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    ewc = EWC(model)
    ewc.consolidate((x, torch.zeros(7, dtype=torch.int64)))
    p = model(x).softmax(1).detach()
    # Softmax regression in closed form: E_y[(p − e_y)²] = p(1 − p), times the squared input.
    expected = (p * (1 - p)).T @ x.square() / 7
    torch.testing.assert_close(ewc.importance["0.weight"], expected)
    torch.testing.assert_close(ewc.anchor["0.weight"], model[0].weight.detach())


def test_the_anchor_is_a_copy():
    model, ewc, _ = after_tasks(1, "latest")
    anchor = {n: a.clone() for n, a in ewc.anchor.items()}
    move(model, seed=5)
    assert all(torch.equal(a, ewc.anchor[n]) for n, a in anchor.items())


def test_weights_weigh_tasks():
    model = network()
    F1, F2 = random_fisher(model, 1), random_fisher(model, 2)
    total, mean = EWC(model), EWC(model, rule="average")
    for ewc in (total, mean):
        ewc.merge(F1, weight=3.0)
        ewc.merge(F2, weight=1.0)
    for n in F1:
        torch.testing.assert_close(total.importance[n], 3 * F1[n] + F2[n])
        torch.testing.assert_close(mean.importance[n], (3 * F1[n] + F2[n]) / 4)


def test_the_model_is_not_owned():
    model = network()
    ewc = EWC(model)
    assert list(ewc.parameters()) == []
    assert list(ewc.children()) == []
    assert not any("weight" in key and "anchor" not in key and "importance" not in key
                   for key in ewc.state_dict())  # fmt: skip
    ewc.eval()
    assert model.training


def test_l2_is_one_everywhere_around_the_last_optimum():
    model = network()
    l2 = L2(model, lam=2.0)
    l2.consolidate()
    move(model, seed=1)
    l2.consolidate()
    last = snapshot(model)
    move(model, seed=2)
    expected = sum((p - last[n]).square().sum() for n, p in model.named_parameters())
    assert l2.penalty().item() == pytest.approx(expected.item(), rel=1e-12)


# --- which parameters -------------------------------------------------------------------------


def test_include_exclude_and_frozen_parameters():
    model = network()
    assert EWC(model, include="0.*").names == ["0.weight", "0.bias"]
    assert EWC(model, exclude=["*.bias"]).names == ["0.weight", "2.weight"]
    assert EWC(model, include="0.*", exclude="*.bias").names == ["0.weight"]
    model[0].weight.requires_grad_(False)
    assert EWC(model).names == ["0.bias", "2.weight", "2.bias"]


def test_buffers_are_not_protected():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert EWC(model).names == ["0.weight", "0.bias", "1.weight", "1.bias"]


# --- state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_state_restores_and_goes_on_the_same(rule):
    model, ewc, _ = after_tasks(3, rule, gamma=0.5 if rule == "online" else 1.0)
    twin = copy.deepcopy(model)
    restored = EWC(twin, rule=rule)
    restored.load_state_dict(ewc.state_dict())
    assert restored.lam == ewc.lam
    assert restored.gamma == ewc.gamma
    for m, e in ((model, ewc), (twin, restored)):
        e.merge(random_fisher(m, seed=50))
        move(m, seed=60)
    assert restored.penalty().item() == ewc.penalty().item()


@pytest.mark.slow
def test_the_state_restores_in_a_fresh_process(tmp_path):
    model, ewc, _ = after_tasks(2, "separate")
    torch.save({"model": model.state_dict(), "ewc": ewc.state_dict()}, tmp_path / "state.pt")
    script = f"""
import torch
from torch import nn
from ewc_tutorial import EWC
state = torch.load({str(tmp_path / "state.pt")!r}, weights_only=True)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
model.load_state_dict(state["model"])
ewc = EWC(model)
ewc.load_state_dict(state["ewc"])
print(repr(ewc.penalty().item()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == ewc.penalty().item()


def test_deepcopy_of_the_pair_is_independent():
    model, ewc, _ = after_tasks(1, "separate")
    twin_model, twin = copy.deepcopy((model, ewc))
    before = ewc.penalty().item()
    move(twin_model, seed=7)
    assert ewc.penalty().item() == before
    assert twin.penalty().item() != before


def test_a_half_precision_model_accumulates_in_float32():
    model = network(dtype=torch.bfloat16)
    ewc = EWC(model, lam=1.0)
    ewc.merge({n: torch.full_like(p, 256.0) for n, p in model.named_parameters()})
    ewc.merge({n: torch.ones_like(p) for n, p in model.named_parameters()})
    # In bfloat16 256 + 1 is 256.
    assert all((S == 257).all() for S in ewc.importance.values())
    move(model, seed=1)
    ewc.penalty().backward()
    ewc.add_gradient_()
    ewc.proximal_step_(0.1)
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in model.parameters())


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [-1.0, math.nan, math.inf, "3"])
def test_a_bad_lam_is_refused_at_once_and_later(lam):
    with pytest.raises(ValueError, match="lam must be a finite number that is not negative"):
        EWC(network(), lam)
    ewc = EWC(network(), 2.0)
    with pytest.raises(ValueError, match="lam must be a finite number"):
        ewc.lam = lam
    assert ewc.lam == 2.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "sum"}, "rule must be one of separate, latest, online, average, not 'sum'"),
        ({"rule": "online", "gamma": 1.5}, "gamma must be between 0 and 1, not 1.5"),
        ({"gamma": 0.5}, "gamma applies to the rule 'online' only, not to 'separate'"),
        ({"include": "head.*"}, "include pattern 'head.*' matches no trainable parameter"),
        ({"exclude": "head.*"}, "exclude pattern 'head.*' matches no trainable parameter"),
        ({"exclude": "*"}, "leave no parameter to protect"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words.replace("*", r"\*")):
        EWC(network(), **options)


def test_a_model_without_trainable_parameters_is_refused():
    model = network().requires_grad_(False)
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        EWC(model)


@pytest.mark.parametrize("lr", [-0.1, math.nan])
def test_a_bad_lr_is_refused(lr):
    _, ewc, _ = after_tasks(1, "separate")
    with pytest.raises(ValueError, match="lr must be a finite number"):
        ewc.proximal_step_(lr)


@pytest.mark.parametrize("fault", ["nan", "negative", "missing", "shape"])
def test_a_bad_fisher_is_refused_and_changes_nothing(fault):
    model, ewc, _ = after_tasks(2, "separate")
    fisher = random_fisher(model, seed=8)
    if fault == "missing":
        del fisher["2.bias"]
    elif fault == "shape":
        fisher["2.bias"] = fisher["2.bias"][:1]
    else:
        fisher["2.bias"][0] = math.nan if fault == "nan" else -1.0
    before = copy.deepcopy(ewc.state_dict())
    with pytest.raises(ValueError, match="2.bias"):
        ewc.merge(fisher)
    after = ewc.state_dict()
    assert before["_extra_state"] == after["_extra_state"]
    assert all(torch.equal(before[k], after[k]) for k in before if k != "_extra_state")


@pytest.mark.parametrize("curvature", ["diagonal", "compact", "kronecker"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5])
def test_the_number_that_is_no_fisher_is_named(curvature, value):
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    ewc = EWC(model, curvature=curvature)
    fisher = {name: torch.ones(shape) for name, shape in ewc.shapes().items()}
    fisher["1.bias"][1] = value
    words = rf"fisher\['1.bias'\] must be finite and not negative, not {value:g}\."
    with pytest.raises(ValueError, match=words):
        ewc.merge(fisher)
    if curvature == "kronecker" and value != -0.5:
        fisher["0.weight:A"][0, 1] = value
        with pytest.raises(ValueError, match=rf"A'\] must be finite, not {value:g}\."):
            ewc.merge(fisher | {"1.bias": torch.ones(2)})


def test_non_finite_weights_are_refused():
    model, ewc, _ = after_tasks(1, "separate")
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="Parameter '0.weight' of the model is not finite"):
        ewc.merge(random_fisher(model, seed=1))


def test_a_changed_shape_or_name_is_noticed():
    model, ewc, _ = after_tasks(1, "separate")
    head = model[2]
    model[2] = nn.Linear(4, 5).double()
    with pytest.raises(RuntimeError, match=r"'2.weight' has shape \(5, 4\), but was \(2, 4\)"):
        ewc.penalty()
    del model[2]
    with pytest.raises(RuntimeError, match="no parameter '2.weight' any more"):
        ewc.proximal_step_(0.1)
    model.append(head)
    ewc.penalty()


def test_a_state_of_another_rule_or_shape_changes_nothing():
    _, ewc, _ = after_tasks(2, "separate")
    state = ewc.state_dict()
    other = EWC(network(), rule="latest")
    with pytest.raises(ValueError, match="consolidated with rule='separate'"):
        other.load_state_dict(state)
    wider = EWC(mlp(3, [5], 2))
    with pytest.raises(RuntimeError, match="has shape"):
        wider.load_state_dict(state)
    deeper = EWC(mlp(3, [4, 4], 2))
    with pytest.raises(RuntimeError, match="has shape|protects other parameters"):
        deeper.load_state_dict(state)
    for untouched in (other, wider, deeper):
        assert untouched.n_tasks == 0
        assert not any(b.any() for b in untouched.buffers())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_follows_the_model_to_another_device():
    model, ewc, stored = after_tasks(2, "separate")
    expected = brute_force_penalty(model, stored, "separate", ewc.lam)
    model.cuda()
    assert ewc.penalty().item() == pytest.approx(expected)
    ewc.proximal_step_(0.1)


# --- what it protects, and around it -----------------------------------------------------------


def test_consolidate_is_merge_of_measure():
    data = (torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 2)
    one, two = EWC(network()), EWC(network())
    one.consolidate(data, "empirical", weight=2.0)
    two.merge(two.measure(data, "empirical"), 2.0)
    assert all(torch.equal(one.importance[n], two.importance[n]) for n in one.names)
    assert two.values().keys() == two.weights().keys() == set(two.names)


def test_measure_differentiates_what_is_protected_and_leaves_the_rest_as_it_was():
    model = network()
    model[0].bias.requires_grad_(False)
    ewc = EWC(model, exclude="2.*")
    data = (torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 2)
    assert ewc.measure(data).keys() == {"0.weight"}
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]


def test_layers_that_are_unfrozen_later_are_noticed():
    model = network()
    model[0].requires_grad_(False)
    ewc = EWC(model, exclude="*.bias")
    fisher = random_fisher(model, seed=0)
    ewc.merge(fisher)
    model[0].requires_grad_(True)
    assert ewc.unfrozen() == ["0.weight"]  # the bias was left out on purpose
    with pytest.warns(UserWarning, match=r"1 parameters, such as '0.weight', were frozen"):
        ewc.merge(fisher)
    with pytest.warns(UserWarning, match="trained now without any protection"):
        ewc.attach(torch.optim.SGD(model.parameters(), lr=0.1))


class Parent(nn.Module):
    """A module that has a model and its EWC as parts, as a LightningModule does."""

    def __init__(self, **options):
        super().__init__()
        self.net = network(dtype=torch.float32)
        self.ewc = EWC(self.net, **options)


def test_a_parent_that_loads_another_rule_is_refused():
    saved = Parent(rule="separate")
    saved.ewc.merge(random_fisher(saved.net, seed=0))
    other = Parent(rule="online", gamma=0.5)
    with pytest.raises(RuntimeError, match="consolidated with rule='separate'"):
        other.load_state_dict(saved.state_dict())
    assert (other.ewc.gamma, other.ewc.n_tasks) == (0.5, 0)
    assert not any(b.any() for b in other.ewc.buffers())
    same = Parent(rule="separate")
    same.load_state_dict(saved.state_dict())
    assert same.ewc.n_tasks == 1


def test_an_l2_is_not_taken_for_a_mean_of_fishers():
    l2 = L2(network())
    l2.consolidate()
    with pytest.raises(ValueError, match="with curvature='identity'"):
        EWC(network(), rule="average").load_state_dict(l2.state_dict())


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_a_parent_in_another_precision_leaves_importance_exact(cast):
    parent = Parent(lam=2.0)
    fisher = {n: 1e-9 * F for n, F in random_fisher(parent.net, seed=0).items()}  # 0 in float16
    parent.ewc.merge(fisher)
    before = {n: S.clone() for n, S in parent.ewc.importance.items()}
    getattr(parent, cast)()
    for name, S in parent.ewc.importance.items():
        assert S.dtype == (torch.float64 if cast == "double" else torch.float32)
        assert torch.equal(S.float(), before[name])
    parent.ewc.proximal_step_(0.1)
    parent.ewc.add_gradient_()


def test_a_replaced_head_leaves_the_rest_to_carry_over():
    model, ewc, _ = after_tasks(2, "separate")
    model[2] = nn.Linear(4, 7).double()
    with pytest.raises(RuntimeError, match=r"make a new one with exclude='2.weight'.*strict=False"):
        ewc.penalty()
    fresh = EWC(model, exclude="2.*")
    fresh.load_state_dict(ewc.state_dict(), strict=False)
    assert fresh.n_tasks == 2
    for name in fresh.names:
        assert torch.equal(fresh.importance[name], ewc.importance[name])
        assert torch.equal(fresh.anchor[name], ewc.anchor[name])


def test_the_penalty_of_what_was_carried_over_is_that_of_these_layers_alone():
    model, ewc, stored = after_tasks(3, "separate")
    kept = EWC(model, exclude="2.*")
    kept.load_state_dict(ewc.state_dict(), strict=False)
    first = {n for n in ewc.names if n.startswith("0.")}
    now = snapshot(model)
    expected = sum(
        0.5 * ewc.lam * (F[n] * (now[n] - theta[n]).square()).sum()
        for F, theta in stored
        for n in first
    )
    assert kept.penalty().item() == pytest.approx(expected.item())


@pytest.mark.parametrize("curvature", ["diagonal", "compact"])
def test_what_a_state_lacks_stays_as_it_is(curvature):
    model = network()
    whole = EWC(model, lam=2.0, curvature=curvature)
    part = EWC(model, lam=2.0, curvature=curvature, include="0.*")
    for task in range(3):
        move(model, seed=task)
        whole.merge(random_fisher(model, seed=task))
    part.merge(random_fisher(model, seed=7))
    separate = [EWC(model, lam=2.0, include=p, curvature=curvature) for p in ("0.*", "2.*")]
    separate[0].load_state_dict(part.state_dict())
    separate[1].load_state_dict(whole.state_dict(), strict=False)
    whole.load_state_dict(part.state_dict(), strict=False)
    assert (whole.n_tasks, whole.summed) == (3, 3.0)
    expected = sum(each.penalty().item() for each in separate)
    assert whole.penalty().item() == pytest.approx(expected, rel=1e-6)
    move(model, seed=9)
    expected = sum(each.penalty().item() for each in separate)
    assert whole.penalty().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_without_its_numbers_is_refused(strict):
    parent = Parent()
    parent.ewc.merge(random_fisher(parent.net, seed=0))
    for module, name in ((parent.ewc, "_extra_state"), (parent, "ewc._extra_state")):
        state = {n: v for n, v in module.state_dict().items() if n != name}
        other = Parent()
        target = other if module is parent else other.ewc
        with pytest.raises((ValueError, RuntimeError), match=f"but no '{name}' with the rule"):
            target.load_state_dict(state, strict=strict)
        assert not any(b.any() for b in other.ewc.buffers())
    other.load_state_dict(parent.net.state_dict(prefix="net."), strict=False)  # without an EWC
    assert other.ewc.n_tasks == 0


def test_l2_checks_what_it_does_not_use():
    l2 = L2(network())
    with pytest.raises(ValueError, match="estimator must be one of exact"):
        l2.consolidate(None, "nonsense")
    with pytest.raises(TypeError, match="foo"):
        l2.consolidate(None, foo=3)
    l2.consolidate(None, "exact", n_samples=5, weight=2.0)
    assert all((S == 1).all() for S in l2.importance.values())
