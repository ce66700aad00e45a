"""A model is probed once, and again whenever the answer might be another."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from fisher_oracle import assert_fisher_close, loop_fisher
from torch import nn

from ewc_tutorial.fisher import engine, fisher_diagonal, plans

SWITCH = {"centred": False}


class Switched(nn.Module):
    """Does the same in several ways, by switches that modules show and by some that they do not."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, 3)
        self.time_first, self.weights, self.options = False, [], {"deep": [False]}

    def forward(self, x):
        h = x.transpose(0, 1) if self.time_first else x
        h = torch.tanh(self.inner(h.flatten(0, 1))).unflatten(0, h.shape[:2])
        h = h.mean(0 if self.time_first else 1)
        if SWITCH["centred"]:
            h = h - h.mean(0)
        for weight in self.weights:
            h = h @ weight
        if self.options["deep"][0]:
            h = torch.tanh(h)
        return self.head(h)


@pytest.fixture
def probes(monkeypatch):
    made = []
    probe = engine.probe
    monkeypatch.setattr(engine, "probe", lambda *a: made.append(1) or probe(*a))
    return made


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Switched()


def data(n=12, length=4):
    return torch.randn(n, length, 5), torch.randint(3, (n,))


def check(model, x, y):
    assert_fisher_close(fisher_diagonal(model, (x, y)), loop_fisher(model, x, y))


def test_one_probe_for_all_calls_and_values(model, probes):
    for _ in range(3):
        check(model, *data())
        fisher_diagonal(model, data(), "empirical")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
    assert len(probes) == 1


def add_use(model):
    model.weights.append(model.inner.weight)


def hook(model):
    model.inner.register_forward_hook(lambda module, args, output: 2 * output)


def replace_forward(model):
    layer = model.inner
    layer.forward = lambda x: F.linear(x.flip(0), layer.weight, layer.bias).flip(0)


CHANGES = {
    "an attribute": lambda model: setattr(model, "time_first", True),
    "an entry of a container": lambda model: model.options["deep"].__setitem__(0, True),
    "a global variable": lambda model: SWITCH.update(centred=True),
    "a use by a list": add_use,
    "a hook": hook,
    "a method": replace_forward,
    "another part": lambda model: setattr(model, "head", nn.Sequential(nn.Tanh(), nn.Linear(5, 3))),
    "tied weights": lambda model: setattr(model, "head", nn.Linear(5, 3)) or add_use(model),
    "a frozen parameter": lambda model: model.inner.bias.requires_grad_(False),
    "other numbers": lambda model: model.double(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_is_probed_again(name, model, probes, monkeypatch):
    monkeypatch.setitem(SWITCH, "centred", False)
    x, y = data()
    check(model, x, y)
    CHANGES[name](model)
    x = x.to(model.head.weight.dtype) if name == "other numbers" else x
    truth = model
    if name == "a method":  # a copy of the model would call the original's
        truth = Switched()
        truth.load_state_dict(model.state_dict())
    assert_fisher_close(fisher_diagonal(model, (x, y)), loop_fisher(truth, x, y))
    assert len(probes) >= 2


def test_other_kinds_of_inputs_are_probed_on_their_own(model, probes):
    for length in (4, 6, 4, 6):
        check(model, *data(length=length))
    assert len(probes) == 2


def test_a_random_model_is_refused_even_if_it_was_not_random_before(model):
    check(model, *data())
    model.weights = Noise()
    with pytest.raises(ValueError, match="different outputs for the same inputs"):
        fisher_diagonal(model, data())


class Noise:
    def __iter__(self):
        return iter([torch.randn(5, 5)])


def test_gradients_that_are_not_there_are_no_proof():
    """A closed gate shows nothing of what lies behind: it may be another thing once it opens."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head, self.gate = nn.Linear(5, 5), nn.Linear(5, 3), torch.zeros(())
            self.inner.register_forward_hook(lambda module, args, output: output.flip(1))

        def forward(self, x):
            return self.head(x.mean(1) + self.gate * torch.tanh(self.inner(x)).mean(1))

    torch.manual_seed(0)
    model, (x, y) = Gated(), data()
    check(model, x, y)
    model.gate.fill_(1.0)
    check(model, x, y)


def test_what_is_remembered_does_not_keep_a_model_alive():
    model = Switched()
    check(model, *data())
    assert model in plans._plans
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
