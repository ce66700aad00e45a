"""No model that costs the old voices more than the budget is served, however bad a training is."""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import sqlalchemy
import torch

pytest.importorskip("transformers", reason="the group 'speech' is not installed")
pytest.importorskip("jiwer", reason="the group 'speech' is not installed")

from ewc_tutorial.speech import worker
from ewc_tutorial.speech.acceptance import Heard, fault_of, judge, most_it_costs
from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.material import Material
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.versions import BASE, Versions


def heard(errors, words=None, silent=False) -> Heard:
    errors = np.array(errors)
    return Heard(errors, np.array(words or [4] * len(errors)), silent)


def test_the_errors_of_each_recording_are_counted():
    found = Heard.of(["a b c", "d", "e f"], ["a c", "", "x e f y"])
    assert found.errors.tolist() == [1, 1, 2]
    assert found.words.tolist() == [3, 1, 2]
    assert found.rate == pytest.approx(4 / 6)
    assert not found.silent
    assert Heard.of(["a", "b"], ["", ""]).silent


def test_the_bound_is_that_of_all_draws_with_replacement():
    before, after = heard([0, 1, 0, 2], [3, 5, 2, 4]), heard([2, 1, 1, 1], [3, 5, 2, 4])
    d, words = after.errors - before.errors, before.words
    draws = [list(draw) for draw in itertools.product(range(4), repeat=4)]
    every = sorted(100 * d[draw].sum() / words[draw].sum() for draw in draws)
    exact = every[int(np.ceil(0.95 * len(every))) - 1]
    neighbours = sorted(set(every))
    place = neighbours.index(exact)
    assert neighbours[place - 1] <= most_it_costs(before, after) <= neighbours[place + 1]
    assert most_it_costs(before, before) == 0


def test_a_few_unlucky_recordings_prove_no_budget_kept():
    """The same rates on few recordings are within budget on many alone."""
    few = heard([0] * 10), heard([1] + [0] * 9)
    many = heard([0] * 400), heard([1] * 40 + [0] * 360)
    assert few[1].rate == many[1].rate == 0.025
    assert most_it_costs(*few) > 5 > most_it_costs(*many) > 2.5


def path(costs, gains, silent=False):
    """Return what judge() asks: errors on 50 old and new recordings by tenths of the way."""

    def at(fraction):
        i = round(10 * fraction)
        return heard([costs[i]] * 50, silent=silent), heard([gains[i]] * 50, silent=silent)

    return at


CLEAN = heard([0] * 50)
WRONG = heard([4] * 50)


def test_the_end_of_a_training_within_budget_is_served_and_nothing_else_is_measured():
    verdict = judge(path([0] * 11, [4] * 10 + [1]), [CLEAN], WRONG, 5.0)
    assert verdict.chosen.fraction == 1.0
    assert len(verdict.tried) == 1


def test_over_budget_the_best_point_within_it_is_served():
    costs = [0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 4]
    gains = [4, 4, 3, 2, 2, 1, 1, 1, 1, 1, 0]
    verdict = judge(path(costs, gains), [CLEAN], WRONG, 5.0)
    assert verdict.chosen.fraction == 0.4 or verdict.chosen.fraction == 0.3
    assert verdict.chosen.new.errors.sum() == 100
    assert "100.0 points" in verdict.sentence
    assert len(verdict.tried) == 10


def test_nothing_is_served_that_is_no_better_or_over_budget_of_any_reference():
    gains = [4] + [1] * 10
    assert judge(path([0] * 11, gains), [CLEAN], heard([1] * 50), 5.0).chosen is None
    rejected = judge(path([1] * 11, gains), [heard([1] * 50), CLEAN], WRONG, 5.0)
    assert rejected.chosen is None
    assert "25.0" in rejected.sentence


def test_a_model_that_writes_nothing_is_not_served_even_if_that_is_fewer_errors():
    rival = heard([6] * 50)  # it made things up
    verdict = judge(path([0] * 11, [4] * 11, silent=True), [CLEAN], rival, 100.0)
    assert verdict.chosen is None
    assert "writes nothing" in verdict.sentence


def test_losses_that_rose_and_weights_that_are_no_numbers_are_faults():
    fine = {"w": torch.zeros(2)}
    assert fault_of(list(np.linspace(3, 1, 40)), fine) is None
    assert "rose" in fault_of(list(np.linspace(1, 3, 40)), fine)
    assert "w of the trained model" in fault_of([2.0, 1.0], {"w": torch.tensor([0.0, torch.nan])})
    assert fault_of([1.0], fine) is None
    # Batches differ: a loss that only trembles has not risen.
    noise = np.random.default_rng(0).normal(3.0, 1.0, (200, 100))
    assert sum(fault_of(list(row), fine) is not None for row in noise) < 20


# A recogniser of its own: a recording is a vector per word, the model a linear classifier, the last
# class is silence. Everything else is the worker's.

WORDS = [f"w{i}" for i in range(8)]
N_FEATURES = 10
BUDGET = 5.0
N_TRAININGS = 100


class LinearRecogniser:
    def __init__(self, folder: Path) -> None:
        self.model = torch.nn.Linear(N_FEATURES, len(WORDS) + 1)
        self.model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))

    def save(self, folder: Path) -> None:
        torch.save(self.model.state_dict(), folder / "weights.pt")


def hear(recogniser: LinearRecogniser, recordings) -> Heard:
    with torch.no_grad():
        choices = recogniser.model(torch.stack([x for x, _ in recordings])).argmax(-1).tolist()
    texts = [" ".join(["", *WORDS, ""][i + 1] for i in row) for row in choices]
    return Heard.of([" ".join(WORDS[i] for i in y) for _, y in recordings],
                    [" ".join(text.split()) for text in texts])  # fmt: skip


def voice(turn: float, n: int, seed: int) -> list:
    """Return recordings of three words: a prototype per word, turned in a plane, and noise."""
    shapes = torch.randn(len(WORDS), N_FEATURES, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(seed)
    other = torch.randn(len(WORDS), N_FEATURES, generator=torch.Generator().manual_seed(6))
    shapes = np.cos(turn) * shapes + np.sin(turn) * other
    y = torch.randint(len(WORDS), (n, 3), generator=generator)
    x = shapes[y] + 0.45 * torch.randn(n, 3, N_FEATURES, generator=generator)
    return list(zip(x, y, strict=True))


def train(model, recordings, steps, rate, change=lambda y: y, sign=1.0, losses=None):
    x, y = (torch.stack(part) for part in zip(*recordings, strict=True))
    y = change(y)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= sign * rate * p.grad
        if losses is not None:
            losses.append(loss.item())


def bad_training(model, new, seed):
    """Train badly, in one of ten ways; return the losses."""
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    size = 1 + (seed // 10) / 3  # each way from mild to wild

    def noise(y, share=0.6):
        wrong = torch.rand(y.shape, generator=generator) < share
        return torch.where(wrong, torch.randint(len(WORDS), y.shape, generator=generator), y)

    def shuffled(y):
        return y[torch.randperm(len(y), generator=generator)]

    ways = (
        lambda: train(model, new, 30, 30.0 * size, losses=losses),
        lambda: train(model, new, 30, float("inf"), losses=losses),
        lambda: train(model, new, 100, size, shuffled, losses=losses),
        lambda: train(model, new, 100, size, noise, losses=losses),
        lambda: train(model, new, 60, 0.3 * size, sign=-1.0, losses=losses),
        lambda: train(model, new[:2], 200, 2 * size, losses=losses),
        lambda: train(model, new, 400, size, losses=losses),
        lambda: train(model, new, 100, size, lambda y: torch.full_like(y, 8), losses=losses),
        lambda: train(model, new, 100, size, lambda y: torch.full_like(y, 2), losses=losses),
        lambda: [p.data.add_(0.3 * size * torch.randn(p.shape, generator=generator))
                 for p in model.parameters()],
    )  # fmt: skip
    ways[seed % 10]()
    return losses


class InMemory(Database):
    """The index, without a disk that it would wait for thousands of times."""

    def __init__(self) -> None:
        with mock.patch.object(sqlalchemy, "NullPool", sqlalchemy.StaticPool):
            super().__init__(Path(":memory:"))


@pytest.mark.timeout(600)
def test_of_a_hundred_bad_trainings_none_over_budget_is_served(tmp_path, monkeypatch):
    torch.manual_seed(0)
    old, new = voice(0.0, 200, 1), voice(0.7, 40, 2)
    material = Material([], voice(0.0, 60, 3), new, voice(0.7, 30, 4), [])
    fresh_old = voice(0.0, 1000, 5)
    base = SimpleNamespace(model=torch.nn.Linear(N_FEATURES, len(WORDS) + 1))
    train(base.model, old, 300, 0.5)
    settings = Settings(data=tmp_path, old_budget=BUDGET)
    models, database = Versions(tmp_path / "models"), InMemory()
    models.add(BASE, lambda folder: torch.save(base.model.state_dict(), folder / "weights.pt"))
    models.switch(BASE)
    jobs = Jobs(database)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(worker, "Recogniser", LinearRecogniser)
    monkeypatch.setattr(worker, "heard_by", hear)
    monkeypatch.setattr(worker.Training, "_gather", lambda self: (material, tmp_path / "f.pt"))
    before = hear(base, fresh_old)
    assert before.rate < 0.1

    costs, states, too_dear = {}, [], 0
    for seed in range(N_TRAININGS):

        def learn(recogniser, old, new, plan, work, listen, phase, importance, seed=seed):
            losses = bad_training(recogniser.model, new, seed)
            if not np.isfinite(losses).all():
                raise worker.NotLearnedError("as the Trainer's callback says")
            for step in range(0, len(losses), max(1, len(losses) // 4)):
                listen(step, losses[step], 0.0)

        monkeypatch.setattr(worker, "learn", learn)
        models.switch(BASE)
        job = jobs.create({"plan": {"steps": 400}}, 1, BASE)
        try:
            worker.Training(job, settings, database).run()
        except worker.NotLearnedError as error:
            jobs.fail(job, str(error))
        row = jobs.get(job)
        states.append(row["state"])
        served = LinearRecogniser(models.path(models.current()))
        if row["model_after"] is None:
            assert row["error"].count("\n") == 0 < len(row["error"])
        else:
            assert row["model_after"] == models.current()
            after = hear(served, fresh_old)
            costs[seed] = 100 * (after.rate - before.rate)
            assert row["results"]["after"]["new"] < row["results"]["before"]["new"]
        if trained := row["results"].get("path"):
            too_dear += trained[0]["old"] - row["results"]["before"]["old"] > BUDGET / 100
    assert max(costs.values()) <= BUDGET
    # The budget was needed, and the way back was of use.
    assert too_dear > 50
    assert states.count("done") == len(costs) > 20
    assert states.count("rejected") > 20
    assert states.count("failed") >= 10


class Killed(BaseException):
    pass


@pytest.fixture
def world(tmp_path, monkeypatch, indexes):
    """A training that is good for the new voice, but for the parts that a test replaces."""
    torch.manual_seed(0)
    old, new = voice(0.0, 200, 1), voice(0.7, 40, 2)
    material = Material([], voice(0.0, 60, 3), new, voice(0.7, 30, 4), [])
    base = SimpleNamespace(model=torch.nn.Linear(N_FEATURES, len(WORDS) + 1))
    train(base.model, old, 300, 0.5)
    models, database = Versions(tmp_path / "models"), Database(indexes.place(tmp_path))
    models.add(BASE, lambda folder: torch.save(base.model.state_dict(), folder / "weights.pt"))
    models.switch(BASE)

    def learn(recogniser, old, new, *_):
        train(recogniser.model, new, 60, 0.5)

    monkeypatch.setattr(worker, "Recogniser", LinearRecogniser)
    monkeypatch.setattr(worker, "heard_by", hear)
    monkeypatch.setattr(worker, "learn", learn)
    monkeypatch.setattr(worker.Training, "_gather", lambda self: (material, tmp_path / "f.pt"))
    jobs = Jobs(database)
    job = jobs.create({"plan": {"steps": 60}, "settled": "2001-02-03"}, 1, BASE)
    settings = Settings(data=tmp_path, old_budget=100.0)
    run = lambda: worker.Training(job, settings, database).run()  # noqa: E731
    yield SimpleNamespace(models=models, jobs=jobs, job=job, run=run)
    database.close()


def test_a_version_that_is_put_into_use_meanwhile_stays_in_use(world, monkeypatch):
    world.models.add("by-hand", lambda folder: shutil.copy(
        world.models.path(BASE) / "weights.pt", folder))  # fmt: skip
    real = worker.judge

    def judge(*args):
        verdict = real(*args)
        world.models.switch("by-hand")
        return verdict

    monkeypatch.setattr(worker, "judge", judge)
    world.run()
    row = world.jobs.get(world.job)
    assert world.models.current() == "by-hand"
    assert world.models.exists(row["model_after"])
    assert (
        "by-hand has been put into use while it was compared with base"
        in (row["results"]["outcome"])
    )


@pytest.mark.parametrize("end", [Killed(), OSError(28, "No space left on device")])
def test_a_training_that_is_cut_off_at_its_end_is_not_judged_against_itself(
    world, monkeypatch, end
):
    def cut_off(self, newest):
        raise end

    with monkeypatch.context() as patch:
        patch.setattr(Versions, "prune", cut_off)
        with suppress(Killed):
            world.run()
    if isinstance(end, Killed):
        assert world.jobs.get(world.job)["state"] == "running"
        world.run()
    row = world.jobs.get(world.job)
    assert (row["state"], row["error"], row["results"]["fraction"]) == ("done", None, 1.0)
    assert row["model_after"] == world.models.current() != BASE
    assert row["results"]["removed"] == []
    # What was deleted since then may have been learned, by the first attempt.
    assert world.models.about(row["model_after"])["gathered"] == "2001-02-03"
