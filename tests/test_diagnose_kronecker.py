"""What diagnose says of Kronecker factors: every planted mistake, and nothing of right ones."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ewc_tutorial import EWC, diagnose, fisher_diagonal
from ewc_tutorial.course import mlp, train
from ewc_tutorial.course.bugs import copied_anchor
from ewc_tutorial.course.tasks import permuted_tasks
from ewc_tutorial.curvature import Kronecker
from ewc_tutorial.fisher import fisher_factors
from ewc_tutorial.fisher.diagonal import EIGENVALUES

LAYERS = {"0.weight": "0.bias", "3.weight": "3.bias"}


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
def right(trained, tasks):
    return fisher_factors(trained, tasks[0], LAYERS)


def names(report):
    return [finding.name for finding in report.findings]


def with_factors(model, factors, lam=30.0):
    ewc = EWC(model, lam, curvature="kronecker")
    ewc.merge(factors)
    return ewc


# --- No false alarms ------------------------------------------------------------------------------


class Sequences(nn.Module):
    """Layers at several positions, one of them used twice, with a normalisation and a scale."""

    def __init__(self, inputs, width, classes) -> None:
        super().__init__()
        self.first, self.twice = nn.Linear(inputs, width), nn.Linear(width, width, bias=False)
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, classes)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = self.scale * self.norm(self.twice(torch.tanh(self.twice(h))))
        return self.last(h.mean(1))


def random_network(seed):
    """Return a network, data for it, and how its outputs are read."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    inputs, width, outputs = draw.randint(2, 6), draw.randint(3, 9), draw.randint(2, 5)
    kind = ("mlp", "images", "sequences")[seed % 3]
    if kind == "mlp":
        bias, act = draw.random() < 0.5, draw.choice([nn.ReLU, nn.Tanh])
        net = nn.Sequential(
            nn.Linear(inputs, width, bias=bias), act(), nn.Dropout(0.3), nn.Linear(width, outputs)
        )
        x = torch.randn(60, inputs) + draw.random()
    elif kind == "images":
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, outputs)
        )
        x = torch.randn(60, 1, 5, 5)
    else:
        net, x = Sequences(inputs, width, outputs), torch.randn(60, 4, inputs)
    if seed % 2:
        return net, (x, torch.randint(outputs, (60,))), {}
    return net, (x, torch.randn(60, outputs)), {"likelihood": "gaussian"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_right_factors_of_random_networks_are_clean(seed):
    with torch.random.fork_rng(devices=[]):
        net, data, options = random_network(seed)
        other = (torch.randn_like(data[0]), data[1])
        loss = functional.mse_loss if options else functional.cross_entropy
        train(net, data, steps=60, lr=0.05, loss=loss)
        estimator = ("exact", "empirical", "sampled")[seed % 3 if seed < 9 else 2]
        rule = Kronecker.rules[seed % len(Kronecker.rules)]
        ewc = EWC(net, 5.0, rule, curvature="kronecker")
        ewc.consolidate(data, estimator, weight=1.7, **options)
        checkpoint = deepcopy(net.state_dict())

        def backward():
            (loss(net(other[0]), other[1]) + ewc.penalty()).backward()

        report = diagnose(
            net,
            ewc,
            data,
            new_data=other,
            backward=backward,
            checkpoint=checkpoint,
            lr=1e-4,
            # As slow as all the rest: one network of each kind.
            measure=(lambda m, b: ewc.measure(b, estimator, **options)) if seed < 3 else None,
            **options,
        )
        assert report, report
        assert len(report.skipped) == (seed >= 3), report
        assert {"factors", "where F comes from", "size of the penalty"} <= set(report.checked)


@pytest.mark.slow
@pytest.mark.parametrize("eigenvalues", EIGENVALUES)
@pytest.mark.parametrize(
    ("estimator", "n_samples"), [("exact", 150), ("empirical", None), ("sampled", 150)]
)
def test_every_estimator_is_clean_while_the_next_task_is_learned(
    estimator, n_samples, eigenvalues, model, tasks
):
    ewc = EWC(model, lam=30, curvature=Kronecker(eigenvalues=eigenvalues))
    ewc.consolidate(tasks[0], estimator, n_samples=n_samples)
    checkpoint = deepcopy(model.state_dict())
    train(model, tasks[1], epochs=2, ewc=ewc)
    report = diagnose(model, ewc, tasks[0], new_data=tasks[1], checkpoint=checkpoint)
    assert report, report
    assert {"where F comes from", "size of the penalty"} <= set(report.checked)


@pytest.mark.parametrize("eigenvalues", EIGENVALUES)
def test_several_tasks_are_clean(eigenvalues, model, tasks):
    ewc = EWC(model, lam=30, curvature=Kronecker(eigenvalues=eigenvalues))
    for task in tasks:
        ewc.consolidate(task)
    report = diagnose(model, ewc, tasks[0], lr=1e-3)
    assert report, report
    assert report.skipped["where F comes from"].startswith("2 tasks are consolidated in it")


def test_factors_of_a_foreign_program_are_clean(model, tasks, right):
    anchor = copied_anchor(model)

    def penalty():
        total = 0.0
        for weight, bias in LAYERS.items():
            parts = [model.get_parameter(name) - anchor[name] for name in (weight, bias)]
            delta = torch.cat([parts[0], parts[1][:, None]], 1)
            total = total + (delta * (right[f"{weight}:G"] @ delta @ right[f"{weight}:A"])).sum()
        return 15 * total

    setting = {"data": tasks[0], "fisher": right, "anchor": anchor}
    report = diagnose(model, **setting, penalty=penalty, lam=30)
    assert report, report
    assert "size of the penalty" in report.checked
    report = diagnose(model, **setting, penalty=lambda: 2 * penalty(), lam=30)
    assert names(report) == ["missing ½"]
    assert "the penalty is 2 times λ/2 Σ Δ ∘ (G Δ A)" in repr(report)
    # A factor that moves from A to G changes nothing.
    moved = {n: F * (3 if n.endswith("A") else 1 / 3) for n, F in right.items()}
    assert diagnose(model, data=tasks[0], fisher=moved, anchor=anchor)


# --- Planted bugs ---------------------------------------------------------------------------------


def scaled(factors, A=1.0, G=1.0):
    return {name: F * (A if name.endswith(":A") else G) for name, F in factors.items()}


def at_other_weights(model, tasks):
    other = mlp(64, [30], 10, dropout=0.2, seed=5).eval()
    train(other, tasks[1], epochs=5)
    return fisher_factors(other, tasks[0], LAYERS)


def of_mean_losses(model, data, size=32, per_batch=False):
    """Hooks on the layers, and one backward pass of each batch's mean loss, as is often seen."""
    x, y = data.train.tensors
    seen, A, G = {}, dict.fromkeys(LAYERS, 0.0), dict.fromkeys(LAYERS, 0.0)
    handles = [
        model.get_submodule(name[0]).register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: (args[0].detach(), out)})
        )
        for name in LAYERS
    ]
    for xs, ys in zip(x.split(size), y.split(size), strict=True):
        loss = functional.cross_entropy(model(xs), ys)
        gradients = torch.autograd.grad(loss, [out for _, out in seen.values()])
        for (name, (a, _)), g in zip(seen.items(), gradients, strict=True):
            a = torch.cat([a, torch.ones(len(a), 1)], 1)
            A[name] = A[name] + a.T @ a / len(x)
            G[name] = G[name] + g.T @ g / (len(x) / size if per_batch else len(x))
    for handle in handles:
        handle.remove()
    return {f"{n}:A": A[n] for n in LAYERS} | {f"{n}:G": G[n] for n in LAYERS}


WRONG = {
    "G is a sum": (lambda m, t, F: scaled(F, G=300), "scale of F"),
    "A is a sum": (lambda m, t, F: scaled(F, A=300), "scale of F"),
    "both are sums": (lambda m, t, F: scaled(F, 300, 300), "scale of F"),
    "divided by the batches": (lambda m, t, F: scaled(F, G=30), "scale of F"),
    "twice": (lambda m, t, F: scaled(F, G=2), "scale of F"),
    "g over B": (lambda m, t, F: scaled(F, G=1 / 32**2), "gradients of the mean loss"),
    "mean loss": (lambda m, t, F: of_mean_losses(m, t[0]), "gradients of the mean loss"),
    "argmax": (lambda m, t, F: fisher_factors(m, t[0], LAYERS, "argmax"), "argmax labels"),
    "other weights": (lambda m, t, F: at_other_weights(m, t), "F of other data"),
    "new task": (lambda m, t, F: fisher_factors(m, t[1], LAYERS), "F of the new task"),
    "labels of the new task": (
        lambda m, t, F: fisher_factors(m, t[1], LAYERS, "empirical"),
        "F of the new task",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_factors_are_found(kind, model, tasks, right):
    make, found = WRONG[kind]
    with torch.random.fork_rng(devices=[]):
        ewc = with_factors(model, make(model, tasks, right))
        report = diagnose(model, ewc, tasks[0], new_data=tasks[1])
    assert names(report) == [found], report
    if kind.endswith("sums"):
        assert "9e+04 times the mean over the samples; it looks as if A and G were" in repr(report)
    elif kind.endswith("sum"):
        assert "300 times the mean over the samples; it looks like a sum" in repr(report)
    elif found == "gradients of the mean loss":
        assert "batches of 32, which are 32 times too small" in repr(report)


def test_mean_losses_summed_within_a_batch_are_found(model, tasks):
    even = deepcopy(tasks[0])
    even.train.tensors = tuple(t[:256] for t in even.train.tensors)
    ewc = with_factors(model, of_mean_losses(model, even, per_batch=True))
    report = diagnose(model, ewc, even)
    assert names(report) == ["scale of F"]
    assert "0.03125 times" in repr(report)
    assert "g looks taken from the mean loss of a batch" in repr(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "found"),
    [
        (lambda m, batches: in_train_mode(m, batches), "train mode"),
        (lambda m, batches: with_mean_losses(m, batches), "gradients of the mean loss"),
        (lambda m, batches: scaled(fisher_factors(m, batches, LAYERS), G=64), None),
        (lambda m, batches: summed(m, batches), "scale of F"),
        (lambda m, batches: fisher_factors(m, batches, LAYERS, "argmax"), "argmax labels"),
        (lambda m, batches: lopsided(fisher_factors(m, batches, LAYERS)), "no second moment"),
        (lambda m, batches: fisher_diagonal(m, batches), None),
    ],
)
def test_functions_that_measure_factors(measure, found, model, tasks, right):
    report = diagnose(model, with_factors(model, right), tasks[0], measure=measure, n_samples=64)
    assert names(report) == ([found] if found else []), report


def in_train_mode(model, batches):
    """Return factors of the model as it comes, with its dropout."""
    frozen = deepcopy(model)
    if model.training:
        with torch.no_grad():  # half of the inputs of the last layer, doubled
            frozen[3].weight[:, ::2] = 0
            frozen[3].weight[:, 1::2] *= 2
    return fisher_factors(frozen, batches, LAYERS)


def with_mean_losses(model, batches):
    total = {}
    for batch in batches:
        share = len(batch[0]) / sum(len(x) for x, _ in batches)
        for name, F in fisher_factors(model, [batch], LAYERS, "empirical").items():
            F = F if name.endswith(":A") else F / len(batch[0]) ** 2
            total[name] = total.get(name, 0) + share * F
    return total


def summed(model, batches):
    return scaled(fisher_factors(model, batches, LAYERS), A=sum(len(x) for x, _ in batches))


def lopsided(factors):
    factors["3.weight:G"][0, 1] += 1
    return factors


@pytest.mark.parametrize(
    ("spoil", "found", "words"),
    [
        (lambda F: F.fill_(0), "F is zero", "no springs"),
        (lambda F: F[0, 0].fill_(torch.nan), "not finite", "of '0.weight' has entries"),
        (lambda F: F[0, 1:].add_(1), "no second moment", "is not symmetric"),
        (lambda F: F.neg_(), "no second moment", "has the eigenvalue -"),
    ],
)
@pytest.mark.parametrize("kind", "AG")
def test_impossible_factors_are_found(spoil, found, words, kind, model, tasks, right):
    ewc = with_factors(model, right)
    for name, buffer in ewc.named_buffers():
        if name.startswith(f"{kind}:"):
            spoil(buffer)
    report = diagnose(model, ewc, tasks[0])
    assert found in names(report)
    assert words in repr(report)


def test_factors_of_another_shape_are_found(model, right):
    anchor = copied_anchor(model)
    wrong = {**right, "0.weight:A": right["0.weight:A"][:5, :5]}
    report = diagnose(model, fisher=wrong, anchor=anchor)
    assert names(report) == ["shape"]
    assert "the factors of '0.weight' have the shapes (5, 5) and (30, 30)" in repr(report)
    alone = {name: F for name, F in right.items() if name != "3.weight:G"}
    assert "(31, 31) and ()" in repr(diagnose(model, fisher=alone, anchor=anchor))
    wrapped = {f"module.{name}": F for name, F in right.items()}
    report = diagnose(model, fisher=wrapped, anchor=anchor)
    assert names(report) == ["names never match"]
    assert "'module.0.weight' is called '0.weight' there" in repr(report)


def test_a_penalty_that_is_detached_is_found(model, right):
    anchor = copied_anchor(model)
    report = diagnose(model, fisher=right, anchor=anchor, penalty=lambda: torch.zeros(()), lam=3)
    assert names(report) == ["penalty is zero"]


def test_a_penalty_per_micro_batch_is_found(model, tasks, right):
    ewc = with_factors(model, right)
    x, y = (t[:64] for t in tasks[1].train.tensors)

    def backward(times):
        for _ in range(times):
            (functional.cross_entropy(model(x), y) / times + ewc.penalty()).backward()

    assert diagnose(model, ewc, backward=lambda: backward(1))
    report = diagnose(model, ewc, backward=lambda: backward(4))
    assert names(report) == ["pull per optimizer step"]
    assert "one step adds 4 times" in repr(report)


def test_a_lambda_that_is_too_large_for_gradient_steps_is_found(model, right):
    ewc = with_factors(model, right, lam=1.0)
    tops = {
        name: torch.linalg.eigvalsh(torch.kron(right[f"{name}:G"], right[f"{name}:A"]))[-1].item()
        for name in LAYERS
    }
    name = max(tops, key=tops.get)
    ewc.lam = 2.0 / (0.1 * tops[name])
    ewc.lam *= 0.99
    assert diagnose(model, ewc, lr=0.1)
    ewc.lam *= 1.03
    report = diagnose(model, ewc, lr=0.1)
    assert names(report) == ["λ too large for gradient steps"]
    assert f"largest eigenvalue of S, that of '{name}'" in repr(report)
    # Its diagonal alone would not say so.
    assert 0.1 * ewc.lam * max(S.max().item() for S in ewc.importance.values()) < 1.5


def test_of_exact_eigenvalues_the_largest_is_that_of_the_dense_matrix(model, tasks):
    ewc = EWC(model, 1.0, curvature=Kronecker(eigenvalues="exact"), include="3.*")
    ewc.consolidate(tasks[0])
    F = {name: tensor.double() for name, tensor in ewc.stored().items()}
    U = torch.kron(F["3.weight:UG"], F["3.weight:UA"])
    top = torch.linalg.eigvalsh(U @ F["3.weight:E"].flatten().diag() @ U.T)[-1].item()
    for times, found in ((0.99, []), (1.02, ["λ too large for gradient steps"])):
        ewc.lam = times * 2.0 / (0.1 * top)
        assert names(diagnose(model, ewc, lr=0.1)) == found


def test_bugs_of_exact_eigenvalues_are_found(model, tasks):
    ewc = EWC(model, 30.0, curvature=Kronecker(eigenvalues="exact"))
    ewc.consolidate(tasks[0])
    assert diagnose(model, ewc, tasks[0])
    report = diagnose(model, ewc, penalty=lambda: 2 * ewc.penalty())
    assert names(report) == ["missing ½"]
    assert "the penalty is 2 times λ/2 Σ E ∘ (U_Gᵀ Δ U_A)²" in repr(report)
    F = ewc.stored()
    foreign = {"anchor": ewc.anchor, "lam": 30.0, "penalty": ewc.penalty}
    assert diagnose(model, fisher=F, **foreign)
    report = diagnose(model, fisher=F | {"0.weight:E": F["0.weight:E"][:-1]}, **foreign)
    assert "shape" in names(report)
    assert "the shapes (65, 65), (30, 30) and (29, 65)" in repr(report)
    report = diagnose(model, fisher=F | {"0.weight:E": -F["0.weight:E"]}, **foreign)
    assert "negative F" in names(report)


def test_an_ewc_that_never_consolidated_is_found(model):
    assert names(diagnose(model, EWC(model, curvature="kronecker"))) == ["nothing consolidated"]
