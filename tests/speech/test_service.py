"""The real server on a port of this machine: uploads, refusals, concurrency, tokens."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import socket
import sqlite3
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy
from waiting import run_async

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

from ewc_tutorial.speech.brake import Brake
from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.service import Service
from ewc_tutorial.speech.settings import Settings

pytestmark = pytest.mark.timeout(300)
TOKEN = "a-token-of-sixteen-or-more"
UPLOAD_TOKEN = "another-token-for-uploads"


def upload(client, content: bytes, text: str, name: str = "x.wav", **kwargs: Any):
    return client.post(
        "/upload/corrections", files={"audio": (name, content)}, data={"text": text}, **kwargs
    )


def every_correction(client) -> list[dict[str, Any]]:
    """Return all corrections, read in small pages."""
    found, after = [], 0
    while page := client.get(f"/corrections?after={after}&limit=7").json()["corrections"]:
        found += page
        after = page[-1]["seq"]
    return found


def test_a_correction_comes_back_as_it_was_sent(service, wav):
    content = wav("voice.flac", 0.5, 44_100, 2).read_bytes()
    answer = upload(service.client, content, " Old  LION\n", "voice.flac")
    assert answer.status_code == 201
    correction = answer.json()
    assert correction["text"] == "old lion"
    assert correction["sha256"] == hashlib.sha256(content).hexdigest()
    assert (correction["format"], correction["rate"]) == ("flac", 44_100)
    assert correction in every_correction(service.client)
    again = upload(service.client, content, "old lion")
    assert (again.status_code, again.json()) == (200, correction)


def test_a_correction_is_fetched_corrected_and_deleted(service, wav):
    content = wav(seconds=0.7, seed=41).read_bytes()
    sent = upload(service.client, content, "old lion").json()
    one = f"/corrections/{sent['id']}"
    assert service.client.get(one).json() == sent
    sound = service.client.get(f"{one}/audio")
    assert (sound.content, sound.headers["content-type"]) == (content, "audio/wav")
    changed = service.client.patch(one, json={"text": " Old  HILL"})
    assert changed.json() == service.client.get(one).json() == sent | {
        "text": "old hill", "sent": " Old  HILL",
    }  # fmt: skip
    for text in ("", "lion%", "l" * 400):
        assert service.client.patch(one, json={"text": text}).status_code == 422
    assert service.client.delete(one).status_code == 204
    for answer in (
        service.client.get(one), service.client.delete(one), service.client.get(f"{one}/audio"),
        service.client.patch(one, json={"text": "lion"}),
    ):  # fmt: skip
        assert answer.status_code == 404
    assert sent["id"] not in {c["id"] for c in every_correction(service.client)}
    (gone,) = service.client.get(f"/deletions?after={sent['seq'] - 1}&limit=1").json()["deletions"]
    wanted = {key: sent[key] for key in ("seq", "id", "created")}
    assert gone | wanted == gone
    assert (gone["reason"], gone["models"]) == ("request", [])


def test_the_text_may_be_a_file_and_as_people_write(service, wav):
    """As the client of the source document sends it."""
    answer = service.client.post(
        "/upload/corrections",
        files={
            "audio": ("audio_0001.wav", wav(seconds=2.0, seed=42).read_bytes()),
            "text": ("text_0001.txt", "\ufeff„Sea, sand …“ and stone!\r\n".encode()),
        },
    )
    assert answer.status_code == 201
    assert answer.json()["text"] == "sea sand and stone"
    assert answer.json()["sent"].strip() == "„Sea, sand …“ and stone!"
    service.client.delete(f"/corrections/{answer.json()['id']}")


def test_versions_are_listed_and_strangers_are_refused(service):
    (only,) = service.client.get("/models").json()["models"]
    assert (only["name"], only["served"], only["parent"]) == ("base", True, None)
    assert service.client.post("/models/base/serve").status_code == 200
    assert service.client.post("/models/nothing/serve").status_code == 404
    assert service.client.get("/models/base/diff/nothing").status_code == 404


def test_concurrent_uploads_are_all_kept_and_not_mixed_up(service, wav):
    words = ["deer", "does", "eats", "hears", "hen", "hides", "hill", "hold", "horse", "in", "is"]
    sent = {}
    for i in range(48):
        text = f"{words[i % 11]} {words[i // 11]} {words[(i * 7) % 11]}"
        content = wav(f"c{i}.wav", 0.6 + i / 100, seed=100 + i).read_bytes()
        sent[hashlib.sha256(content).hexdigest()] = (content, text)
    before = {c["id"] for c in every_correction(service.client)}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda pair: upload(service.client, *pair), sent.values()))
    assert {a.status_code for a in answers} == {201}
    new = [c for c in every_correction(service.client) if c["id"] not in before]
    assert len({c["id"] for c in new}) == len(new) == 48
    assert {c["sha256"]: c["text"] for c in new} == {h: text for h, (_, text) in sent.items()}


REFUSED = {
    "no audio": ({"data": {"text": "lion"}}, 422, "audio"),
    "no text": ({"files": {"audio": ("x.wav", b"RIFF")}}, 422, "text"),
    "a text that is no text": (
        {"files": {"audio": ("x.wav", b"RIFF"), "text": ("x.txt", b"l\xf6we")}}, 422, "UTF-8"),
    "a text of a megabyte": (
        {"files": {"audio": ("x.wav", b"RIFF"), "text": ("x.txt", b"lion " * 200_000)}},
        422, "at most 65,536"),
    "audio as a field": ({"data": {"text": "lion", "audio": "RIFF"}}, 422, "audio"),
    "one field too many": (
        {"files": {"audio": ("x.wav", b"RIFF")}, "data": {"text": "lion", "id": "7"}}, 422, "else"),
    "two recordings": (
        {"files": [("audio", ("x.wav", b"RIFF")), ("audio", ("y.wav", b"RIFF"))],
         "data": {"text": "lion"}}, 422, "once"),
    "JSON": ({"json": {"text": "lion"}}, 422, ""),
    "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, ""),
    "cut multipart": (
        {"content": b"--b\r\nContent-Disposition: form-data; na",
         "headers": {"content-type": "multipart/form-data; boundary=b"}}, 422, ""),
    "no recording": (
        {"files": {"audio": ("x.wav", b"hello")}, "data": {"text": "lion"}}, 422, "WAV or FLAC"),
    "no WAV": (
        {"files": {"audio": ("x.wav", b"RIFF\x10\0\0\0WAVEjunk")}, "data": {"text": "lion"}},
        422, "cannot be decoded"),
    "no FLAC": (
        {"files": {"audio": ("x.wav", b"fLaC" + b"\xff" * 99)}, "data": {"text": "lion"}},
        422, "cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_answered_with_a_sentence(service, kind):
    request, status, words = REFUSED[kind]
    answer = service.client.post("/upload/corrections", **request)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert words in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    "text", ["", "  ", "...", "lion%", "3. lion", "l\x00ion", "lion" * 200, "\ud800", "löwe"]
)
def test_texts_that_cannot_be_learned_are_refused(service, wav, text):
    content = wav(seconds=25).read_bytes()
    answer = upload(service.client, content, text.encode("utf-8", "surrogatepass"))
    assert answer.status_code == 422
    assert answer.json()["detail"].removeprefix("body ").startswith("text")


def test_a_text_that_is_too_long_for_its_sound_is_refused(service, wav):
    answer = upload(service.client, wav(seconds=0.2).read_bytes(), "north west island")
    assert answer.status_code == 422
    assert "too long for its recording" in answer.json()["detail"]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "a\\b.wav", "C:x.wav", "a\x01.wav", "x" * 300]
)
def test_file_names_that_are_paths_are_refused(service, wav, name):
    body = (
        b'--b\r\nContent-Disposition: form-data; name="audio"; filename="' + name.encode()
        + b'"\r\n\r\n' + wav().read_bytes()
        + b'\r\n--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nlion\r\n--b--\r\n'
    )  # fmt: skip
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = service.client.post("/upload/corrections", content=body, headers=headers)
    assert answer.status_code == 422
    assert "plain" in answer.json()["detail"]


def raw(service, head: str, chunks) -> bytes:
    """Send a request by hand and return the beginning of the answer, however much was read."""
    url = service.client.base_url
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode())
        try:
            for chunk in chunks:
                connection.sendall(chunk)
        except OSError:
            pass  # it no longer listens: just what is wanted
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(4096):
                answer += part
        return answer


HEAD = """POST /upload/corrections HTTP/1.1
Host: localhost
Content-Type: multipart/form-data; boundary=b
"""


def test_too_large_a_body_is_refused_by_its_header(service):
    answer = raw(service, HEAD + "Content-Length: 99999999999\n\n", [])
    assert b" 413 " in answer.splitlines()[0]
    assert b"must have at most" in answer


def test_too_large_a_body_is_refused_while_it_comes_in(service):
    sent = 0

    def endless():
        nonlocal sent
        part = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="x.wav"\r\n\r\nRIFF'
        yield b"%x\r\n%s\r\n" % (len(part), part)
        while sent < 200 * 2**20:
            sent += 2**16
            yield b"10000\r\n" + bytes(2**16) + b"\r\n"

    answer = raw(service, HEAD + "Transfer-Encoding: chunked\n\n", endless())
    assert b" 413 " in answer.splitlines()[0]
    assert sent < 60 * 2**20


def test_a_web_page_of_another_site_cannot_use_the_service(service, wav):
    for headers in (
        {"origin": "https://example.org"}, {"origin": "null"}, {"host": "example.org"},
        {"host": ""}, {"host": "[::1"},
    ):  # fmt: skip
        answer = upload(service.client, wav().read_bytes(), "lion", headers=headers)
        assert answer.status_code in (400, 403), headers
    own = {"origin": str(service.client.base_url).rstrip("/")}
    assert service.client.get("/corrections", headers=own).status_code == 200


def test_a_training_needs_corrections_and_its_wishes_checked(service):
    for wish in (
        {"lam": -1}, {"lam": "strong"}, {"steps": 0}, {"lambda": 3}, {"start": "../base"}, [], 7,
    ):  # fmt: skip
        answer = service.client.post("/train/ewc", json=wish)
        assert (answer.status_code, list(answer.json())) == (422, ["detail"])
    # Strings and numbers that JSON allows and Python does not.
    nan = service.client.post(
        "/train/ewc", content=b'{"lam": NaN}', headers={"content-type": "application/json"}
    )
    assert nan.status_code == 422
    assert service.client.get("/train/ewc/nothing").status_code == 404


def test_a_training_needs_earlier_speech_and_corrections_cannot_take_its_place(service, new_speech):
    for path, text in new_speech[:3]:
        service.send(path, text)
    for lam in (0, 100):
        answer = service.client.post("/train/ewc", json={"lam": lam})
        assert answer.status_code == 409
        assert "no earlier speech" in answer.json()["detail"]


def test_the_documents_describe_every_route(service):
    paths = service.client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/health", "/upload/corrections", "/upload/corrections/archive", "/deletions",
        "/corrections", "/corrections/{correction_id}",
        "/corrections/{correction_id}/audio", "/train/ewc", "/train/ewc/{job_id}", "/models",
        "/models/{name}/archive", "/models/{name}/diff/{other}", "/models/{name}/serve",
        "/transcribe", "/metrics",
    }  # fmt: skip


def test_the_page_of_the_documents_needs_no_network(service):
    page = service.client.get("/docs")
    assert page.status_code == 200
    sources = re.findall(r'(?:src|href)="(.*?)"', page.text)
    assert any(source.endswith(".js") for source in sources)
    for source in sources:
        assert source.startswith("/")
        assert service.client.get(source).status_code == 200


def test_the_health_says_which_model_is_in_use(service):
    assert service.client.get("/health").json() == {
        "status": "ok", "model": "base", "training": None, "problem": None,
    }  # fmt: skip


def test_sound_is_transcribed(service, new_speech):
    path, _ = new_speech[0]
    answer = service.client.post("/transcribe", files={"audio": ("x.wav", path.read_bytes())})
    assert answer.status_code == 200
    assert answer.json()["model"] == "base"


@pytest.fixture
def guarded(tmp_path, settings):
    """The application with a token, without a server; no lifespan, so no route gets through."""
    from fastapi.testclient import TestClient

    from ewc_tutorial.speech.app import create_app

    tokens = {"token": TOKEN, "upload_token": UPLOAD_TOKEN}
    app = create_app(Settings(data=tmp_path, **tokens, **settings))
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/upload/corrections"), ("GET", "/corrections"), ("POST", "/train/ewc"),
     ("GET", "/train/ewc/1"), ("POST", "/docs"), ("GET", "/docs/"), ("POST", "/transcribe"),
     ("GET", "/nothing"), ("GET", "/health/../corrections"), ("GET", "http://testserver//health"),
     ("GET", "/static-offline-docs/../corrections"), ("GET", "/models/base/archive")],
)  # fmt: skip
def test_with_a_token_no_route_answers_without_it(guarded, method, path, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = guarded.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_documents_need_no_token_and_ask_for_it(guarded):
    """A browser sends none with a page; the page sends it with what one tries there."""
    page = guarded.get("/docs")
    assert page.status_code == 200
    for source in re.findall(r'(?:src|href)="(.*?)"', page.text):
        assert guarded.get(source).status_code == 200
    schema = guarded.get("/openapi.json").json()
    (scheme,) = schema["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert schema["paths"]["/corrections"]["get"]["security"]
    assert "security" not in schema["paths"]["/health"]["get"]


def status(client, method, path, token):
    """Return the status of a request that the gate refuses, or None: no lifespan, no route."""
    answer = client.request(method, path, headers={"authorization": f"Bearer {token}"})
    return answer.status_code if answer.status_code in (401, 403, 429) else None


def test_the_token_for_uploads_opens_these_alone(guarded):
    for path in ("/upload/corrections", "/upload/corrections/archive"):
        assert status(guarded, "POST", path, UPLOAD_TOKEN) is None
        assert status(guarded, "GET", path, UPLOAD_TOKEN) == 403
    for method, path in (
        ("GET", "/corrections"), ("DELETE", "/corrections/x"), ("PATCH", "/corrections/x"),
        ("POST", "/train/ewc"), ("DELETE", "/train/ewc/x"), ("POST", "/models/base/serve"),
        ("GET", "/models/base/archive"), ("POST", "/transcribe"), ("GET", "/deletions"),
        ("POST", "/upload/corrections/"), ("POST", "/upload/../train/ewc"),
    ):  # fmt: skip
        assert status(guarded, method, path, UPLOAD_TOKEN) == 403, path
        assert status(guarded, method, path, TOKEN) is None, path


@pytest.mark.parametrize("end", "àÅ")
def test_a_token_may_end_in_any_letter(tmp_path, settings, end):
    """In UTF-8 they end in what Latin-1 has for a space that does not break, and for a new line."""
    from fastapi.testclient import TestClient

    from ewc_tutorial.speech.app import create_app

    token = TOKEN + end
    app = create_app(Settings(data=tmp_path, token=token, **settings))
    client = TestClient(app, raise_server_exceptions=False)
    for sent, wanted in ((token, None), (TOKEN, 401)):
        headers = {"authorization": f"Bearer {sent}  ".encode()}
        answer = client.get("/corrections", headers=headers).status_code
        assert (answer if answer == 401 else None) == wanted


def test_wrong_tokens_are_logged_and_slowed(guarded, caplog):
    """Of 262 in five seconds none was logged and none was slowed."""
    statuses = [status(guarded, "GET", "/corrections", f"guess-{i}") for i in range(262)]
    assert statuses == [401] * 5 + [429] * 257
    lines = [line for line in caplog.messages if "wrong token" in line]
    assert len(lines) == 5
    assert "testclient for GET '/corrections'" in lines[0]
    assert "guess" not in caplog.text, "a wrong token may be a right one with a slip"
    # Who guesses right by now does not learn it; others go on.
    answer = guarded.get("/corrections", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 60
    assert guarded.get("/docs").status_code == 200
    assert guarded.get("/corrections").status_code == 401
    guarded._transport.client = ("192.0.2.7", 5)
    assert status(guarded, "GET", "/corrections", TOKEN) is None


def test_a_sender_is_listened_to_again_and_ipv6_has_no_way_round():
    now = [0.0]
    brake = Brake(lambda: now[0])
    for i in range(5):
        assert brake.wait(f"2001:db8::{i}") == 0
        brake.wrong(f"2001:db8::{i}")
        now[0] += 1
    assert brake.wait("2001:db8::ffff") == 60 - 5
    assert brake.wait("2001:db8:0:1::1") == brake.wait("192.0.2.1") == 0
    now[0] = 60.0
    assert brake.wait("2001:db8::1") == 0
    brake.wrong("2001:db8::1")
    assert brake.wait("2001:db8::1") == 1, "until the second of the five is a minute old"
    for _ in range(5):
        brake.wrong("::ffff:192.0.2.1")
    assert brake.wait("::ffff:192.0.2.1") == brake.wait("192.0.2.1") == 60
    assert brake.wait("::ffff:192.0.2.2") == brake.wait("::1") == 0
    for i in range(20_000):
        brake.wrong(f"{i}")
    assert len(brake._wrong) == 10_000


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_what_others_could_read_they_cannot_after_the_next_start(tmp_path, settings, caplog):
    old = tmp_path / "somewhere" / "of_mine"
    old.mkdir(parents=True, mode=0o755)
    (old / "a.wav").touch(0o644)
    data = tmp_path / "data"
    data.mkdir()
    (data / "link").symlink_to(old)
    Database(data / "service.sqlite3")
    (data / "corrections" / "x").mkdir(parents=True)
    (data / "corrections" / "x" / "audio.wav").touch()
    for path in (data, *data.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    before = os.umask(0o077)  # as the program sets it
    try:
        for _ in range(2):
            Service(Settings(**settings | {"data": data}))._lock.close()
    finally:
        os.umask(before)
    for path in (data, *(p for p in data.rglob("*") if not p.is_symlink())):
        with contextlib.suppress(FileNotFoundError):  # SQLite takes its own two away when closed
            assert path.stat().st_mode & 0o077 == 0, path
            assert path.stat().st_mode & 0o700 == (0o700 if path.is_dir() else 0o600)
    assert (old / "a.wav").stat().st_mode & 0o777 == 0o644
    assert caplog.text.count("could be read by others") == 1


def test_what_the_server_writes_nobody_else_can_read(service, wav):
    upload(service.client, wav(seconds=0.6, seed=77).read_bytes(), "lion")
    data = service._log.parent
    assert data.stat().st_mode & 0o077 == 0
    for path in (*data.glob("service.sqlite3*"), *data.glob("corrections/*/*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_version_is_downloaded_whole(service, tmp_path):
    answer = service.client.get("/models/base/archive")
    assert answer.headers["content-type"] == "application/x-tar"
    assert len(answer.content) == int(answer.headers["content-length"])
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path, filter="data")
    stored = service._log.parent / "models" / "base"
    assert {p.name for p in (tmp_path / "base").iterdir()} == {p.name for p in stored.iterdir()}
    for path in stored.iterdir():
        assert (tmp_path / "base" / path.name).read_bytes() == path.read_bytes()
    assert Recogniser(tmp_path / "base").spelling.letters
    assert service.client.get("/models/nothing/archive").status_code == 404


@pytest.fixture(scope="module")
def inside(tmp_path_factory, settings):
    """The application in this process, so that a test can take its disk away."""
    from fastapi.testclient import TestClient

    from ewc_tutorial.speech.app import create_app
    from ewc_tutorial.speech.base import prepare

    data = tmp_path_factory.mktemp("inside")
    empty = tmp_path_factory.mktemp("no_old_speech")
    read = Settings(**settings | {"data": data, "old": empty})
    prepare(read)
    there = {"base_url": "http://localhost", "client": ("127.0.0.1", 5)}
    with TestClient(create_app(read), **there, raise_server_exceptions=False) as client:
        yield client


def test_deletions_name_the_models_that_may_have_learned_and_their_descendants(inside, wav):
    models = inside.app.state.service.models
    sent = upload(inside, wav(seconds=0.7, seed=42).read_bytes(), "old lion").json()
    one = f"/corrections/{sent['id']}"
    settled = {"9": sent["created"], "8": "9999", "7": "9999", "6": sent["created"]}
    for name, parent, last_seq in (
        ("9", "base", 0),
        ("8", "9", 0),
        ("7", "base", 0),
        ("6", "7", 1),
    ):
        known = {"parent": parent, "last_seq": sent["seq"] - last_seq, "gathered": settled[name]}
        models.add(name, lambda folder: None, known)
    assert inside.delete(one).status_code == 204
    (gone,) = inside.get(f"/deletions?after={sent['seq'] - 1}").json()["deletions"]
    for name in settled:
        shutil.rmtree(models.path(name))
    assert gone["models"] == ["9", "8"]


def of_sqlite(message):
    return sqlalchemy.exc.DBAPIError("SELECT secret", None, sqlite3.DatabaseError(message))


def of_server(message):
    return sqlalchemy.exc.OperationalError("SELECT secret", None, Exception(message))


TROUBLES = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), 507, "full"),
    "full index": (of_sqlite("database or disk is full"), 507, "full"),
    "read-only": (OSError(errno.EROFS, "Read-only file system"), 503, "Read-only"),
    "locked": (of_sqlite("database is locked"), 503, "locked"),
    "damaged": (of_sqlite("database disk image is malformed"), 503, "malformed"),
    "full server": (of_server("could not extend file: No space left on device"), 507, "full"),
    "no server": (of_server("connection to server at secret refused"), 503, "cannot reach"),
    "no connection": (sqlalchemy.exc.TimeoutError("secret"), 503, "cannot reach"),
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_trouble_with_the_disk_is_a_sentence_and_hearing_goes_on(inside, wav, monkeypatch, kind):
    from ewc_tutorial.speech.database import Database

    error, status, words = TROUBLES[kind]
    content = wav(seconds=0.7, seed=91).read_bytes()

    def broken(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Database, "connection", broken)
        for answer in (
            upload(inside, content, "lion"), inside.get("/corrections"), inside.get("/train/ewc"),
            inside.post("/train/ewc"), inside.delete("/train/ewc/x"),
        ):  # fmt: skip
            assert (answer.status_code, list(answer.json())) == (status, ["detail"])
            assert words in answer.json()["detail"]
            assert "secret" not in answer.json()["detail"]
            assert answer.headers["retry-after"]
        health = inside.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert words in health.json()["problem"]
        assert inside.post("/transcribe", files={"audio": ("x.wav", content)}).status_code == 200
        assert inside.get("/models").status_code == 200
    assert inside.get("/health").json()["status"] == "ok"
    service = inside.app.state.service
    assert not any((service.settings.data / "incoming").iterdir())
    assert not any((service.settings.data / "corrections").iterdir())


def test_a_recording_that_is_deleted_while_it_is_asked_for_is_gone(inside, wav, monkeypatch):
    sent = upload(inside, wav(seconds=0.7, seed=92).read_bytes(), "lion").json()
    one = f"/corrections/{sent['id']}"
    corrections = inside.app.state.service.corrections
    real = corrections.index.get(sent["id"])
    assert inside.get(f"{one}/audio", headers={"range": "bytes=0-3"}).content == b"RIFF"
    path = corrections.original(real)

    class Seen(type(path)):
        def exists(self):
            return True

    def deleted(*_):
        inside.delete(one)
        return Seen(path)

    with monkeypatch.context() as patch:
        patch.setattr(corrections, "original", deleted)
        answer = inside.get(f"{one}/audio")
    assert (answer.status_code, answer.json()["detail"]) == (
        404, "The recording of this correction is gone.",
    )  # fmt: skip


def test_a_recording_that_is_deleted_before_it_is_opened_sends_nothing(tmp_path, monkeypatch):
    from ewc_tutorial.speech.routes.corrections import _Recording

    path, sent = tmp_path / "x.wav", []
    path.write_bytes(b"RIFF")
    answer = _Recording(path)
    monkeypatch.setattr(answer, "set_stat_headers", lambda _: path.unlink())

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": [], "asgi": {"spec_version": "2.4"}}
    with pytest.raises(RefusedError, match="gone"):
        run_async(answer(scope, None, send))
    assert sent == []


def test_a_training_that_cannot_be_started_or_noted_blocks_no_other(
    inside, new_speech, monkeypatch, start_trainings_by
):
    service = inside.app.state.service
    importance = service.models.path("base") / "importance.pt"
    importance.write_bytes(b"")  # lets a training without earlier speech begin
    for path, text in new_speech[:12]:  # whatever numbers they get, some are to learn from
        assert upload(inside, path.read_bytes(), text).status_code == 201

    def no_process(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    start_trainings_by(no_process)
    with monkeypatch.context() as patch:
        # The disk is so full that not even the failure can be noted.
        patch.setattr(service.jobs, "fail", no_process)
        assert inside.post("/train/ewc").status_code == 507
    assert inside.get("/health").json()["training"] is not None
    assert inside.post("/train/ewc").status_code == 507, "and not 409"
    assert inside.get("/health").json()["training"] is None
    trainings = inside.get("/train/ewc").json()["trainings"]
    assert [row["state"] for row in trainings] == ["failed", "failed"]
    importance.unlink()
    for correction in every_correction(inside):
        inside.delete(f"/corrections/{correction['id']}")


def test_without_a_token_other_machines_get_nothing(tmp_path, settings):
    from fastapi.testclient import TestClient

    from ewc_tutorial.speech.app import create_app

    app = create_app(Settings(data=tmp_path, **settings))
    for client, status in ((("192.168.1.7", 5), 403), (("127.0.0.1", 5), 200)):
        there = TestClient(app, "http://localhost", client=client, raise_server_exceptions=False)
        assert there.get("/openapi.json").status_code == status
