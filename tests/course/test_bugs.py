"""For every mistake of the gallery the test that would have caught it: the right function passes
it, the wrong one does not."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ewc_tutorial.course import bugs, mlp, reference, train
from ewc_tutorial.course.bugs import BUGS, Springs, copied_anchor
from ewc_tutorial.course.tasks import permuted_tasks
from ewc_tutorial.fisher import fisher_diagonal

N, BATCH = 50, 8  # the last batch is smaller than the others


@pytest.fixture(scope="module")
def tasks():
    return [task.train.tensors for task in permuted_tasks(2)]


@pytest.fixture(scope="module")
def model(tasks):
    net = mlp(64, [12], 10, dropout=0.3, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        train(net, torch.utils.data.TensorDataset(*tasks[0]), epochs=5)
    return net.eval()


def loader(pair, n=N, size=BATCH):
    return list(zip(pair[0][:n].split(size), pair[1][:n].split(size), strict=True))


def total(fisher):
    return sum(F.sum().item() for F in fisher.values())


def same(a, b, rtol=1e-3):
    scale = max(F.max().item() for F in b.values())
    return all(torch.allclose(a[n], b[n], rtol=rtol, atol=1e-5 * scale) for n in b)


# --- What an F has to satisfy -------------------------------------------------------------------


def is_independent_of_the_batch_size(measure, model, pair):
    return same(measure(model, loader(pair, size=4)), measure(model, loader(pair, size=16)))


def is_a_mean(measure, model, pair):
    twice = (torch.cat([pair[0][:N]] * 2), torch.cat([pair[1][:N]] * 2))
    return same(measure(model, loader(twice, 2 * N)), measure(model, loader(pair)))


def is_additive(measure, model, pair):
    halves = [measure(model, loader([t[i : i + 24] for t in pair], 24)) for i in (0, 24)]
    both = measure(model, loader(pair, 48))
    return same({n: (halves[0][n] + halves[1][n]) / 2 for n in both}, both)


def sees_the_labels_or_all_classes(measure, model, pair):
    argmax = fisher_diagonal(model, (pair[0][:N], pair[1][:N]), "argmax")
    shifted = (pair[0], (pair[1] + 1) % 10)
    return not same(measure(model, loader(shifted)), argmax)


def ignores_the_mode(measure, model, pair):
    in_eval = measure(model.eval(), loader(pair))
    return same(measure(model.train(), loader(pair)), in_eval)


CAUGHT_BY = {
    "squared batch mean": is_independent_of_the_batch_size,
    "batch-size weighting": is_independent_of_the_batch_size,
    "squared sum": is_additive,
    "argmax labels": sees_the_labels_or_all_classes,
    "divided by the batches": is_independent_of_the_batch_size,
    "divided by the last index": is_a_mean,
    "train mode": ignores_the_mode,
}


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_wrong_estimators_are_caught(name, model, tasks):
    bug, property_of = BUGS[name], CAUGHT_BY[name]
    with torch.random.fork_rng(devices=[]):
        assert property_of(bug.right, deepcopy(model), tasks[0])
        assert not property_of(bug.wrong, deepcopy(model), tasks[0])


def test_the_right_estimator_is_the_textbook_one(model, tasks):
    x, y = tasks[0][0][:N], tasks[0][1][:N]
    expected = reference.fisher_empirical(model, x, y)
    assert same(bugs.mean_of_squares(model, loader(tasks[0])), expected)


def test_the_squared_batch_means_are_what_the_package_calls_batched(model, tasks):
    pair = tuple(t[:N] for t in tasks[0])
    ours = fisher_diagonal(model, pair, "batched", batch_size=BATCH)
    assert same(bugs.batch_size_weighting(model, loader(tasks[0])), ours)
    whole = tuple(t[:48] for t in tasks[0])
    ours = fisher_diagonal(model, whole, "batched", batch_size=BATCH)
    assert same(bugs.squared_batch_mean(model, loader(tasks[0], 48)), ours)


def test_f_of_the_new_task_is_caught_by_a_pixel_that_only_the_new_task_has(model, tasks):
    old, new = tasks
    blank = (old[0][:N] == 0).all(0) & (new[0][:N] != 0).any(0)
    assert blank.any()
    for measure, holds in ((bugs.old_task, True), (bugs.new_task, False)):
        F = measure(model, loader(old), loader(new))["0.weight"]
        assert (F[:, blank] == 0).all() == holds


# --- What an anchor has to satisfy --------------------------------------------------------------


def ones(model):
    return {name: torch.ones_like(p) for name, p in model.named_parameters()}


def penalty_after_a_move(anchor, model, fisher=None):
    springs = Springs(model, fisher or ones(model), anchor(model), 2.0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    return springs.penalty().item()


def test_a_live_reference_is_caught_by_moving_the_weights(model):
    count = sum(p.numel() for p in model.parameters())
    assert penalty_after_a_move(bugs.copied_anchor, deepcopy(model)) == pytest.approx(count)
    assert penalty_after_a_move(bugs.live_reference, deepcopy(model)) == 0


def test_a_rebuilt_anchor_is_caught_by_comparing_it_with_the_old_weights(model, tasks):
    start = copied_anchor(model)
    for make, stays in ((Springs, True), (bugs.RebuiltEveryEpoch, False)):
        moving = deepcopy(model)
        options = {} if stays else {"steps": 5}
        springs = make(moving, ones(moving), copied_anchor(moving), 0.01, **options)
        train(
            moving,
            torch.utils.data.TensorDataset(*tasks[1]),
            steps=12,
            ewc=springs,
            update="loss",
            on_step=getattr(springs, "on_step", None),
        )
        assert all(torch.equal(springs.anchor[n], start[n]) for n in start) == stays


def test_a_head_of_another_shape_is_caught_by_its_penalty_before_the_first_step():
    old = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    grown = torch.cat([old, torch.randn(3, 6, generator=torch.Generator().manual_seed(1))])
    assert bugs.grown_head_exact(grown, old, torch.ones(1, 6)) == 0
    assert bugs.grown_head_broadcast(grown, old, torch.ones(1, 6)) > 1


# --- What a training step has to satisfy --------------------------------------------------------


def test_names_that_never_match_are_caught_by_moving_the_weights(model):
    fisher = ones(model)
    assert penalty_after_a_move(copied_anchor, deepcopy(model), bugs.same_names(fisher)) > 0
    assert penalty_after_a_move(copied_anchor, deepcopy(model), bugs.wrapped_names(fisher)) == 0


@pytest.mark.parametrize(
    ("step", "right"), [(bugs.once_per_step, 1), (bugs.once_per_micro_batch, 0)]
)
def test_a_penalty_per_micro_batch_is_caught_by_splitting_the_batch(step, right, model, tasks):
    gradients = []
    for size in (32, 8):
        net = deepcopy(model)
        springs = Springs(net, ones(net), {n: p - 1 for n, p in copied_anchor(net).items()}, 1.0)
        step(net, loader(tasks[0], 32, size), springs, lambda: None)
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert torch.allclose(*gradients, atol=1e-4) == bool(right)


def test_a_missing_half_is_caught_by_the_gradient(model):
    for penalty, right in ((bugs.with_half, True), (bugs.missing_half, False)):
        net = deepcopy(model)
        F, anchor = ones(net), {n: p - 1 for n, p in copied_anchor(net).items()}
        penalty(net, F, anchor, 3.0).backward()
        stiffness = torch.cat([p.grad.flatten() for p in net.parameters()])
        assert torch.allclose(stiffness, torch.tensor(3.0)) == right


def test_a_carried_lambda_is_caught_by_the_stability_limit(model, tasks):
    right = bugs.mean_of_squares(model, loader(tasks[0], 1000, 32))
    batched = bugs.squared_batch_mean(model, loader(tasks[0], 1000, 32))
    top, lr = max(F.max().item() for F in right.values()), 0.1
    tuned = 1 / (lr * max(F.max().item() for F in batched.values()))  # half of that F's own limit
    assert lr * bugs.converted_lam(tuned, 32) * top < 2 < lr * bugs.carried_lam(tuned, 32) * top


# --- The gallery itself -------------------------------------------------------------------------


def test_every_mistake_of_the_gallery_is_described():
    assert len(BUGS) == 15
    assert {bug.group for bug in BUGS.values()} == {"F", "anchor", "bookkeeping", "units"}
    for name, bug in BUGS.items():
        assert bug.name == name
        assert bug.symptom
        assert bug.fix
        assert bug.wrong.__doc__
        assert bug.right.__doc__
        assert bug.wrong is not bug.right


def test_gradients_are_those_of_autograd(model, tasks):
    x, y = tasks[0][0][:5], tasks[0][1][:5]
    net = deepcopy(model)
    functional.cross_entropy(net(x), y).backward()
    found = bugs.gradients(model, functional.cross_entropy(model(x), y))
    assert all(torch.allclose(found[n], p.grad) for n, p in net.named_parameters())
    assert isinstance(net, nn.Module)
