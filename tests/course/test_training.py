"""Training against a plain loop written out, and the promises on budgets and state."""

from __future__ import annotations

import copy
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset, TensorDataset

from ewc_tutorial.course.models import mlp
from ewc_tutorial.course.recorder import Recorder
from ewc_tutorial.course.tasks import Task, permuted_tasks
from ewc_tutorial.course.training import accuracies, learn, train
from ewc_tutorial.ewc import EWC, L2


@pytest.fixture(scope="module")
def tasks():
    return permuted_tasks(3, n_train=130, n_test=60)


def network(seed: int = 0) -> nn.Sequential:
    return mlp(64, [16], 10, seed=seed)


def weights(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def test_train_is_the_textbook_loop(tasks):
    model, twin = network(), network()
    losses = train(model, tasks[0], epochs=2, lr=0.1, batch_size=50, generator=4)
    x, y = tasks[0].train.tensors
    g = torch.Generator().manual_seed(4)
    expected = []
    for _ in range(2):
        for rows in torch.randperm(130, generator=g)[:100].split(50):
            loss = functional.cross_entropy(twin(x[rows]), y[rows])
            expected.append(loss.item())
            for p, grad in zip(
                twin.parameters(),
                torch.autograd.grad(loss, list(twin.parameters())),
                strict=True,
            ):
                p.data -= 0.1 * grad
    assert len(losses) == 4
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    torch.testing.assert_close(weights(model), weights(twin))


def test_a_data_set_smaller_than_a_batch_is_one_batch(tasks):
    few = TensorDataset(*tasks[0].train[:7])
    model, twin = network(), network()
    assert len(train(model, few, epochs=2, batch_size=50)) == 2
    train(twin, few, epochs=2, batch_size=7)
    assert torch.equal(weights(model), weights(twin))


def test_loss_and_gradient_give_the_same_training(tasks):
    ends = []
    for update in ("loss", "gradient"):
        model = network()
        ewc = EWC(model, lam=5.0)
        train(model, tasks[0], steps=20)
        ewc.consolidate(tasks[0], "empirical")
        train(model, tasks[1], steps=20, ewc=ewc, update=update)
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 1.0, 1e4, 1e8])
def test_the_proximal_update_is_finite_at_every_strength(tasks, lam):
    model = network()
    ewc = EWC(model, lam)
    history = learn(model, tasks, ewc, steps=15, estimator="empirical")
    assert np.isfinite(history.curves).all()
    assert weights(model).isfinite().all()


def test_no_strength_is_plain_fine_tuning(tasks):
    plain, zero = network(), network()
    learn(plain, tasks, steps=10)
    learn(zero, tasks, EWC(zero, lam=0.0), steps=10, estimator="sampled")
    assert torch.equal(weights(plain), weights(zero))


def test_an_infinitely_strong_l2_does_not_move(tasks):
    model = network()
    learn(model, tasks[:1], L2(model), steps=10)
    start = weights(model)
    l2 = L2(model, lam=1e12)
    l2.consolidate()
    train(model, tasks[1], steps=10, ewc=l2)
    torch.testing.assert_close(weights(model), start)


def test_history_says_what_happened(tasks):
    model = network()
    history = learn(model, tasks, epochs=3, batch_size=32, evaluations=5, seed=1)
    per_task = 3 * (130 // 32)
    assert history.tasks == ("A", "B", "C")
    assert history.boundaries.tolist() == [per_task, 2 * per_task, 3 * per_task]
    assert history.steps[0] == 0
    assert (np.diff(history.steps) > 0).all()
    assert history.curves.shape == (len(history.steps), 3)
    assert history.accuracy.shape == (3, 3)
    final = accuracies(model, [t.test.tensors for t in tasks])
    assert history.accuracy[-1].tolist() == history.curves[-1].tolist() == final
    # The same run, stopped after the first task, ends in the first row.
    first = network()
    train(first, tasks[0], epochs=3, batch_size=32, generator=1)
    assert history.accuracy[0].tolist() == accuracies(first, [t.test.tensors for t in tasks])
    assert history.before.tolist() == accuracies(network(), [t.test.tensors for t in tasks])
    assert history.mean_so_far[1] == pytest.approx(history.accuracy[1, :2].mean())
    frame = history.to_frame()
    assert list(frame.columns) == ["step", "task", "accuracy", "seen"]
    assert len(frame) == history.curves.size
    seen = frame[frame.seen].groupby("task").step.min()
    assert (seen > np.concatenate([[0], history.boundaries[:-1]])).all()


def test_the_same_seed_is_the_same_run_and_another_is_not(tasks):
    curves = []
    for seed in (0, 0, 1):
        model = network()
        ewc = EWC(model, lam=10)
        curves.append(learn(model, tasks, ewc, steps=8, estimator="sampled", seed=seed).curves)
    assert np.array_equal(curves[0], curves[1])
    assert not np.array_equal(curves[0], curves[2])


def test_time_for_measuring_is_not_time_for_training():
    measured = []

    def measure() -> list[float]:
        time.sleep(0.05)
        measured.append(float(len(measured)))
        return [measured[-1], -1.0]

    record = Recorder(measure, evaluations=2)
    for _ in range(2):
        with record.training(6):
            for step in range(1, 7):
                record(step)
        with record.consolidating():
            time.sleep(0.05)
    history = record.history([SimpleNamespace(name="A"), SimpleNamespace(name="B")])
    assert history.steps.tolist() == [0, 3, 6, 9, 12]
    assert history.boundaries.tolist() == [6, 12]
    assert history.accuracy.tolist() == [[2, -1], [4, -1]]
    assert history.train_seconds.max() < 0.1  # measuring took as much per task
    assert history.consolidate_seconds.min() >= 0.05


@pytest.mark.slow
def test_joint_training_takes_as_many_steps_and_sees_every_task(tasks):
    model = network()
    history = learn(model, tasks, joint=True, epochs=40)
    assert history.boundaries.tolist() == learn(network(), tasks, epochs=40).boundaries.tolist()
    plain = learn(network(), tasks, epochs=40)
    assert history.accuracy[-1].mean() > plain.accuracy[-1].mean() + 0.1


def test_the_random_state_and_the_mode_are_untouched(tasks):
    model = mlp(64, [16], 10, seed=0)
    model.eval()
    before = torch.get_rng_state()
    learn(model, tasks[:2], EWC(model), steps=5, estimator="sampled")
    assert torch.equal(before, torch.get_rng_state())
    assert not model.training


def test_adam_and_a_plain_data_set(tasks):
    model = network()
    losses = train(model, tasks[0].train, steps=50, lr=1e-2, optimizer=torch.optim.Adam)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one of epochs and steps"),
        ({"epochs": 1, "steps": 1}, "exactly one of epochs and steps"),
        ({"epochs": 0}, "epochs must be a positive whole number, not 0"),
        ({"steps": 1, "batch_size": -2}, "batch_size must be a positive whole number, not -2"),
        ({"steps": 1, "update": "magic"}, "update must be one of proximal, gradient, loss"),
    ],
)
def test_bad_arguments_are_named(tasks, options, words):
    model = network()
    start = weights(model)
    with pytest.raises(ValueError, match=words):
        train(model, tasks[0], **options)
    assert torch.equal(weights(model), start)


def test_bad_sequences_are_named(tasks):
    model = network()
    with pytest.raises(ValueError, match="tasks must hold at least one task"):
        learn(model, [], steps=1)
    with pytest.raises(ValueError, match="joint=True trains without a penalty"):
        learn(model, tasks, EWC(model), joint=True, steps=1)
    empty = TensorDataset(torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="data must hold at least one sample"):
        train(model, empty, steps=1)
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        train(network().requires_grad_(False), tasks[0], steps=1)


def test_divergence_is_reported_with_its_cause(tasks):
    model = network()
    ewc = EWC(model, lam=1e8)
    train(model, tasks[0], steps=5)
    ewc.consolidate(tasks[0])
    with pytest.raises(ValueError, match="stopped being finite at step .* use update='proximal'"):
        train(model, tasks[1], steps=200, ewc=ewc, update="gradient")


@pytest.mark.parametrize("update", ["proximal", "gradient", "loss"])
def test_an_ewc_of_a_copy_is_refused(tasks, update):
    """It would protect the copy, and the model in training would forget without a word."""
    model = mlp(64, [8], 10, seed=0)
    ewc = EWC(copy.deepcopy(model))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="protects another model"):
        train(model, tasks[0], steps=1, ewc=ewc, update=update)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def samples(n=64):
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)


@pytest.mark.parametrize(
    "container",
    [
        lambda x, y: (x, y),
        lambda x, y: (x, y.to(torch.uint8)),
        TensorDataset,
        lambda x, y: Subset(TensorDataset(x, y), range(len(x))),
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=7),
        lambda x, y: ((x[i : i + 9], y[i : i + 9]) for i in range(0, len(x), 9)),
        lambda x, y: Task("A", TensorDataset(x, y), TensorDataset(x, y), (0, 1, 2)),
    ],
)
def test_train_takes_what_the_fisher_information_is_measured_on(container):
    x, y = samples()
    one, other = mlp(6, [8], 3, seed=0), mlp(6, [8], 3, seed=0)
    losses = train(one, TensorDataset(x, y), epochs=2)
    assert torch.equal(train(other, container(x, y), epochs=2), losses)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        (3, TypeError, "data must be a task"),
        ([], ValueError, "at least one sample"),
        ((samples()[0], None), TypeError, "labels, to train on"),
        (({"x": samples()[0]}, samples()[1]), TypeError, "in one tensor"),
    ],
)
def test_what_train_cannot_take(data, error, sentence):
    with pytest.raises(error, match=sentence):
        train(mlp(6, [8], 3), data, epochs=1)


def test_learn_takes_tasks():
    x, y = samples()
    with pytest.raises(TypeError, match="of the class Task.*not a DataLoader; train.model, data."):
        learn(mlp(6, [8], 3), [DataLoader(TensorDataset(x, y))], epochs=1)
