"""The first start, and the first requests as the documentation prints them."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

from fastapi.testclient import TestClient

from ewc_tutorial.speech import base
from ewc_tutorial.speech.app import create_app
from ewc_tutorial.speech.client import RunningService
from ewc_tutorial.speech.errors import UnusableModelError
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.settings import GERMAN, TINY, Settings
from ewc_tutorial.speech.versions import Versions

pytestmark = pytest.mark.timeout(600)
ADDRESS = "http://127.0.0.1:8017"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "speech.md"


def test_two_first_starts_at_once_and_then_the_requests_of_the_page(tmp_path):
    """One of the two starts; the other says why it does not, before it trains anything."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (tmp_path / "speech_data").mkdir()

    def start(_):
        try:
            return RunningService(data=tmp_path / "speech_data", model=TINY, threads=1)
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        started = list(pool.map(start, range(2)))
    (service,) = (one for one in started if isinstance(one, RunningService))
    (sentence,) = (one for one in started if isinstance(one, str))
    try:
        assert "Another speech service is already working on the folder" in sentence
        assert service.log().count("Training the small model") == 1
        assert "Traceback" not in service.log()
        blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
        (block,) = (block for block in blocks if "importing speech_data" in block)
        answers = []
        for line in block.splitlines():
            address = str(service.client.base_url).rstrip("/")
            assert ("curl" in line) == (ADDRESS in line)
            command = line.replace(ADDRESS, address).replace(".venv/bin/python", sys.executable)
            if "curl" not in line:
                command += f" --to {address}"  # the port is another one here
            command = command.replace(
                "curl", "curl --silent --noproxy '*' --write-out '\n%{http_code}'", 1
            )
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
                env=os.environ | {"PYTHONPATH": str(PAGE.parents[1])},
            )
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            answers.append(done.stdout)
        assert answers[0] == "20 new, 0 there already, 0 refused.\n"
        bodies, statuses = zip(*(answer.rsplit("\n", 1) for answer in answers[1:]), strict=True)
        assert statuses == ("200", "200", "200", "202", "200", "200", "200")
        assert json.loads(bodies[0])["seq"] == 1, "the text is what the example says"
        assert json.loads(bodies[2])["total"] == 20
        (job,) = json.loads(bodies[4])["trainings"]
        service.client.delete(f"/train/ewc/{job['id']}")
    finally:
        service.stop()


@pytest.fixture
def hub(tiny_model, monkeypatch):
    """A hub that can be cut off; what it has under the German name is the small model."""
    state = {"there": True}

    def recogniser(source):
        if source == GERMAN:
            if not state["there"]:
                raise UnusableModelError("The hub cannot be reached.")
            source = tiny_model
        return Recogniser(source)

    monkeypatch.setattr(base, "Recogniser", recogniser)
    monkeypatch.setattr(base, "train_tiny", lambda **_: Recogniser(tiny_model))
    return state


@pytest.mark.parametrize(("asked", "given"), [(0, 2), (1, 1), (3, 3)])
def test_the_first_training_has_the_threads_that_are_asked_for(
    monkeypatch, tiny_model, tmp_path, asked, given
):
    seen = []

    def train(**_):
        seen.append(torch.get_num_threads())
        return Recogniser(tiny_model)

    monkeypatch.setattr(base, "train_tiny", train)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        base.prepare(Settings(data=tmp_path, model=TINY, threads=asked, _env_file=None))
        assert torch.get_num_threads() == 2, "of a server that hears more than it trains"
    finally:
        torch.set_num_threads(before)
    assert seen == [given]


def source_of(settings):
    return Versions(settings.data / "models").about("base")["source"]


def test_the_small_model_stands_in_only_until_the_hub_is_there(hub, tmp_path, caplog):
    settings = Settings(data=tmp_path, old=tmp_path.parent / "no_old", _env_file=None)
    hub["there"] = False
    for _ in range(2):
        caplog.clear()
        base.prepare(settings)
        assert source_of(settings) == TINY
        assert "stands in" in caplog.text
    models = Versions(tmp_path / "models")
    models.add("0001-abc", Recogniser(models.path("base")).save, {"job": "abc", "parent": "base"})
    models.switch("0001-abc")
    with TestClient(create_app(settings), "http://localhost", client=("127.0.0.1", 5)) as client:
        health = client.get("/health").json()
    assert health["status"] == "degraded"
    assert GERMAN in health["problem"]

    hub["there"] = True
    caplog.clear()
    base.prepare(settings)
    assert source_of(settings) == GERMAN
    assert (models.names(), models.current()) == (["base"], "base")
    assert "0001-abc" in caplog.text
    assert base.stand_in(models) is None
    # From now on the hub is not asked.
    hub["there"] = False
    caplog.clear()
    base.prepare(settings)
    assert caplog.text == ""


def test_a_model_that_is_not_used_is_named(hub, tmp_path, caplog):
    base.prepare(Settings(data=tmp_path, old=tmp_path.parent / "no_old", model=TINY))
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        base.prepare(Settings(data=tmp_path, old=tmp_path.parent / "no_old", model="/nothing/here"))
    assert "EWC_SPEECH_MODEL is '/nothing/here', but" in caplog.text
    assert source_of(Settings(data=tmp_path)) == TINY


def test_pages_that_are_named_may_use_the_service_and_others_may_not(tmp_path, settings):
    """A browser asks beforehand, without the token."""
    page, token = "https://speech.example.org", "a-token-of-sixteen-or-more"
    for secret in (None, token):
        app = create_app(
            Settings(
                **settings | {"data": tmp_path, "origins": f"{page}, http://x.y/", "token": secret}
            )
        )
        client = TestClient(app, "http://localhost", client=("127.0.0.1", 5))
        asked = {"origin": page, "access-control-request-method": "POST",
                 "access-control-request-headers": "authorization"}  # fmt: skip
        before = client.options("/upload/corrections", headers=asked)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == page
        answer = client.get(
            "/openapi.json", headers={"origin": page, "authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == page
        other = client.options(
            "/upload/corrections", headers=asked | {"origin": "https://evil.org"}
        )
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers
        strange = client.get("/openapi.json", headers={"origin": "https://evil.org"})
        assert "access-control-allow-origin" not in strange.headers
        if secret is None:
            assert strange.status_code == 403


@pytest.mark.parametrize(
    "origins", ["*", "example.org", "https://a.b/path", "https://a.b http://c"]
)
def test_origins_must_be_origins(origins):
    with pytest.raises(ValueError, match="ORIGINS must be addresses"):
        Settings(origins=origins)
