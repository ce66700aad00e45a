"""Upload, train, serve, go back, forget the old recordings: in one process, by requests."""

from __future__ import annotations

import os
import shutil

import pytest

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

from fastapi.testclient import TestClient

from ewc_tutorial.speech.app import create_app
from ewc_tutorial.speech.base import prepare
from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.errors import NotLearnedError
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.runner import Runner
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.worker import Training

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def client(tmp_path, settings, old_speech, monkeypatch):
    """The application, whose trainings are done before their request is answered."""
    shutil.copytree(old_speech, tmp_path / "old")
    read = Settings(**settings | {"data": tmp_path / "data", "old": tmp_path / "old"})

    def at_once(self, job):
        database = Database(read.data / "service.sqlite3")
        try:
            Training(job, read, database).run()
        except NotLearnedError as error:
            Jobs(database).fail(job, str(error))

    monkeypatch.setattr(Runner, "_start", at_once)
    read.data.mkdir()
    prepare(read)
    app = create_app(read)
    with TestClient(app, "http://localhost", client=("127.0.0.1", 5)) as client:
        yield client


def trained(client, **wish):
    return client.get(f"/train/ewc/{client.post('/train/ewc', json=wish).json()['id']}").json()


def test_a_full_cycle(client, tmp_path, new_speech):
    def health():
        return client.get("/health").json()

    for path, text in new_speech[:20]:
        answer = client.post(
            "/upload/corrections", files={"audio": ("x.wav", path.read_bytes())},
            data={"text": text},
        )  # fmt: skip
        assert answer.status_code == 201

    first = trained(client)
    before, after = first["word_error_rate_before"], first["word_error_rate_after"]
    assert (first["state"], first["error"]) == ("done", None)
    assert after["new"] < before["new"]
    assert health()["model"] == first["model_after"]
    assert first["fraction"] == first["path"][0]["fraction"] == 1.0
    assert first["path"][0]["cost"] >= 100 * (after["old"] - before["old"])
    assert first["recordings"] == {
        "old_for_importance": 30, "old_for_measuring": 15, "new_for_training": 16,
        "new_for_measuring": 4, "left_out": 0,
    }  # fmt: skip

    # Backwards and forwards by a request.
    for name in ("base", first["model_after"]):
        assert client.post(f"/models/{name}/serve").json()["served"]
        assert health()["model"] == name
    newest, oldest = client.get("/models").json()["models"]
    assert (newest["name"], newest["parent"], oldest["name"]) == (
        first["model_after"], "base", "base",
    )  # fmt: skip
    assert newest["word_error_rate_after"] == after
    assert newest["importance"] is oldest["importance"] is True
    difference = client.get(f"/models/base/diff/{newest['name']}").json()
    assert difference["corrections"] == list(range(1, 21))
    assert difference["settings"]["steps"] == [None, 60]

    # A damaged file is left out by name, and what is no better is not served.
    (tmp_path / "old" / "a.wav").write_bytes(b"no recording")
    (tmp_path / "old" / "a.txt").write_text("lion")
    second = trained(client, start="served", steps=2, learning_rate=1e-9)
    assert second["state"] == "rejected"
    assert second["error"].startswith("Nothing is served. ")
    assert second["model_before"] == newest["name"]
    assert [line.split(":")[0] for line in second["left_out"]] == [
        "8 of 16 corrections are not read", "old/a.wav",
    ]  # fmt: skip
    assert health()["model"] == newest["name"]

    # The recordings are deleted; their importance is not.
    shutil.rmtree(tmp_path / "old")
    third = trained(client, steps=2)
    assert third["state"] == "done"
    assert third["recordings"]["old_for_importance"] == 0
    assert "not served" in third["outcome"]
    assert any("none is mixed in" in line for line in third["left_out"])
    assert third["word_error_rate_after"]["old"] is None
    assert health()["model"] == newest["name"]
    assert client.post(f"/models/{third['model_after']}/serve").status_code == 200
    states = [row["state"] for row in client.get("/train/ewc").json()["trainings"]]
    assert states == ["done", "rejected", "done"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_the_program_makes_files_for_its_user_alone(tmp_path, settings, monkeypatch):
    from ewc_tutorial.speech import __main__ as program

    class StartedError(Exception):
        pass

    def start(self):
        raise StartedError

    monkeypatch.setattr(program.Service, "start", start)
    monkeypatch.setattr(
        program, "read_settings",
        lambda: Settings(**settings | {"data": tmp_path / "data", "port": 0}),
    )  # fmt: skip
    mask = os.umask(0o022)
    try:
        with pytest.raises(StartedError):
            program.main()
    finally:
        os.umask(mask)
    made = [tmp_path / "data", *(tmp_path / "data").rglob("*")]
    assert len(made) > 5
    assert all(path.stat().st_mode & 0o077 == 0 for path in made)
