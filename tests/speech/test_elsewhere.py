"""Trainings that a worker on another machine takes from the queue: here another process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import forked
import pytest
from waiting import run_async, wait_for

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")
pytest.importorskip("procrastinate", reason="the group 'speech-hosts' is not installed")

from ewc_tutorial.speech import attending, elsewhere, runner
from ewc_tutorial.speech.base import prepare
from ewc_tutorial.speech.messages import TrainRequest
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import PREFIX, Settings, read_settings

pytestmark = pytest.mark.timeout(600)

#: Seconds for this test alone.
QUICK = {"LOOK_SECONDS": 0.2, "ALIVE_SECONDS": 0.3, "DEAD_SECONDS": 3.0}
WORKER = f"""
from ewc_tutorial.speech import __main__, elsewhere
for name, seconds in {QUICK}.items():
    setattr(elsewhere, name, seconds)
__main__.main(["worker"])
"""


@pytest.fixture
def service(server, tmp_path, settings, new_speech, monkeypatch):
    for name, seconds in QUICK.items():
        monkeypatch.setattr(elsewhere, name, seconds)
    place = {
        "data": tmp_path / "data", "worker": "elsewhere",
        "database": server.new(f"elsewhere{time.monotonic_ns()}"),
        "storage": f"file://{tmp_path}/recordings",
    }  # fmt: skip
    few = {"steps": 16, "checkpoint_every": 2, "fisher_samples": 5, "max_tests": 4}
    read = Settings(**settings | place | few)
    read.data.mkdir()
    prepare(read)
    running = Service(read)
    running.start()
    for path, text in new_speech[:6]:
        with path.open("rb") as sound:
            running.corrections.add(sound, text)
    yield running
    running.stop()


@pytest.fixture
def work(service, monkeypatch, tmp_path):
    """Starts workers, which see the same folders."""
    for name in ("data", "old", "database"):
        monkeypatch.setenv(PREFIX + name.upper(), str(getattr(service.settings, name)))
    started = []

    def work():
        with open(tmp_path / f"worker{len(started)}.txt", "ab") as log:
            streams = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
            command = [sys.executable, "-c", WORKER]
            started.append(forked.popen(command, "ewc_tutorial.speech", **streams))
        assert started[-1].stdout.readline().startswith("Worker ")
        return started[-1]

    yield work
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def worker(service):
    """A worker in a thread of this process."""
    stop = threading.Event()
    run = attending._work(service.settings, service.jobs, stop)
    thread = threading.Thread(target=lambda: asyncio.run(run))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def processes(start_trainings_by):
    """Trainings are processes that wait for the end of their input; those that were started."""
    started = []

    def wait(command, **options):
        started.append(subprocess.Popen([sys.executable, "-c", "input(), input()"], **options))
        started[-1].job = command[-1]
        return started[-1]

    start_trainings_by(wait)
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_a_worker_takes_what_is_due_and_ends_what_is_cancelled(service, processes, monkeypatch):
    jobs = service.jobs

    def request(**wish):
        return service.trainings.request(TrainRequest(**wish))

    def in_queue(what):
        with jobs._database.connection() as connection:
            return connection.exec_driver_sql(f"SELECT {what} FROM procrastinate_jobs").all()

    first, second = request(), request(lam=1)
    assert [jobs.get(job)["state"] for job in (first, second)] == ["queued", "waiting"]
    wait_for(lambda: in_queue("queueing_lock") == [(first,)])
    assert "postgresql" not in in_queue("args::text")[0][0], "addresses have passwords"
    with worker(service):
        wait_for(lambda: len(processes) == 1)
        jobs.begin(first)
        service.trainings.runner.cancel(first)
        wait_for(lambda: processes[0].poll() is not None)
        wait_for(lambda: len(processes) == 2)  # the next one comes by itself
        jobs.begin(second)
    # The worker was told to end, which is no failed attempt; another one goes on.
    assert processes[1].poll() is not None
    assert jobs.get(second)["state"] == "running"
    assert jobs.cut_off(second) == 0
    with worker(service):
        wait_for(lambda: len(processes) == 3)
        jobs.begin(second)
        jobs.finish(second, "base")
        wait_for(lambda: in_queue("1") == [])
    assert [process.job for process in processes] == [first, second, second]
    assert [row["state"] for row in jobs.page()] == ["done", "cancelled"]

    # Workers that give no sign of life any more.
    monkeypatch.setattr(elsewhere, "DEAD_SECONDS", 0.5)
    third = request()

    async def die():
        queue = elsewhere.queue_of(service.settings)
        async with queue.open_async():
            me = await queue.job_manager.register_worker()
            while await queue.job_manager.fetch_job(queues=None, worker_id=me) is None:
                await asyncio.sleep(0.05)

    for _ in range(runner.MAX_ATTEMPTS):
        run_async(die())
        jobs.begin(third)
    wait_for(lambda: jobs.get(third)["finished"])
    assert "cut off 3 times" in jobs.get(third)["error"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_elsewhere_trains_and_another_goes_on_after_its_end(service, work):
    jobs = service.jobs
    job = service.trainings.request(TrainRequest())
    killed = work()
    wait_for(lambda: [loss["step"] for loss in jobs.get(job)["losses"]][2:], 400)
    killed.kill()  # as a power cut would
    killed.wait()
    work()
    wait_for(lambda: jobs.get(job)["finished"], 400)
    row = jobs.get(job)
    assert (row["state"], row["error"]) == ("done", None)
    assert row["attempts"] == 2
    assert [loss["step"] for loss in row["losses"]] == list(range(1, 17))
    # So few tests cannot tell what it costs, so it is kept and not served.
    assert service.models.exists(row["model_after"])
    log = (service.settings.data / "work" / job / "log.txt").read_text()
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WORKER": "elsewhere"}, "DATABASE is set"),
        ({"DATABASE": "mysql://secret@x/y"}, "not of the kind 'mysql'"),
        ({"WORKER": "somewhere"}, "'here' or 'elsewhere'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(monkeypatch, given, words):
    for name, value in given.items():
        monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SystemExit, match=words) as caught:
        read_settings()
    assert "secret" not in str(caught.value)
