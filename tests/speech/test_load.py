"""A crowd: slow transcriptions, idle connections, lines of the log, a disk that is full."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import forked
import httpx
import pytest
from waiting import run_async

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

from fastapi.testclient import TestClient

from ewc_tutorial.speech import gate, server
from ewc_tutorial.speech.app import create_app
from ewc_tutorial.speech.base import prepare
from ewc_tutorial.speech.logs import NoFlood
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.routes import hearing
from ewc_tutorial.speech.serving import MAX_WAITING
from ewc_tutorial.speech.settings import Settings

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def application(tmp_path, settings):
    """Starts the application in this process, on the test's own folder."""
    read = Settings(**settings | {"data": tmp_path / "data", "old": tmp_path / "none"})
    prepare(read)

    def application():
        there = {"base_url": "http://localhost", "client": ("127.0.0.1", 5)}
        return TestClient(create_app(read), **there, raise_server_exceptions=False)

    return application


@pytest.fixture
def inside(application):
    with application() as client:
        yield client


def send(client, content, text="lion"):
    return client.post(
        "/upload/corrections", files={"audio": ("x.wav", content)}, data={"text": text}
    )


def test_uploads_and_health_do_not_wait_for_slow_transcriptions(inside, wav, monkeypatch):
    """45 of them delayed an upload by three minutes and /health by half a one."""
    go_on, begun = threading.Event(), threading.Event()

    def slow(*_):
        begun.set()
        assert go_on.wait(60)
        return [""]

    monkeypatch.setattr(Recogniser, "transcribe", slow)
    content = wav(seconds=0.5).read_bytes()
    with ThreadPoolExecutor(45) as pool:
        asked = [
            pool.submit(inside.post, "/transcribe", files={"audio": ("x.wav", content)})
            for _ in range(45)
        ]
        assert begun.wait(60)
        try:
            while sum(one.done() for one in asked) < 45 - (MAX_WAITING + 1):
                time.sleep(0.01)
            began = time.monotonic()
            assert inside.get("/health").status_code == 200
            for i in range(5):
                answer = send(inside, wav(seconds=0.5, seed=i).read_bytes())
                assert answer.status_code == 201
            assert inside.get("/corrections").json()["total"] == 5
            assert time.monotonic() - began < 10, "they did not wait for the one under way"
            refused = [one.result() for one in asked if one.done()]
            assert {answer.status_code for answer in refused} == {503}
            assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
        finally:
            go_on.set()
        statuses = [one.result().status_code for one in asked]
    assert statuses.count(200) == MAX_WAITING + 1


def test_health_answers_while_the_index_does_not(inside, monkeypatch):
    monkeypatch.setattr(hearing, "HEALTH_SECONDS", 0.3)
    held = threading.Event()
    service = inside.app.state.service
    monkeypatch.setattr(service.jobs, "unfinished", lambda: held.wait(60))
    try:
        for _ in range(6):  # more than it has threads
            health = inside.get("/health").json()
            assert (health["status"], health["model"]) == ("degraded", "base")
            assert "has not answered" in health["problem"]
    finally:
        held.set()


def test_too_many_requests_at_once_are_told_to_come_again(inside, monkeypatch):
    monkeypatch.setattr(gate, "MAX_REQUESTS", 0)
    answer = inside.get("/corrections")
    assert (answer.status_code, list(answer.json())) == (503, ["detail"])
    assert answer.headers["retry-after"]
    assert inside.get("/health").status_code == 200


def test_a_sender_who_stops_in_a_body_is_let_go(service, monkeypatch):
    """In the real server; the pause is too long for a test, so this one asks for less of it."""
    import asyncio

    monkeypatch.setattr(gate, "BODY_SECONDS", 0.05)

    async def nothing():
        await asyncio.sleep(60)

    with pytest.raises(Exception, match="408"):
        run_async(gate._counted(nothing, 100)())


@contextmanager
def idle_connections(address, n):
    with ExitStack() as stack:
        for _ in range(n):
            stack.enter_context(socket.create_connection(address, timeout=10))
        yield


FEW_DESCRIPTORS = """
import resource
from ewc_tutorial.speech import __main__
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
__main__.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_idle_connections_keep_nobody_out_and_fill_no_log(settings, tmp_path):
    """1,800 of them stopped a server with 1,024 descriptors and wrote 700,000 lines in 10 s."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EWC_SPEECH_")}
    environment |= {
        f"EWC_SPEECH_{key.upper()}": str(value)
        for key, value in (settings | {"data": tmp_path / "data", "port": 0}).items()
    }
    with open(tmp_path / "log", "wb") as log:
        process = forked.popen(
            [sys.executable, "-c", FEW_DESCRIPTORS], "ewc_tutorial.speech",
            env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        url = httpx.URL(process.stdout.readline().split()[-1].removesuffix("/docs"))
        with httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
            for _ in range(200):  # it says its address a moment before it listens
                with contextlib.suppress(httpx.ConnectError):
                    assert client.get("/health").status_code == 200
                    break
                time.sleep(0.1)
            with idle_connections((url.host, url.port), 1800):
                for _ in range(3):
                    with httpx.Client(base_url=url, trust_env=False, timeout=20) as other:
                        assert other.get("/health").status_code == 200
                        assert other.get("/corrections").status_code == 200
        assert (tmp_path / "log").stat().st_size < 5_000, (tmp_path / "log").read_text()[:2000]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture
def address(monkeypatch, request):
    """Of a server with room for five and so many seconds of patience, in a thread."""
    import uvicorn

    monkeypatch.setattr(server, "PATIENCE_SECONDS", request.param)

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=server.protocol(5),
        lifespan="off",
        log_config=None,
        timeout_keep_alive=request.param,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield listening.getsockname()
    running.should_exit = True
    thread.join(20)


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("address", [0.5], indirect=True)
@pytest.mark.parametrize("start", [b"", b"GET", REQUEST[:-2], REQUEST + b"GET"])
def test_who_sends_half_a_request_is_closed(address, start):
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(start)
        began = time.monotonic()
        received = b""
        while part := connection.recv(4096):
            received += part
        assert 0.3 < time.monotonic() - began < 10
        assert received.count(b" 204 ") == start.count(REQUEST)


@pytest.mark.parametrize("address", [2.0], indirect=True)
def test_a_connection_that_is_used_again_and_again_stays(address):
    with socket.create_connection(address, timeout=20) as connection:
        for _ in range(6):
            connection.sendall(REQUEST)
            assert b" 204 " in connection.recv(4096)
            time.sleep(0.5)


@pytest.mark.parametrize("address", [60.0], indirect=True)
def test_of_too_many_connections_the_one_that_waited_longest_goes(address):
    with ExitStack() as stack:
        many = [
            stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(5)
        ]
        for connection in (*many, many[0]):
            connection.sendall(REQUEST)
            assert b" 204 " in connection.recv(4096)
        newest = stack.enter_context(socket.create_connection(address, timeout=20))
        newest.sendall(REQUEST)
        assert b" 204 " in newest.recv(4096)
        # The second one has waited longest: the first has just had an answer.
        assert many[1].recv(1) == b""
        many[0].sendall(REQUEST)
        assert b" 204 " in many[0].recv(4096)


def test_lines_of_one_kind_cannot_flood_the_log():
    now = [0.0]
    flood = NoFlood(lambda: now[0])

    def lines(line, n):
        records = [logging.LogRecord("x", logging.ERROR, "x.py", line, "no %s", ("x",), None)
                   for _ in range(n)]  # fmt: skip
        return [record.getMessage() for record in records if flood.filter(record)]

    assert len(lines(1, 10_000)) == 20
    assert len(lines(2, 5)) == 5, "another kind"
    now[0] = 60.0
    assert lines(1, 2) == ["no x (and 9980 more lines like this before)", "no x"]
    now[0] = 120.0
    assert lines(1, 1) == ["no x"]
    usual = logging.LogRecord("x", logging.INFO, "x.py", 1, "request", (), None)
    assert all(flood.filter(usual) for _ in range(1000))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_a_sentence_and_is_over_when_there_is_room(small_disk, start, wav, tmp_path):
    service = start(data=small_disk / "data", old=tmp_path / "none")
    assert send(service.client, wav(seconds=1, seed=1).read_bytes()).status_code == 201
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    answer = send(service.client, wav(seconds=1, seed=2).read_bytes())
    assert (answer.status_code, list(answer.json())) == (507, ["detail"])
    health = service.client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert "full" in health.json()["problem"]
    assert service.client.get("/corrections").json()["total"] == 1, "reading goes on"
    filler.unlink()
    assert service.client.get("/health").json()["status"] == "ok"
    assert send(service.client, wav(seconds=1, seed=2).read_bytes()).status_code == 201
    assert "Traceback" not in service.log()


def test_a_damaged_index_is_made_again_at_the_start(application, wav, tmp_path, caplog):
    with application() as client:
        wanted = [send(client, wav(seconds=1, seed=i).read_bytes()).json() for i in range(3)]
    index = tmp_path / "data" / "service.sqlite3"
    for damage in (b"no database at all", index.read_bytes()[:4096] + b"\xff" * 9000):
        for rest in index.parent.glob("service.sqlite3-*"):
            rest.unlink()
        index.write_bytes(damage)
        caplog.clear()
        with application() as client:
            assert client.get("/corrections").json()["corrections"] == wanted
        assert "The index is damaged" in caplog.text
        assert "Traceback" not in caplog.text
        assert any(p.read_bytes() == damage for p in index.parent.glob("*.damaged-*"))
