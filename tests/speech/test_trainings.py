"""Which training runs when, what it reads, how long it takes, and what a killed process means."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import waiting

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

from ewc_tutorial.speech import runner, trainings, worker
from ewc_tutorial.speech.base import prepare
from ewc_tutorial.speech.client import RunningService
from ewc_tutorial.speech.errors import AlreadyServedError, RefusedError
from ewc_tutorial.speech.estimate import Estimate
from ewc_tutorial.speech.messages import TrainRequest
from ewc_tutorial.speech.plan import Plan, steps_for
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.training import Mixture

wait_for = partial(waiting.wait_for, seconds=20.0)


@pytest.fixture
def processes(monkeypatch, start_trainings_by, tmp_path):
    """Trainings are processes that wait; those that were started."""
    started = []

    def start(command, **options):
        ready = tmp_path / f"ready {len(started)}"
        code = f"import pathlib, sys; pathlib.Path({str(ready)!r}).touch(); sys.stdin.read()"
        started.append(subprocess.Popen([sys.executable, "-c", code], **options))
        started[-1].job, started[-1].ready = command[-1], ready
        return started[-1]

    start_trainings_by(start)
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 0.05)
    # Tests that run in the background of a shell ignore SIGINT, and so would these processes.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield started
    signal.signal(signal.SIGINT, interrupt)
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def service(tmp_path, settings, new_speech, processes, indexes):
    place = indexes.place(tmp_path / "data")
    database = None if isinstance(place, Path) else place
    read = Settings(**settings | {"data": tmp_path / "data", "database": database, "steps": None})
    read.data.mkdir()
    prepare(read)
    running = Service(read)
    running.start()
    for path, text in new_speech[:6]:
        with path.open("rb") as sound:
            running.corrections.add(sound, text)
    yield running
    running.stop()


def states(service):
    return [row["state"] for row in reversed(service.jobs.page())]


def work(service, job):
    """Do what a worker does first."""
    service.jobs.begin(job)
    folder = service.settings.data / "work" / job / "checkpoints"
    folder.mkdir(exist_ok=True)
    return folder


def test_trainings_wait_for_their_turn(service, processes, new_speech):
    first = service.trainings.request(TrainRequest())
    assert service.jobs.get(first)["state"] == "queued"
    second, third = (service.trainings.request(TrainRequest(lam=lam)) for lam in (1, 2))
    assert service.trainings.request(TrainRequest(lam=1)) == second, "it asks for the same"
    assert states(service) == ["queued", "waiting", "waiting"]
    assert service.jobs.unfinished() == first
    with new_speech[6][0].open("rb") as sound:
        service.corrections.add(sound, new_speech[6][1])
    checkpoints = work(service, first)
    service.trainings.runner.cancel(first)
    assert not checkpoints.exists()
    assert states(service) == ["cancelled", "queued", "waiting"]
    assert [process.job for process in processes] == [first, second]
    row = service.jobs.get(second)
    assert (row["last_seq"], row["options"]["plan"]["lam"]) == (7, 1), "as of its turn"
    # It comes to its end; one that waits can be cancelled.
    service.trainings.runner.cancel(third)
    service.jobs.finish(second, "base")
    processes[1].stdin.close()
    fourth = service.trainings.request(TrainRequest())
    wait_for(lambda: service.jobs.unfinished() == fourth)
    assert states(service) == ["cancelled", "done", "cancelled", "queued"]


@pytest.mark.parametrize(
    ("settings_say", "wished", "lam"),
    [
        ({}, {}, 0.0),
        ({}, {"replay": 0.0}, 10.0),
        ({"replay": 0.0}, {}, 10.0),
        ({"replay": 0.0}, {"replay": 0.25}, 0.0),
        ({"lam": 7.0}, {}, 7.0),
        ({"lam": 7.0}, {"lam": 3.0, "replay": 0.0}, 3.0),
        ({}, {"lam": 3.0}, 3.0),
    ],
)
def test_there_is_a_penalty_where_nothing_is_replayed_unless_told_otherwise(
    service, settings_say, wished, lam
):
    usual = {"lam": None, "replay": 0.5} | settings_say
    service.trainings._settings = service.settings.model_copy(update=usual)
    job = service.trainings.request(TrainRequest(**wished))
    assert service.jobs.get(job)["options"]["plan"]["lam"] == lam


def slowed(function):
    def slow(*args, **options):
        result = function(*args, **options)
        time.sleep(0.3)
        return result

    return slow


def test_a_request_does_not_give_up_a_training_that_is_about_to_begin(service, monkeypatch):
    monkeypatch.setattr(service.jobs, "claim", slowed(service.jobs.claim))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(service.trainings.request, TrainRequest())
        wait_for(service.jobs.unfinished)
        service.trainings.request(TrainRequest(lam=1))
        first.result()
    assert states(service) == ["queued", "waiting"]


def test_a_training_is_cancelled_while_its_process_is_started(service, processes, monkeypatch):
    start = service.trainings.runner._start
    starting = threading.Event()

    def slow(job):
        starting.set()
        time.sleep(0.3)
        start(job)

    monkeypatch.setattr(service.trainings.runner, "_start", slow)
    with ThreadPoolExecutor() as pool:
        requested = pool.submit(service.trainings.request, TrainRequest())
        assert starting.wait(20)
        service.trainings.cancel(service.jobs.unfinished())
        requested.result()
    assert states(service) == ["cancelled"]
    assert [process.poll() is None for process in processes] == [False]


def test_a_process_does_nothing_for_a_training_that_was_cancelled(service, monkeypatch):
    job = service.trainings.request(TrainRequest())
    service.trainings.cancel(job)
    monkeypatch.setattr(worker, "learn", None)
    worker.Training(job, service.settings, service._database).run()
    assert states(service) == ["cancelled"]
    assert service.jobs.get(job)["results"] == {}


def test_the_same_request_twice_at_once_is_one_training(service, monkeypatch):
    service.trainings.request(TrainRequest())
    monkeypatch.setattr(service.jobs, "waiting", slowed(service.jobs.waiting))
    with ThreadPoolExecutor() as pool:
        jobs = set(pool.map(service.trainings.request, [TrainRequest(lam=1)] * 2))
    assert len(jobs) == 1
    assert states(service) == ["queued", "waiting"]


def test_the_line_of_trainings_has_an_end(service, monkeypatch):
    monkeypatch.setattr(trainings, "MAX_WAITING", 2)
    for lam in range(3):
        service.trainings.request(TrainRequest(lam=lam))
    with pytest.raises(RefusedError, match="2 trainings are waiting") as caught:
        service.trainings.request(TrainRequest(lam=9))
    assert caught.value.status == 503


def test_what_waits_for_corrections_that_are_deleted_fails_and_blocks_no_other(service):
    first = service.trainings.request(TrainRequest())
    service.trainings.request(TrainRequest(lam=1))
    for correction in service.corrections.index.page():
        service.corrections.remove(correction)
    service.trainings.runner.cancel(first)
    assert states(service) == ["cancelled", "failed"]
    assert "0 corrections" in service.jobs.page()[0]["error"]


def test_what_waits_goes_on_after_a_restart(service, processes):
    jobs = [service.trainings.request(TrainRequest(lam=lam)) for lam in range(2)]
    work(service, jobs[0])
    stray = service.settings.data / "work" / ("0" * 32)
    stray.mkdir(parents=True)
    service.stop()
    again = Service(service.settings)
    again.start()
    assert states(again) == ["running", "waiting"]
    assert again.jobs.cut_off(jobs[0]) == 0
    assert not stray.exists()
    again.stop()


def test_a_correction_to_measure_on_may_be_deleted_meanwhile(service, monkeypatch):
    job = service.trainings.request(TrainRequest())
    training = worker.Training(job, service.settings, service._database)

    def learn(*_):
        for correction in service.corrections.parts(9, service.settings.hold_out)[1]:
            service.corrections.remove(correction)

    monkeypatch.setattr(worker, "learn", learn)
    training.run()
    row = service.jobs.get(job)
    assert (row["state"], row["results"]["recordings"]["new_for_measuring"]) == ("rejected", 1)
    assert "no better" in row["error"]


def test_a_training_measures_on_no_more_corrections_than_it_may(service, new_speech):
    for path, text in new_speech[6:9]:
        with path.open("rb") as sound:
            service.corrections.add(sound, text)
    job = service.trainings.request(TrainRequest())
    settings = service.settings.model_copy(update={"max_tests": 1})
    material, _ = worker.Training(job, settings, service._database)._gather()
    assert len(service.corrections.parts(9, settings.hold_out)[1]) == 2
    assert (len(material.new), len(material.new_tests), len(material.old_tests)) == (7, 1, 1)


def test_each_training_has_an_order_of_its_own(service):
    jobs = []
    for lam in range(2):
        jobs.append(service.trainings.request(TrainRequest(lam=lam)))
        service.trainings.runner.cancel(jobs[-1])
    seeds = [service.jobs.get(job)["options"]["plan"]["seed"] for job in jobs]
    assert seeds == [0, 1]


@pytest.mark.parametrize(("size", "replay"), [(8, 0.5), (8, 0.0), (2, 0.9), (5, 0.01)])
def test_by_default_every_correction_is_read(size, replay):
    plan = Plan(batch_size=size, replay=replay)
    for n_new in (1, 599, 600, 601, 2000):
        steps = steps_for(n_new, plan.new_per_batch)
        assert steps >= 150
        assert Plan(steps=steps, batch_size=size, replay=replay).unread(n_new) is None
        if replay:
            read = {i for i in Mixture(n_new, 10, steps, size, replay, seed=0) if i < n_new}
            assert len(read) == n_new
    assert steps_for(600, 4) == 150


def test_too_few_steps_are_said_to_be(service):
    plan = Plan(steps=150, batch_size=8, replay=0.5)
    assert plan.unread(2000) == (
        "1,400 of 2,000 corrections are not read: 150 steps have room for 600; 500 would read "
        "each once. Another training reads others."
    )
    read = [set(Mixture(2000, 10, 150, 8, 0.5, seed)) for seed in range(2)]
    assert len(read[1] - read[0]) > 300


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_a_process_that_is_killed_goes_on(service, processes, number):
    job = service.trainings.request(TrainRequest())
    work(service, job)
    # Ctrl+C in a terminal is sent to the whole group: not to a training.
    assert os.getpgid(processes[0].pid) != os.getpgid(0)
    wait_for(processes[0].ready.exists)  # before that SIGINT is an error of Python's start
    processes[0].send_signal(getattr(signal, number))
    wait_for(lambda: len(processes) == 2)
    assert service.jobs.get(job)["state"] == "running"
    service.jobs.begin(job)
    assert service.jobs.cut_off(job) == (2 if number == "SIGKILL" else 1)
    for n in (2, 3):
        wait_for(lambda n=n: len(processes) == n)
        time.sleep(0.05)
        processes[-1].kill()
    wait_for(lambda: states(service) == ["failed"])
    assert "cut off 3 times" in service.jobs.get(job)["error"]
    assert len(processes) == 3


def test_a_process_that_finds_another_at_work_tries_again_and_fails_nothing(
    service, start_trainings_by, tmp_path
):
    codes = [runner.OCCUPIED] * (runner.MAX_ATTEMPTS + 1)

    def start(command, **options):
        code = f"import sys; sys.stdin.readline(); sys.exit({codes.pop() if codes else 0})"
        return subprocess.Popen([sys.executable, "-c", code], **options)

    start_trainings_by(start)
    job = service.trainings.request(TrainRequest())
    wait_for(lambda: not codes)
    assert states(service) == ["queued"]
    assert service.jobs.cut_off(job) == 0


def test_a_worker_that_finds_another_at_work_says_so(service, monkeypatch):
    def held(*_, **__):
        raise AlreadyServedError("Another one works.")

    line = json.dumps(service.settings.to_worker())
    monkeypatch.setattr(worker, "sys", SimpleNamespace(
        argv=["worker", "0" * 32], stdin=io.StringIO(f"{line}\n"), exit=sys.exit))  # fmt: skip
    monkeypatch.setattr(worker, "_end_with_the_server", lambda: None)
    monkeypatch.setattr(worker, "os", SimpleNamespace(umask=lambda _: None))
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(worker, "lock_folder", held)
    monkeypatch.setattr(worker.Database, "hold", held)
    with pytest.raises(SystemExit) as caught:
        worker.main()
    assert caught.value.code == runner.OCCUPIED


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_group_that_is_ended_together_counts_no_attempt(service, processes, monkeypatch):
    """As systemd does it: a signal to every process of the service."""
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 30.0)
    job = service.trainings.request(TrainRequest())
    work(service, job)
    processes[0].terminate()
    processes[0].wait()
    service.stop()
    assert (states(service), service.jobs.cut_off(job)) == (["running"], 0)
    assert len(processes) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_killed_training_can_be_cancelled_before_it_goes_on(service, processes, monkeypatch):
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 0.5)
    job = service.trainings.request(TrainRequest())
    processes[0].kill()
    processes[0].wait()
    service.trainings.request(TrainRequest(lam=1))
    assert states(service) == ["queued", "waiting"], "it is not given up yet"
    service.trainings.runner.cancel(job)
    time.sleep(0.7)
    assert processes[0].job == job
    assert len(processes) == 2
    assert states(service) == ["cancelled", "queued"]


def test_a_program_waits_for_a_training_that_waits_for_its_turn():
    states = [{"state": state, "error": None} for state in ("waiting", "queued", "running", "done")]
    seen = SimpleNamespace(job=lambda job: states.pop(0))
    assert RunningService.wait(seen, "x")["state"] == "done"


def test_the_time_left_is_that_of_the_steps_and_of_hearing():
    now = [1000.0]
    estimate = Estimate(100, lambda: now[0])
    assert estimate.hearings(1) is None
    assert estimate.at_step(10) is None, "after a resumption the first step tells nothing"
    estimate.heard(7.0)
    for step in (20, 30, 100):
        now[0] = 1000.0 + 3 * (step - 10)
        assert estimate.at_step(step) == pytest.approx(3 * (100 - step) + 7)
    assert estimate.hearings(3) == 21


def version(models, name, parent, importance=False, job="x"):
    def write(folder):
        (folder / "model.safetensors").write_bytes(b"0")
        if importance:
            (folder / "importance.pt").write_bytes(b"1")

    models.add(name, write, {"parent": parent} | ({"job": job} if job else {}))


def test_versions_that_nobody_needs_are_removed(tmp_path):
    from ewc_tutorial.speech.versions import BASE, Versions

    models = Versions(tmp_path)
    version(models, BASE, None, job=None)
    version(models, "by-hand", None, job=None)
    version(models, "0001-a", BASE)
    version(models, "0002-b", "0001-a", importance=True)
    parent = "0002-b"
    for i in range(3, 11):
        version(models, f"{i:04d}-c", parent)
        parent = f"{i:04d}-c"
    models.switch("0005-c")
    before = models.about("0003-c")
    assert models.prune(newest=2) == ["0008-c", "0007-c", "0006-c", "0003-c", "0001-a"]
    assert set(models.names()) == {
        BASE, "by-hand", "0002-b", "0004-c", "0005-c", "0009-c", "0010-c",
    }  # fmt: skip
    # The line to the importance goes on through what was removed.
    assert models.importance("0010-c") == models.path("0002-b") / "importance.pt"
    assert models.about("0003-c") == before
    assert list(models.line("0005-c"))[-2:] == ["0001-a", BASE]
    assert models.prune(newest=2) == []
    models.recover()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_version_that_is_put_into_use_meanwhile_stays(tmp_path, monkeypatch):
    from ewc_tutorial.speech.versions import Versions

    models = Versions(tmp_path)
    for i in range(3):
        version(models, f"000{i}-a", None)
    models.switch("0002-a")
    real = shutil.rmtree

    def between(path, **options):
        real(path, **options)
        models.switch("0000-a")

    monkeypatch.setattr(shutil, "rmtree", between)
    assert models.prune(newest=1) == ["0001-a"]
    assert models.exists("0000-a")
    assert models.current() == "0000-a"


def test_an_index_made_again_knows_the_trainings_that_were_over(service, indexes):
    trainings = service.trainings
    first, second = (trainings.request(TrainRequest(lam=lam)) for lam in (1, 2))
    trainings.runner.cancel(first)
    service.jobs.finish(second, "base", lambda: {"removed": ["x"]})
    trainings.go_on()
    third = trainings.request(TrainRequest())
    wanted = service.jobs.page()[1:]
    assert [row["state"] for row in wanted] == ["done", "cancelled"]
    service.stop()
    indexes.lose(service.settings.data)
    place = indexes.place(service.settings.data)
    database = None if isinstance(place, Path) else place
    again = Service(service.settings.model_copy(update={"database": database}))
    again.start()
    try:
        assert again.jobs.page() == wanted
        assert again.jobs.get(third) is None
        again.trainings.request(TrainRequest())
        assert again.jobs.page()[0]["seq"] == 3
    finally:
        again.stop()
