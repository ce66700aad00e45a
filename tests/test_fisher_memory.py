"""What fisher_diagonal holds at a time, counted in bytes of live storages, not of the process."""

from __future__ import annotations

import weakref
from itertools import islice

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ewc_tutorial.fisher import Categorical, fisher_diagonal

MiB = 2**20


class PeakMemory(TorchDispatchMode):
    """Adds up the storages that operations make, and takes off those that are freed."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage):
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.forget, key, storage.nbytes())

    def forget(self, key, size):
        self.known.discard(key)
        self.live -= size


class Language(nn.Module):
    def __init__(self, vocabulary, classes, width):
        super().__init__()
        self.table, self.up = nn.Embedding(vocabulary, width), nn.Linear(width, 2 * width)
        self.down, self.head = nn.Linear(2 * width, width), nn.Linear(width, classes)

    def forward(self, ids):
        h = self.table(ids)
        return self.head(h + self.down(torch.tanh(self.up(h))))


def convolutions():
    widths = zip((3, 64), (64, 64), strict=True)
    layers = [m for i, o in widths for m in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1000))


def decoder():
    steps = [m for i, o in ((64, 32), (32, 3)) for m in (nn.ConvTranspose2d(i, o, 4, 4), nn.ReLU())]
    return nn.Sequential(nn.Linear(8, 256), nn.Unflatten(1, (64, 2, 2)), *steps, nn.Flatten())


#: Model, data, estimator, likelihood and the most that may be held. What a pass takes is to stay
#: under 64 MiB, but the logits of one sample of the language model alone have 24.4: there the
#: limit is what the three samples of the probe need.
NETWORKS = {
    "a convolution over 784 positions, 1,000 classes": (
        convolutions,
        lambda: torch.randn(24, 3, 28, 28),
        ("exact", "categorical", 64 * MiB),
    ),
    "128 tokens, 50,000 classes": (
        lambda: Language(50_000, 50_000, 32),
        lambda: torch.randint(50_000, (8, 128)),
        ("sampled", Categorical(class_dim=-1), 12 * 24.4 * MiB),
    ),
    "256 tokens, 20 classes": (
        lambda: Language(50, 20, 64),
        lambda: torch.randint(50, (100, 256)),
        ("exact", Categorical(class_dim=-1), 64 * MiB),
    ),
    "layers without a rule": (
        decoder,
        lambda: torch.randn(500, 8),
        ("sampled", "gaussian", 64 * MiB),
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:estimator 'exact' needs")
@pytest.mark.parametrize("name", NETWORKS)
def test_peak_memory_stays_under_the_budget(name, monkeypatch):
    make_model, make_data, (estimator, likelihood, limit) = NETWORKS[name]
    # All passes are alike: a few show what is held between them, which is chosen for all.
    factors = Categorical.factors
    monkeypatch.setattr(Categorical, "factors", lambda *a: islice(factors(*a), 3))
    torch.manual_seed(0)
    model, x = make_model(), make_data()
    with PeakMemory() as memory:
        fisher_diagonal(model, (x, None), estimator, likelihood=likelihood)
    assert memory.peak < limit, f"{memory.peak / MiB:.0f} MiB"


def test_exact_says_when_it_needs_very_many_passes(monkeypatch):
    factors = Categorical.factors
    monkeypatch.setattr(Categorical, "factors", lambda *a: islice(factors(*a), 1))
    model, x = nn.Linear(2, 1002), torch.randn(3, 2)
    with pytest.warns(UserWarning, match=r"'exact' needs 1,001 .*'sampled'"):
        fisher_diagonal(model, (x, None))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("estimator", "classes"), [("exact", 1001), ("sampled", 1002)])
def test_a_thousand_passes_go_without_a_word(estimator, classes):
    fisher_diagonal(nn.Linear(2, classes), (torch.randn(3, 2), None), estimator)
