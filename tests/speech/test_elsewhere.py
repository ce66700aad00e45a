"""Trainings that a worker on another machine takes from the queue: here another process."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")
pytest.importorskip("procrastinate", reason="the group 'speech-hosts' is not installed")

from ewc_tutorial.speech import elsewhere
from ewc_tutorial.speech.base import prepare
from ewc_tutorial.speech.messages import TrainRequest
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import PREFIX, Settings, read_settings

pytestmark = pytest.mark.timeout(600)

#: Seconds for this test alone.
QUICK = {"LOOK_SECONDS": 0.2, "ALIVE_SECONDS": 0.3, "DEAD_SECONDS": 3.0}
WORKER = f"""
import sys
from ewc_tutorial.speech import __main__, elsewhere
for name, seconds in {QUICK}.items():
    setattr(elsewhere, name, seconds)
sys.argv[1:] = ["worker"]
__main__.main()
"""


def wait_for(condition, seconds=240.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


@pytest.fixture
def service(server, tmp_path, settings, new_speech, monkeypatch):
    for name, seconds in QUICK.items():
        monkeypatch.setattr(elsewhere, name, seconds)
    place = {"data": tmp_path / "data", "database": server.new("elsewhere"), "worker": "elsewhere"}
    read = Settings(**settings | place | {"steps": 40, "checkpoint_every": 5})
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
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER], stdout=subprocess.PIPE, stderr=log, text=True
                )
            )
        assert started[-1].stdout.readline().startswith("Worker ")
        return started[-1]

    yield work
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_worker_elsewhere_trains_and_another_goes_on_after_its_end(service, work):
    jobs = service.jobs

    def train(**wish):
        return service.trainings.request(TrainRequest(**wish))

    def step(job):
        losses = jobs.get(job)["losses"]
        return losses[-1]["step"] if losses else 0

    first, second = train(), train(steps=5_000)
    assert [jobs.get(job)["state"] for job in (first, second)] == ["queued", "waiting"]
    worker = work()
    wait_for(lambda: step(first) >= 7)
    worker.kill()  # as a power cut would
    worker.wait()
    at_kill = step(first)
    worker = work()
    wait_for(lambda: jobs.get(first)["finished"])
    row = jobs.get(first)
    assert (row["state"], row["error"]) == ("done", None) or row["state"] == "rejected"
    assert row["attempts"] == 2
    assert [loss["step"] for loss in row["losses"]] == list(range(1, 41))
    assert at_kill < 40
    assert row["model_after"] in (None, service.serving.current()[0])
    log = (service.settings.data / "work" / first / "log.txt").read_text()
    assert "Traceback" not in log
    # The next one comes by itself. Its worker is told to end, which is no failed attempt.
    wait_for(lambda: step(second) >= 6)
    worker.terminate()
    assert worker.wait(timeout=30) == 0
    assert jobs.cut_off(second) == 0
    worker = work()
    wait_for(lambda: jobs.get(second)["attempts"] == 2)
    # It is cancelled here, and the process there ends.
    service.trainings.runner.cancel(second)
    checkpoints = service.settings.data / "work" / second / "checkpoints"
    wait_for(lambda: not checkpoints.exists())
    assert jobs.get(second)["state"] == "cancelled"
    third = train(steps=1)
    wait_for(lambda: jobs.get(third)["finished"])
    assert jobs.get(third)["attempts"] == 1
    with service.jobs._database.connection() as connection:
        left = connection.exec_driver_sql("SELECT args::text FROM procrastinate_jobs").scalars()
        assert not any("postgresql" in args for args in left), "addresses have passwords"


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
