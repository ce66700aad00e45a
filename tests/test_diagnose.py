"""Every detectable mistake is found, a correct set-up raises no alarm, and nothing is changed."""

from __future__ import annotations

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from ewc_tutorial import EWC, L2, diagnose
from ewc_tutorial.course import bugs, mlp, train
from ewc_tutorial.course.bugs import BUGS, Springs, copied_anchor, mean_of_squares
from ewc_tutorial.course.tasks import permuted_tasks
from ewc_tutorial.fisher import fisher_diagonal


@pytest.fixture(scope="module")
def tasks():
    return permuted_tasks(2, n_train=300)


@pytest.fixture(scope="module")
def trained(tasks):
    net = mlp(64, [30], 10, dropout=0.2, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        train(net, tasks[0], epochs=40)
    return net.eval()


@pytest.fixture
def model(trained):
    return deepcopy(trained)


@pytest.fixture(scope="module")
def loader(tasks):
    x, y = tasks[0].train.tensors
    return list(zip(x.split(32), y.split(32), strict=True))


@pytest.fixture(scope="module")
def right(trained, loader):
    return mean_of_squares(trained, loader)


def names(report):
    assert bool(report) == (not report.findings)
    return [finding.name for finding in report.findings]


# --- No false alarms ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "n_samples", "rule"),
    [  # Where F comes from and how it is merged are independent: all of each, not all pairs.
        *((e, n, "separate") for e in ("exact", "empirical", "sampled") for n in (None, 200)),
        *(("exact", None, rule) for rule in ("latest", "online", "average")),
    ],
)
def test_our_own_ewc_is_clean(estimator, n_samples, rule, model, tasks):
    ewc = EWC(model, lam=30, rule=rule)
    ewc.consolidate(tasks[0], estimator, n_samples=n_samples, weight=1.7)

    def backward():
        x, y = tasks[1].train.tensors
        (functional.cross_entropy(model(x), y) + ewc.penalty()).backward()

    report = diagnose(
        model,
        ewc,
        tasks[0],
        new_data=tasks[1],
        backward=backward,
        checkpoint=model.state_dict(),
        lr=0.01,
        measure=lambda m, batches: fisher_diagonal(m, batches, estimator),
    )
    assert report, report
    assert not report.skipped
    assert repr(report).startswith("✓ Nothing found.")


def test_it_is_clean_while_the_next_task_is_learned(model, tasks):
    ewc = EWC(model, lam=30)
    ewc.consolidate(tasks[0])
    checkpoint = deepcopy(model.state_dict())
    train(model, tasks[1], epochs=3, ewc=ewc)
    report = diagnose(model, ewc, tasks[0], new_data=tasks[1], checkpoint=checkpoint)
    assert report, report
    assert "where F comes from" in report.checked


def test_several_tasks_and_l2_are_clean(model, tasks):
    for method in (EWC, L2):
        penalty = method(model, lam=3)
        penalty.consolidate(tasks[0])
        penalty.consolidate(tasks[1])
        report = diagnose(model, penalty, tasks[0], new_data=tasks[1])
        assert report, report
        assert "where F comes from" in report.skipped


@pytest.mark.slow
def test_other_networks_are_clean(tasks):
    images = permuted_tasks(1, n_train=100, flatten=False)[0]
    cnn = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10)
    )
    normed = nn.Sequential(nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))
    for net, task, exclude in (
        (cnn, images, None),
        (normed, tasks[0], None),
        (mlp(64, [], 10, seed=0), tasks[0], None),
        (mlp(64, [20], 10, seed=0), tasks[0], "2.*"),
    ):
        for epochs in (0, 10):
            if epochs:
                train(net, task, epochs=epochs)
            ewc = EWC(net, lam=1, exclude=exclude)
            ewc.consolidate(task)
            report = diagnose(net, ewc, task, measure=fisher_diagonal)
            assert report, report


def test_a_regression_is_clean():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 5, generator=g), torch.randn(80, 2, generator=g)
    net = mlp(5, [6], 2, seed=0)
    ewc = EWC(net)
    ewc.consolidate((x, y), likelihood="gaussian")
    report = diagnose(net, ewc, (x, y), likelihood="gaussian")
    assert report, report
    assert "where F comes from" in report.checked


def test_a_foreign_set_up_is_clean(model, tasks, right):
    springs = Springs(model, right, copied_anchor(model), 30.0)
    data = DataLoader(tasks[0].train, 32, shuffle=True)
    report = diagnose(model, springs, data, new_data=tasks[1], measure=mean_of_squares)
    assert report, report
    report = diagnose(
        model,
        data=data,
        fisher=right,
        anchor=copied_anchor(model),
        penalty=lambda m: bugs.distance(m, right, springs.anchor) / 2,
        lam=1,
    )
    assert report, report
    assert "size of the penalty" in report.checked


# --- Planted bugs ---------------------------------------------------------------------------------

ESTIMATORS = {
    "squared batch mean": "squared batch mean",
    "batch-size weighting": "squared batch mean",
    "squared sum": "squared sum",
    "argmax labels": "argmax labels",
    "divided by the batches": "scale of F",
    "divided by the last index": "scale of F",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_wrong_estimators_are_found_in_their_result(name, model, tasks, loader):
    F = BUGS[name].wrong(model, loader)
    report = diagnose(model, data=tasks[0], fisher=F, anchor=copied_anchor(model))
    assert names(report) == [ESTIMATORS[name]], report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "found"),
    {
        **ESTIMATORS,
        "divided by the batches": "divided by the batches",
        "train mode": "train mode",
    }.items(),
)
def test_wrong_estimators_are_found_in_their_function(name, found, model, tasks, right):
    report = diagnose(
        model,
        data=tasks[0],
        fisher=right,
        anchor=copied_anchor(model),
        measure=BUGS[name].wrong,
    )
    assert names(report) == [found], report


def test_squared_means_of_shuffled_batches_are_found(model, tasks):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        shuffled = DataLoader(tasks[0].train, 32, shuffle=True)
        F = bugs.squared_batch_mean(model, shuffled)
    report = diagnose(model, data=tasks[0], fisher=F, anchor=copied_anchor(model))
    assert names(report) == ["squared batch mean"]


def test_f_of_the_new_task_is_found(model, tasks):
    F = fisher_diagonal(model, tasks[1])
    setting = {"data": tasks[0], "fisher": F, "anchor": copied_anchor(model)}
    assert names(diagnose(model, **setting)) == ["F of other data"]
    assert names(diagnose(model, **setting, new_data=tasks[1])) == ["F of the new task"]


def test_a_live_reference_is_found(model, right):
    springs = Springs(model, right, bugs.live_reference(model), 30.0)
    assert names(diagnose(model, springs)) == ["live reference"]


def test_names_that_never_match_are_found(model, right):
    springs = Springs(model, bugs.wrapped_names(right), copied_anchor(model), 30.0)
    report = diagnose(model, springs)
    assert names(report) == ["names never match"]
    assert "'module.0.weight' is called '0.weight' there" in repr(report)


def test_names_that_never_match_inside_the_penalty_are_found(model, right):
    inside = Springs(model, bugs.wrapped_names(right), copied_anchor(model), 30.0)
    report = diagnose(
        model, fisher=right, anchor=inside.anchor, penalty=inside.penalty, lam=inside.lam
    )
    assert names(report) == ["penalty is zero"]


def test_another_shape_is_found(model, right):
    grown = mlp(64, [30], 12, dropout=0.2, seed=0)
    ewc = Springs(grown, right, copied_anchor(model), 30.0)
    report = diagnose(grown, fisher=ewc.fisher, anchor=ewc.anchor)
    assert names(report) == ["shape", "shape"]
    assert "raises an error" in repr(report)
    single = {n: F[:1] if n.startswith("3") else F for n, F in right.items()}
    report = diagnose(model, fisher=single, anchor=copied_anchor(model))
    assert "without a word" in repr(report)


@pytest.mark.parametrize("penalty", [bugs.missing_half, bugs.with_half])
def test_a_missing_half_is_found(penalty, model, right):
    anchor = copied_anchor(model)
    report = diagnose(
        model,
        fisher=right,
        anchor=anchor,
        penalty=lambda m: penalty(m, right, anchor, 30.0),
        lam=30,
    )
    assert names(report) == (["missing ½"] if penalty is bugs.missing_half else [])


@pytest.mark.parametrize(
    ("step", "times"), [(bugs.once_per_step, 1), (bugs.once_per_micro_batch, 4)]
)
def test_a_penalty_per_micro_batch_is_found(step, times, model, right, loader):
    springs = Springs(model, right, copied_anchor(model), 30.0)
    report = diagnose(
        model, springs, backward=lambda: step(model, loader[:4], springs, lambda: None)
    )
    assert names(report) == (["pull per optimizer step"] if times > 1 else [])
    assert times == 1 or f"one step adds {times} times" in repr(report)


def test_a_penalty_that_never_reaches_the_gradient_is_found(model, right, loader):
    springs = Springs(model, right, copied_anchor(model), 30.0)
    x, y = loader[0]
    report = diagnose(
        model, springs, backward=lambda: functional.cross_entropy(model(x), y).backward()
    )
    assert names(report) == ["no pull"]


def test_a_rebuilt_anchor_is_found(model, tasks, right):
    checkpoint = deepcopy(model.state_dict())
    springs = bugs.RebuiltEveryEpoch(model, right, copied_anchor(model), 3.0, steps=5)
    train(model, tasks[1], steps=12, ewc=springs, update="loss", on_step=springs.on_step)
    assert names(diagnose(model, springs, checkpoint=checkpoint)) == ["anchor moved"]


def test_a_lambda_of_another_convention_is_found(model, tasks, right):
    springs = Springs(model, right, copied_anchor(model), 1e5)
    assert names(diagnose(model, springs, lr=0.1)) == ["λ too large for gradient steps"]
    springs.lam = 1.0
    assert diagnose(model, springs, lr=0.1)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda F: torch.zeros_like(F), "F is zero"),
        (lambda F: -F, "negative F"),
        (lambda F: F / 0, "not finite"),
    ],
)
def test_impossible_values_are_found(spoil, found, model, right):
    F = {name: spoil(value) for name, value in right.items()}
    assert found in names(diagnose(model, fisher=F, anchor=copied_anchor(model)))


def test_an_ewc_that_never_consolidated_is_found(model):
    assert names(diagnose(model, EWC(model))) == ["nothing consolidated"]


# --- Manners --------------------------------------------------------------------------------------


def test_nothing_is_changed(tasks):
    net = nn.Sequential(
        nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 10)
    )
    net[3].eval()
    ewc = EWC(net, lam=2)
    ewc.consolidate(tasks[0])
    functional.cross_entropy(net(tasks[0].train.tensors[0]), tasks[0].train.tensors[1]).backward()
    grads = [p.grad for p in net.parameters()]
    before = deepcopy((net.state_dict(), ewc.state_dict(), [g.clone() for g in grads]))
    modes = [m.training for m in net.modules()]
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()

    def backward():
        net.train()
        np.random.rand(), random.random(), torch.rand(1)
        loss = functional.cross_entropy(net(tasks[1].train.tensors[0]), tasks[1].train.tensors[1])
        (loss + ewc.penalty()).backward()

    report = diagnose(
        net,
        ewc,
        DataLoader(tasks[0].train, 32, shuffle=True),
        new_data=DataLoader(tasks[1].train, 32, shuffle=True),
        backward=backward,
        measure=bugs.left_in_train_mode,
        checkpoint=net.state_dict(),
        lr=0.1,
    )
    assert names(report) == ["train mode"]
    after = net.state_dict(), ewc.state_dict(), [p.grad for p in net.parameters()]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert all(
            torch.equal(old[k], new[k]) if isinstance(old[k], torch.Tensor) else old[k] == new[k]
            for k in old
        )
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    assert all(a is b for a, b in zip(grads, after[2], strict=True))
    assert modes == [m.training for m in net.modules()]
    assert states[0] == random.getstate()
    assert (states[1] == np.random.get_state()[1]).all()
    assert torch.equal(states[2], torch.get_rng_state())


def test_a_finding_is_one_sentence(model, right):
    springs = Springs(model, right, bugs.live_reference(model), 30.0)
    (finding,) = diagnose(model, springs)  # the report gives its findings
    text = str(finding)
    assert text.startswith("live reference: 4 of 4 anchors share their memory")
    assert text.endswith("store p.detach().clone().")
    assert "\n" not in text


def test_it_needs_something_to_look_at(model):
    with pytest.raises(ValueError, match="give ewc, or both fisher and anchor"):
        diagnose(model)
