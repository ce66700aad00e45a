"""What those see who watch over the service: numbers, log lines."""

from __future__ import annotations

import io
import json
import logging

import pytest

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from ewc_tutorial.speech import logs
from ewc_tutorial.speech.app import create_app
from ewc_tutorial.speech.base import prepare
from ewc_tutorial.speech.settings import Settings

pytestmark = pytest.mark.timeout(300)
TOKEN = "a-token-of-sixteen-or-more"


@pytest.fixture
def client(tmp_path, settings):
    read = Settings(
        **settings
        | {"data": tmp_path / "d", "old": tmp_path / "none", "token": TOKEN, "log_format": "json"}
    )
    prepare(read)
    with TestClient(create_app(read), raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {TOKEN}"
        yield client


def numbers(client):
    """Return name and labels → value, as Prometheus' own parser reads them."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_prometheus_reads_what_is_asked_and_how_the_service_does(client, wav):
    content = wav(seconds=0.5).read_bytes()
    for _ in range(2):
        client.post(
            "/upload/corrections", files={"audio": ("x.wav", content)}, data={"text": "lion"}
        )
    client.get("/corrections/nothing")
    client.get("/no/such/route")
    client.request("BREW", "/health")
    client.get("/corrections", headers={"authorization": "Bearer wrong-token-of-sixteen"})
    client.post("/train/ewc")
    jobs = client.app.state.service.jobs
    jobs.fail(jobs.create({}, 1, "base"), "no")
    found = numbers(client)
    total = "ewc_speech_requests_total"
    assert found[total, "/upload/corrections", "201", "POST"] == 1
    assert found[total, "/upload/corrections", "200", "POST"] == 1
    assert found[total, "/corrections/{correction_id}", "404", "GET"] == 1
    assert found[total, "", "404", "GET"] == 1, "what was asked is no label"
    assert found[total, "", "401", "GET"] == 1
    assert found[total, "/train/ewc", "409", "POST"] == 1
    assert not any("BREW" in key or "nothing" in "".join(key) for key in found)
    assert found["ewc_speech_request_seconds_count", "/upload/corrections"] == 2
    assert found["ewc_speech_corrections",] == 1
    assert found["ewc_speech_trainings", "failed"] == 1
    assert found["ewc_speech_training_progress",] == 0
    assert found["ewc_speech_transcriptions",] == 0
    assert found["ewc_speech_model", "base"] == 1
    assert found["ewc_speech_disk_free_bytes",] > 0
    assert client.get("/metrics", headers={"authorization": ""}).status_code == 401


def test_the_rates_of_the_version_in_use_are_numbers(client):
    service = client.app.state.service
    about = {"after": {"old": 0.125, "new": 0.5}, "job": "x", "parent": "base"}
    service.models.add("0001-x", service.recogniser.save, about)
    client.post("/models/0001-x/serve")
    found = numbers(client)
    assert found["ewc_speech_word_error_rate", "old"] == 0.125
    assert found["ewc_speech_word_error_rate", "new"] == 0.5
    assert found["ewc_speech_model", "0001-x"] == 1


def test_each_request_is_a_line_of_json_if_that_is_wanted(client, caplog):
    with caplog.at_level(logging.INFO):
        client.get("/corrections?limit=1")
    (record,) = (r for r in caplog.records if r.name.endswith("metrics"))
    assert (record.method, record.path, record.status) == ("GET", "/corrections", 200)
    assert record.seconds >= 0


@pytest.fixture
def set_up():
    """Sets the log up, to be read; puts back what was there."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def set_up(kind):
        logs.set_up(kind)
        (handler,) = root.handlers
        handler.setStream(io.StringIO())
        return handler.stream

    yield set_up
    root.handlers[:], root.level = before


def test_lines_of_json_can_be_read_one_by_one(set_up):
    stream = set_up("json")
    logging.getLogger("a.b").warning("Training %s\nfailed: “%s”", 7, "no", extra={"job": "x"})
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("a").exception("It")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first | {"time": ""} == {
        "time": "", "level": "WARNING", "logger": "a.b", "message": "Training 7\nfailed: “no”",
        "job": "x",
    }  # fmt: skip
    assert "two\nlines" in second["exc_info"]


def test_lines_of_text_are_as_they_were(set_up):
    stream = set_up("text")
    logging.getLogger("a").warning("Hello")
    logging.getLogger("httpx").info("nothing of this")
    assert stream.getvalue() == "WARNING: Hello\n"
