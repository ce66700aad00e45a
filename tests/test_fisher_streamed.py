"""F measured group by group, with its progress told, and going on where it was killed."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from fisher_oracle import assert_fisher_close, loop_fisher
from torch import nn

from ewc_tutorial import EWC
from ewc_tutorial.fisher import Categorical, fisher_diagonal, saved

X = torch.randn(23, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(4, (23,), generator=torch.Generator().manual_seed(1))
BATCHES = [(X[i : i + 5], Y[i : i + 5]) for i in range(0, 23, 5)]


class Killed(BaseException):
    """What no one catches."""


class Counting(nn.Sequential):
    """A network that counts the samples it is given."""

    seen = 0

    def forward(self, x):
        type(self).seen += len(x)
        return super().forward(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    Counting.seen = 0
    return Counting(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4))


@pytest.fixture
def always(monkeypatch):
    """Save after each batch."""
    monkeypatch.setattr(saved, "EVERY", 0.0)
    monkeypatch.setattr(saved, "TIMES_ITS_OWN", 0.0)


def until(batch):
    """Yield batches, and die after so many."""
    yield from BATCHES[:batch]
    raise Killed


@pytest.mark.parametrize("curvature", ["diagonal", "compact"])
@pytest.mark.parametrize("groups", [2, 3, 50])
def test_groups_give_the_same_state(model, curvature, groups):
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    states = []
    for options, generator in zip(({}, {"groups": groups}), generators, strict=True):
        ewc = EWC(model, curvature=curvature)
        for estimator in ("exact", "sampled"):
            ewc.consolidate((X, Y), estimator, generator=generator, n_samples=17, **options)
        states.append(ewc.state_dict())
    extra = [state.pop("_extra_state") for state in states]
    assert extra[0]["n_tasks"] == extra[1]["n_tasks"] == 2
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        if curvature == "compact":  # rounding may turn over a last bit of F
            difference = states[1][key].float() - value.float()
            assert difference.abs().max() <= (1 if value.dtype == torch.uint8 else 1e-3)
        else:
            torch.testing.assert_close(states[1][key], value, rtol=1e-6, atol=0)
    assert generators[0].get_state().equal(generators[1].get_state())


@pytest.mark.slow
def test_one_group_at_a_time_is_held(model):
    alive, groups = [], []

    def fisher(model, data, estimator):
        gc.collect()
        assert not any(reference() is not None for reference in alive)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        groups.append(names)
        found = fisher_diagonal(model, data, estimator)
        assert list(found) == names
        alive.extend(weakref.ref(F) for F in found.values())
        return found

    ewc = EWC(model, curvature="compact")
    ewc.consolidate((X, Y), fisher=fisher, groups=3)
    assert len(groups) == 3
    assert [name for names in groups for name in names] == ewc.names
    expected = loop_fisher(model, X)
    for name, S in ewc.importance.items():
        assert (S - expected[name]).abs().max() <= expected[name].max() / 8


def test_a_group_that_fails_changes_nothing(model):
    ewc = EWC(model, curvature="compact")
    ewc.consolidate((X, Y))
    before = copy.deepcopy(ewc.state_dict())
    calls = []

    def fisher(model, data, estimator):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return fisher_diagonal(model, data, estimator)

    with pytest.raises(Killed):
        ewc.consolidate((X, Y), fisher=fisher, groups=2)
    after = ewc.state_dict()
    assert after["_extra_state"] == before["_extra_state"]
    assert all(torch.equal(after[key], before[key]) for key in before if key != "_extra_state")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must be a whole number above zero, not 0"),
        ({"groups": 2.0}, "groups must be a whole number above zero, not 2.0"),
        ({"groups": 2, "data": iter(BATCHES)}, "an iterator cannot be: pass a list of batches"),
        ({"groups": 2, "curvature": "kronecker"}, "groups must be 1 for curvature 'kronecker'"),
    ],
)
def test_what_groups_cannot_be(model, options, message):
    ewc = EWC(model, curvature=options.pop("curvature", "diagonal"))
    with pytest.raises(ValueError, match=message):
        ewc.consolidate(**{"data": (X, Y)} | options)


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
@pytest.mark.parametrize("killed", [1, 2, 4])
def test_a_killed_measurement_goes_on_to_the_same_bits(model, tmp_path, always, estimator, killed):
    expected = fisher_diagonal(model, iter(BATCHES), estimator)
    all_seen = Counting.seen
    file = tmp_path / "sums.pt"
    for batch in (killed, killed + 1):
        with pytest.raises(Killed):
            fisher_diagonal(model, until(batch), estimator, resume=file)
    Counting.seen = 0
    found = fisher_diagonal(model, iter(BATCHES), estimator, resume=file)
    assert Counting.seen < all_seen
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    Counting.seen = 0
    again = fisher_diagonal(model, iter(BATCHES), estimator, resume=file)  # all is in the file
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    if estimator == "exact":
        assert_fisher_close(found, loop_fisher(model, X))


def test_groups_that_are_killed_go_on_with_the_one_that_was_not_done(model, tmp_path, always):
    first, second = EWC(model), EWC(model)
    first.consolidate(BATCHES, groups=2)
    file = tmp_path / "sums.pt"

    class Dying:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return until(4) if self.passes == 2 else iter(BATCHES)

    dying = Dying()
    with pytest.raises(Killed):
        second.consolidate(dying, groups=2, resume=file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sums.pt.0", "sums.pt.1"]
    second.consolidate(dying, groups=2, resume=file)
    for name, S in first.importance.items():
        assert torch.equal(second.importance[name], S)


@pytest.mark.parametrize("what", ["weights", "estimator", "first batch", "fewer", "other batches"])
def test_another_measurement_is_not_gone_on_with(model, tmp_path, always, what):
    file = tmp_path / "sums.pt"
    with pytest.raises(Killed):
        fisher_diagonal(model, until(3), resume=file)
    batches, estimator, message = BATCHES, "exact", "holds another measurement"
    if what == "weights":
        nn.init.zeros_(model[0].bias)
    elif what == "estimator":
        estimator = "sampled"
    elif what == "first batch":
        batches = [(X[:5] + 1, Y[:5]), *BATCHES[1:]]
    elif what == "fewer":
        batches, message = BATCHES[:2], "has 15 samples, but data only 10"
    else:
        batches, message = [BATCHES[0], (X[5:], Y[5:])], "ends after 15 samples, in the middle"
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(model, batches, estimator, resume=file)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"classes": [0, 1, 2]}),
        ({"classes": [0, 1, 2]}, {"classes": [0, 1, 2, 3]}),
        ({"ignore_index": -100}, {"ignore_index": 0}),
        ({"likelihood": "gaussian"}, {"likelihood": "gaussian", "variance": 4.0}),
        ({"likelihood": Categorical()}, {"likelihood": Categorical(ignore_index=0)}),
        ({"generator": 0}, {"generator": 1}),
    ],
)
def test_a_measurement_with_other_options_is_not_gone_on_with(model, tmp_path, first, then):
    file = tmp_path / "sums.pt"
    data = (X, None if "gaussian" in first.values() else Y % 3)
    expected = fisher_diagonal(model, data, "sampled", resume=file, **first)
    with pytest.raises(ValueError, match="holds another measurement"):
        fisher_diagonal(model, data, "sampled", resume=file, **then)
    again = fisher_diagonal(model, data, "sampled", resume=file, **first)
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_a_generator_that_is_not_used_may_stand_anywhere(model, tmp_path, always):
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(Killed):
        fisher_diagonal(model, until(2), generator=generator, resume=tmp_path / "sums.pt")
    torch.rand(3, generator=generator)
    found = fisher_diagonal(model, iter(BATCHES), generator=generator, resume=tmp_path / "sums.pt")
    assert_fisher_close(found, loop_fisher(model, X))


def test_the_progress_is_told(model):
    told = []
    fisher_diagonal(model, (X, Y), batch_size=10, progress=lambda *now: told.append(now))
    fisher_diagonal(model, iter(BATCHES), progress=lambda *now: told.append(now))
    assert told == [(10, 23), (20, 23), (23, 23), *((n, None) for n in (5, 10, 15, 20, 23))]
