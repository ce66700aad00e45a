"""The retention report names what went wrong in trainings where it is known."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ewc_tutorial import EWC, retention_report
from ewc_tutorial.course.tasks import permuted_tasks
from ewc_tutorial.curvature import Kronecker
from ewc_tutorial.diagnosis.intervals import change, proportion
from ewc_tutorial.evaluation import per_sample

A, B = permuted_tasks(2, seed=0)


def network(batch_norm=False, width=32):
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(width)] if batch_norm else []
    return nn.Sequential(nn.Linear(64, width), *norm, nn.ReLU(), nn.Linear(width, 10))


def fit(model, task, ewc=None, *, lr=0.3, steps=250, labels=None):
    x, y = task.train.tensors
    y = y if labels is None else labels
    optimizer = torch.optim.SGD(model.parameters(), lr)
    handle = ewc and ewc.attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (32,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    if handle:
        handle.remove()


@pytest.fixture(scope="module")
def learned():
    """Two networks that know A, without and with BatchNorm."""
    found = {}
    for batch_norm in (False, True):
        model = network(batch_norm)
        fit(model, A)
        found[batch_norm] = model
    return found


def trained(learned, lam=0.0, *, use=True, batch_norm=False, curvature="diagonal", **options):
    """Return model, state before and EWC after B was trained."""
    model = copy.deepcopy(learned[batch_norm])
    ewc = EWC(model, lam=lam, curvature=curvature)
    ewc.consolidate(A)
    before = copy.deepcopy(model.state_dict())
    fit(model, B, ewc if use else None, **options)
    return model, before, ewc


def names(report):
    return [finding.name for finding in report.findings]


def report_of(learned, lam=0.0, **options):
    model, before, ewc = trained(learned, lam, **options)
    return retention_report(model, before, A.test, B.test, ewc)


# --- seeded cases -------------------------------------------------------------------------------


def test_forgotten_without_a_penalty(learned):
    model, before, _ = trained(learned, use=False)
    report = retention_report(model, before, A.test, B.test)
    assert names(report) == ["forgotten"]
    assert "train with a penalty" in report.action
    assert not report
    assert report.action in repr(report)


def test_forgotten_with_springs_that_are_too_soft(learned):
    report = report_of(learned, 1.0)
    assert names(report) == ["forgotten"]
    more = float(report.action.split("larger λ, ")[1].split(" next")[0])
    assert 2 <= more <= 10
    # The advice is good: there the old task keeps more.
    assert report_of(learned, more).old.after.value > report.old.after.value


def test_forgotten_by_weights_without_springs(learned):
    # The springs do not see a step in weights whose F is zero.
    model, before, ewc = trained(learned, 1e4)
    report = retention_report(model, before, A.test, B.test, ewc)
    assert names(report) == ["forgotten"]
    assert "F + ε" in report.action


@pytest.mark.parametrize("lam", [1e8, 1e12])
def test_too_stiff(learned, lam):
    report = report_of(learned, lam)
    assert names(report) == ["too stiff"]
    assert f"smaller λ than {lam:g}" in report.action
    assert report.old.change.value == pytest.approx(0, abs=0.02)


def test_too_stiff_with_kronecker_factors(learned):
    assert names(report_of(learned, 1e6, curvature="kronecker")) == ["too stiff"]


@pytest.mark.parametrize("lam", [0.0, 1000.0])
def test_nothing_learned_as_the_learning_rate_is_too_small(learned, lam):
    report = report_of(learned, lam, lr=1e-5, steps=100)
    assert names(report) == ["nothing learned"]
    assert "learning rate" in report.action


@pytest.mark.parametrize("lam", [0.0, 30.0])
def test_nothing_learned_as_the_labels_are_others(learned, lam):
    order = torch.randperm(len(B.train), generator=torch.Generator().manual_seed(0))
    report = report_of(learned, lam, labels=B.train.tensors[1][order])
    assert names(report)[-1] == "nothing learned"
    assert "belong together" in report.findings[-1].advice


def test_running_statistics_that_drifted(learned):
    model, before, ewc = trained(learned, 100.0, batch_norm=True)
    report = retention_report(model, before, A.test, B.test, ewc)
    assert names(report) == ["running statistics"]
    # It is right: with the old statistics the old task is back.
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    found = proportion(per_sample(model, A.test).correct)
    assert found.value > report.old.after.value + 0.3


def test_forgetting_beside_running_statistics_is_forgetting(learned):
    assert "forgotten" in names(report_of(learned, 0.0, batch_norm=True))


def test_names_of_a_wrapped_model(learned):
    model, before, ewc = trained(learned, 30.0, use=False)
    stored = [{f"module.{k}": v for k, v in part.items()} for part in (ewc.importance, ewc.anchor)]
    report = retention_report(
        model, before, A.test, B.test, fisher=stored[0], anchor=stored[1], lam=30.0
    )
    assert names(report)[0] == "names never match"
    assert names(report)[-1] == "forgotten"
    assert "same, unwrapped model" in report.action


def test_a_penalty_that_was_never_used(learned):
    assert names(report_of(learned, 1000.0, use=False))[0] == "penalty not used"


def test_nothing_consolidated(learned):
    model, before, _ = trained(learned, use=False)
    report = retention_report(model, before, A.test, B.test, EWC(model, lam=10))
    assert names(report) == ["nothing consolidated", "forgotten"]


def test_not_trained(learned):
    report = report_of(learned, 1.0, steps=0)
    assert names(report) == ["not trained"]


def test_too_few_samples_to_tell(learned):
    model, before, ewc = trained(learned, 30.0, lr=0.01, steps=60)
    few = tuple(t[:20] for t in A.test.tensors)
    report = retention_report(model, before, few, B.test, ewc)
    assert "not clear" in names(report)
    assert "20 samples" in repr(report)


def test_all_is_well_where_the_old_is_kept_and_the_new_learned(learned):
    # Training on the old samples beside the new ones needs no penalty.
    model = copy.deepcopy(learned[False])
    before = copy.deepcopy(model.state_dict())
    both = [torch.cat(parts) for parts in zip(A.train.tensors, B.train.tensors, strict=True)]
    task = copy.copy(A)
    object.__setattr__(task, "train", torch.utils.data.TensorDataset(*both))
    fit(model, task, steps=900)
    report = retention_report(model, before, A.test, B.test, may_lose=0.05)
    assert report, report
    assert "Nothing to do" in repr(report)


# --- numbers ------------------------------------------------------------------------------------


def test_what_moved_and_what_it_costs(learned):
    model, before, ewc = trained(learned, 30.0)
    report = retention_report(model, before, A.test, B.test, ewc)
    assert list(report.moved) == ["0", "2"]
    for layer, moved in report.moved.items():
        pairs = [
            (model.state_dict()[f"{layer}.{k}"], before[f"{layer}.{k}"]) for k in ("weight", "bias")
        ]
        away = sum((a - b).square().sum().item() for a, b in pairs) ** 0.5
        size = sum(b.square().sum().item() for _, b in pairs) ** 0.5
        assert moved.relative == pytest.approx(away / size, rel=1e-5)
    total = sum(moved.penalty for moved in report.moved.values())
    assert total == pytest.approx(ewc.penalty().item(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("curvature", ["kronecker", "identity", Kronecker(eigenvalues="exact")])
def test_the_penalty_of_other_curvatures(learned, curvature):
    model, before, ewc = trained(learned, 0.1, curvature=curvature)
    report = retention_report(model, before, A.test, B.test, ewc)
    total = sum(moved.penalty for moved in report.moved.values())
    assert total == pytest.approx(ewc.penalty().item(), rel=1e-3)
    assert not {"names do not match", "shape"} & {*names(report)}


def test_accuracy_and_loss_are_those_of_the_networks(learned):
    model, before, ewc = trained(learned, 30.0)
    report = retention_report(model, before, A.test, B.test, ewc, n_samples=None)
    x, y = A.test.tensors
    earlier = network()
    earlier.load_state_dict(before)
    for net, level, loss in (
        (earlier, report.old.before, report.old.loss[0]),
        (model, report.old.after, report.old.loss[1]),
    ):
        assert level.value == pytest.approx((net(x).argmax(1) == y).float().mean().item())
        assert loss == pytest.approx(functional.cross_entropy(net(x), y).item(), rel=1e-5)
        assert level.low < level.value < level.high
    assert report.old.change.value == pytest.approx(
        report.old.after.value - report.old.before.value
    )


def test_nothing_is_changed(learned):
    model, before, ewc = trained(learned, 30.0, batch_norm=True)
    model.train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    mine = copy.deepcopy(ewc.state_dict())
    model[0].weight.grad = torch.ones_like(model[0].weight)
    retention_report(model, before, A.test, B.test, ewc)
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    for key, value in ewc.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(mine[key], value)
    assert model.training
    assert model[0].weight.grad.eq(1).all()
    assert torch.equal(random, torch.get_rng_state())


def test_wilson_against_its_definition():
    # The interval holds the p that are within z standard errors, taken at p, of what was seen.
    for n, k in ((10, 0), (10, 10), (50, 7), (400, 390)):
        found = proportion(np.arange(n) < k)
        p = np.linspace(0, 1, 200_001)
        inside = p[(k / n - p) ** 2 <= 1.959964**2 * p * (1 - p) / n + 1e-15]
        assert found.low == pytest.approx(inside.min(), abs=1e-5)
        assert found.high == pytest.approx(inside.max(), abs=1e-5)


def test_the_interval_of_a_change_covers_it():
    rng = np.random.default_rng(0)
    hits, width, n = 0, [], 120
    for _ in range(1000):
        before = rng.random(n) < 0.9
        after = np.where(rng.random(n) < 0.8, before, rng.random(n) < 0.6)  # pairs that agree
        found = change(before, after)
        hits += found.low <= 0.2 * (0.6 - 0.9) <= found.high
        width.append(found.high - found.low)
    assert 0.93 <= hits / 1000 <= 0.99
    # Two intervals that know nothing of the pairs are wider.
    apart = 2 * 1.96 * math.sqrt((0.9 * 0.1 + 0.84 * 0.16) / n)
    assert np.mean(width) < 0.9 * apart


def test_a_change_of_nothing_has_a_width():
    same = np.arange(50) < 45
    found = change(same, same)
    assert found.value == 0
    assert -0.1 < found.low < 0 < found.high < 0.1


# --- bad input ----------------------------------------------------------------------------------


def test_a_state_that_went_along_with_the_training_is_refused(learned):
    model = copy.deepcopy(learned[False])
    before = model.state_dict()  # shares its memory
    with pytest.raises(ValueError, match=r"before shares the memory of '0\.weight'.*deepcopy"):
        retention_report(model, before, A.test, B.test)


def test_a_state_of_another_model_is_refused(learned):
    model = copy.deepcopy(learned[False])
    with pytest.raises(ValueError, match=r"its '0\.weight' has shape \(16, 64\), and the model's"):
        retention_report(model, network(width=16).state_dict(), A.test, B.test)
    with pytest.raises(ValueError, match=r"its '0\.weight' has shape None"):
        retention_report(model, {}, A.test, B.test)


@pytest.mark.parametrize("may_lose", [-0.1, 1, True])
def test_what_may_be_lost_is_checked(learned, may_lose):
    model, before, _ = trained(learned, steps=1)
    with pytest.raises(ValueError, match="may_lose must be at least 0 and below 1"):
        retention_report(model, before, A.test, B.test, may_lose=may_lose)


def test_data_without_labels_are_refused(learned):
    model, before, _ = trained(learned, steps=1)
    with pytest.raises(ValueError, match="needs logits"):
        retention_report(model, before, [A.test.tensors[0][:5]], B.test)
