"""A server killed in the middle of an upload and of a training, and a full cycle after it."""

from __future__ import annotations

import hashlib
import shutil
import socket

import pytest
from waiting import wait_for

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.jobs import Jobs

pytestmark = pytest.mark.timeout(600)


def half_an_upload(service, content: bytes) -> socket.socket:
    """Begin an upload and return its connection, with half of the recording sent."""
    url = service.client.base_url
    connection = socket.create_connection((url.host, url.port), timeout=30)
    head = (
        "POST /upload/corrections HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        f"{len(content) + 1000}\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="audio"; filename="x.wav"\r\n\r\n'
    )
    connection.sendall(head.encode() + content[: len(content) // 2])
    return connection


def test_a_killed_server_loses_nothing_and_goes_on_to_the_end(
    start, tmp_path, old_speech, new_speech, wav
):
    data = tmp_path / "data"
    shutil.copytree(old_speech, tmp_path / "old")
    service = start(old=tmp_path / "old")
    assert "0 corrections" in service.client.post("/train/ewc").json()["detail"]
    sent = {}
    for path, text in new_speech:
        sent[hashlib.sha256(path.read_bytes()).hexdigest()] = text
        service.send(path, text)
    job = service.train(steps=90)
    waiting = service.train()
    assert service.job(waiting)["state"] == "waiting"
    assert service.client.delete(f"/train/ewc/{waiting}").json()["state"] == "cancelled"
    # The server goes on answering while it trains.
    assert service.client.get("/health").json()["training"] == job

    wait_for(lambda: service.job(job)["losses"] and service.job(job)["losses"][-1]["step"] >= 15)
    at_kill = service.job(job)
    half = half_an_upload(service, wav(seconds=5).read_bytes())
    # Remains of an upload that was cut off later: not yet a correction.
    (data / "incoming" / "remains").mkdir()
    (data / "incoming" / "remains" / "audio.part").write_bytes(b"RIFF")
    service.kill()
    half.close()
    assert at_kill["state"] == "running"

    service = start(old=tmp_path / "old")
    page = service.client.get("/corrections?limit=1000").json()["corrections"]
    assert {c["sha256"]: c["text"] for c in page} == sent
    assert not any((data / "incoming").iterdir())
    health = service.client.get("/health").json()
    assert (health["status"], health["model"], health["training"]) == ("ok", "base", job)
    state = service.wait(job)
    assert state["attempts"] == 2
    assert [loss["step"] for loss in state["losses"]] == list(range(1, 91))
    log = (data / "work" / job / "log.txt").read_text()
    assert "Traceback" not in log

    # The full cycle: what was learned, and what is served.
    before, after = state["word_error_rate_before"], state["word_error_rate_after"]
    assert after["new"] < before["new"] - 0.15
    assert after["old"] < 0.6
    counts = state["recordings"]
    assert counts["new_for_training"] + counts["new_for_measuring"] == len(new_speech)
    assert (counts["old_for_importance"], counts["old_for_measuring"]) == (30, 15)
    assert state["model_after"] != state["model_before"] == "base"
    assert service.client.get("/health").json()["model"] == state["model_after"]
    assert {"base", state["model_after"], "current"} == {
        p.name for p in (data / "models").iterdir()
    }
    heard = service.client.post(
        "/transcribe", files={"audio": ("x.wav", new_speech[0][0].read_bytes())}
    ).json()
    assert heard["model"] == state["model_after"]

    # A training can be ended, twice as well as once, but not after its end.
    assert service.client.delete(f"/train/ewc/{job}").status_code == 409
    job = service.train(steps=100_000)
    wait_for(lambda: service.job(job)["phase"] == "learning")
    for _ in range(2):
        assert service.client.delete(f"/train/ewc/{job}").json()["state"] == "cancelled"
    assert not (data / "work" / job / "checkpoints").exists()
    assert service.client.get("/health").json()["training"] is None
    states = [row["state"] for row in service.client.get("/train/ewc").json()["trainings"]]
    assert states == ["cancelled", "cancelled", "done"]


def test_a_training_that_ends_with_its_server_in_order_has_not_failed(start, tmp_path, new_speech):
    service = start()
    for path, text in new_speech[:6]:
        service.send(path, text)
    job = service.train(steps=100_000)
    wait_for(lambda: service.job(job)["attempts"] == 1)
    service.stop()
    database = Database(tmp_path / "data" / "service.sqlite3")
    jobs = Jobs(database)
    assert jobs.get(job)["state"] == "running", "the next start takes it up"
    assert jobs.cut_off(job) == 0, "so it may be taken up as often as one likes"
    database.close()
