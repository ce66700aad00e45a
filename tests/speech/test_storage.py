"""Corrections that are kept in a storage for objects: here one of fsspec's that can fail."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

pytest.importorskip("soundfile", reason="the group 'speech' is not installed")

from fastapi.testclient import TestClient

from ewc_tutorial import files
from ewc_tutorial.speech import objects
from ewc_tutorial.speech.app import create_app
from ewc_tutorial.speech.base import prepare
from ewc_tutorial.speech.corrections import Corrections
from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.disk import disk_problem
from ewc_tutorial.speech.errors import StorageError, UnusableStorageError
from ewc_tutorial.speech.folders import text_of
from ewc_tutorial.speech.recovery import recover
from ewc_tutorial.speech.settings import Settings


class PowerCutError(BaseException):
    pass


class Bucket(MemoryFileSystem):
    """Objects in memory; every call that changes them counts, and fails when ``cut`` is reached."""

    protocol = "bucket"
    store: dict = {}  # noqa: RUF012 (as in its parent: one for all instances)
    pseudo_dirs = [""]  # noqa: RUF012
    calls, cut, error = 0, None, PowerCutError

    def _changes(self):
        Bucket.calls += 1
        if Bucket.cut is not None and Bucket.calls > Bucket.cut:
            raise Bucket.error("a password")

    def put_file(self, *args, **kwargs):
        self._changes()
        super().put_file(*args, **kwargs)

    def rm_file(self, path):
        self._changes()
        super().rm_file(path)

    def rm(self, path, recursive=False, maxdepth=None):
        for each in self.find(path):  # one after another, as others would
            self.rm_file(each)

    def info(self, path, **kwargs):
        if Bucket.error is not PowerCutError and Bucket.cut == 0:
            raise Bucket.error("a password")
        return super().info(path, **kwargs)


fsspec.register_implementation("bucket", Bucket, clobber=True)


@pytest.fixture(params=["bucket", "file"])
def url(request, tmp_path):
    """Two storages: one that is empty, and a folder elsewhere that is not there yet."""
    Bucket.store.clear()
    Bucket.calls, Bucket.cut, Bucket.error = 0, None, PowerCutError
    yield "bucket://b/speech/" if request.param == "bucket" else f"file://{tmp_path}/far/away"
    Bucket.store.clear()
    Bucket.cut = None


def opened(folder, url):
    """Return the corrections of a machine whose own folder and index are in ``folder``."""
    folder.mkdir(exist_ok=True)
    return Corrections(folder, Database(folder / "service.sqlite3"), 10**6, 30.0, url)


def stored(url):
    """Return name → file → content of what is in the storage, without the code under test."""
    fs, root = fsspec.url_to_fs(url)
    found = {}
    for path in fs.find(root.rstrip("/") + "/corrections"):
        *_, name, file = path.split("/")
        found.setdefault(name, {})[file] = fs.cat_file(path)
    return found


def contents(url):
    """Return id → (hash of the recording, text) of the objects alone."""
    return {
        name: (hashlib.sha256(files["audio.wav"]).hexdigest(), files["text.txt"].decode())
        for name, files in stored(url).items()
    }


def index(kept):
    return {c.id: (c.sha256, c.sent) for c in kept.index.page(limit=1000)}


def sounds(wav, n):
    return [wav(f"{i}.wav", 0.2, seed=i).read_bytes() for i in range(n)]


def test_uploads_are_in_the_storage_and_nowhere_else(tmp_path, wav, url):
    kept = opened(tmp_path / "d", url)
    kept.storage.check()
    assert stored(url) == {}
    data = sounds(wav, 12)
    threads = [
        threading.Thread(target=kept.add, args=(io.BytesIO(data[i]), f"text {i}"))
        for i in (*range(12), *range(4))  # four are sent twice at once
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = {(hashlib.sha256(s).hexdigest(), f"text {i}") for i, s in enumerate(data)}
    assert set(index(kept).values()) == wanted
    assert index(kept) == contents(url)
    assert not any(kept.incoming.iterdir())
    assert not any(kept.folder.iterdir())
    again, new = kept.add(io.BytesIO(data[3]), "text 3")
    assert not new
    # Its objects are gone: it is kept anew, under its number.
    kept.storage.delete(again.id)
    assert kept.add(io.BytesIO(data[3]), "text 3") == (again, True)
    kept.change_text(again, "other", "Other!")
    assert contents(url)[again.id] == index(kept)[again.id] == (again.sha256, "Other!")
    kept.remove(again)
    assert again.id not in stored(url)
    assert index(kept) == contents(url)


def test_an_index_is_made_again_from_the_listing(tmp_path, wav, url):
    kept = opened(tmp_path / "d", url)
    for i, sound in enumerate(sounds(wav, 7)):
        kept.add(io.BytesIO(sound), f"text {i}", sent=f"{i}!")
    kept.remove(kept.index.page()[2])
    before, split = kept.index.page(), [c.seq for c in kept.parts(99, 3)[1]]
    assert split == [2, 5]
    again = opened(tmp_path / "another machine", url)
    recover(again, lambda sent: f"text {sent[:-1]}")
    assert again.index.page() == before
    assert [c.seq for c in again.parts(99, 3)[1]] == split
    assert not any(again.incoming.iterdir())
    # The text in the storage is the truth.
    again.storage.write(before[0].id, "text.txt", b"9!")
    recover(again, lambda sent: f"text {sent[:-1]}")
    assert (again.index.page()[0].sent, again.index.page()[0].text) == ("9!", "text 9")


def test_another_machine_reads_checked_copies_of_what_is_not_deleted(tmp_path, wav, url):
    kept = opened(tmp_path / "d", url)
    for i, sound in enumerate(sounds(wav, 5)):
        kept.add(io.BytesIO(sound), f"text {i}")
    away = Corrections(
        tmp_path / "w", Database(tmp_path / "d" / "service.sqlite3"), 10**6, 30.0, url
    )
    rows = kept.index.page()
    for part, there in zip(away.split(99, 4), away.parts(99, 4), strict=True):
        assert [(p.read_bytes(), text_of(p)) for p in part] == [
            (stored(url)[c.id]["audio.wav"], c.text) for c in there
        ]
        assert all(tmp_path / "w" in p.parents for p in part)
    # A copy that was damaged is fetched anew; what is damaged in the storage is not given out.
    copy = away.path(rows[0])
    copy.write_bytes(copy.read_bytes()[:-1] + b"\0")
    assert away.path(rows[0]).read_bytes() == stored(url)[rows[0].id]["audio.wav"]
    kept.change_text(rows[0], "new")
    assert text_of(away.path(away.index.get(rows[0].id))) == "new"
    kept.storage.write(rows[1].id, "audio.wav", sounds(wav, 9)[8])
    shutil.rmtree(away.folder / rows[1].id)
    assert not away.path(rows[1]).exists()
    # What has been deleted does not stay in the copies.
    kept.remove(rows[0])
    away.storage.forget(away.index.ids)
    assert {p.name for p in away.folder.iterdir()} == {c.id for c in rows[1:]}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the files that are open")
@pytest.mark.parametrize("url", ["bucket"], indirect=True)
def test_a_file_is_closed_before_it_is_put_there(tmp_path, url, monkeypatch):
    """Windows opens no file for reading that is open for writing."""
    kept, seen = opened(tmp_path / "d", url), []

    def put_file(_, source, __):
        links = Path("/proc/self/fd").iterdir()
        seen.append((source, [os.readlink(link) for link in links if link.exists()]))

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put_file", put_file)
        kept.storage.write("f" * 32, "text.txt", b"hello")
    ((source, still_open),) = seen
    assert source not in still_open
    assert not any(kept.incoming.iterdir())


@pytest.mark.parametrize("url", ["bucket"], indirect=True)
def test_two_may_read_one_recording_first_at_the_same_time(tmp_path, wav, url, monkeypatch):
    kept = opened(tmp_path / "d", url)
    first, _ = kept.add(io.BytesIO(wav().read_bytes()), "hello")
    both = threading.Barrier(2, timeout=10)

    def replace(*paths):
        both.wait()  # both have written what they are about to rename
        os_replace(*paths)

    os_replace, failed = files.os.replace, []

    def read():
        try:
            kept.path(first)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    assert text_of(kept.path(first)) == "hello"
    assert not list(kept.folder.glob("*/.*"))


@pytest.mark.parametrize("url", ["bucket"], indirect=True)
@pytest.mark.parametrize("act", ["add", "remove", "change"])
def test_a_kill_at_any_moment_leaves_what_the_next_start_puts_in_order(
    tmp_path, wav, url, monkeypatch, act
):
    sound, other = sounds(wav, 2)
    monkeypatch.setattr(objects, "REMAINS", objects.REMAINS * 0)
    outcomes = []
    for cut in range(20):
        Bucket.store.clear()
        kept = opened(tmp_path / f"d{cut}", url)
        first, _ = kept.add(io.BytesIO(other), "earlier")
        Bucket.calls, Bucket.cut = 0, cut
        try:
            if act == "add":
                kept.add(io.BytesIO(sound), "hello")
            elif act == "remove":
                kept.remove(first)
            else:
                kept.change_text(first, "hello")
            answered = True
        except PowerCutError:
            answered = False
        Bucket.cut = None
        after = opened(tmp_path / f"d{cut}", url)
        recover(after)
        assert index(after) == contents(url)
        assert all("removed" not in files for files in stored(url).values())
        outcomes.append(sorted(text for _, text in index(after).values()))
        if answered:
            break
    before, done = (
        ["earlier"],
        {"add": ["earlier", "hello"], "remove": [], "change": ["hello"]}[act],
    )
    assert answered
    assert outcomes[-1] == done
    assert outcomes[0] == before
    assert all(outcome in (before, done) for outcome in outcomes)


@pytest.mark.parametrize("url", ["bucket"], indirect=True)
def test_an_upload_that_is_under_way_elsewhere_is_no_remains(tmp_path, wav, url):
    kept = opened(tmp_path / "d", url)
    kept.storage.write("f" * 32, "audio.wav", b"x")
    recover(kept)
    assert list(stored(url)) == ["f" * 32]


@pytest.mark.parametrize("url", ["bucket"], indirect=True)
@pytest.mark.parametrize("error", [RuntimeError, FileNotFoundError])
def test_a_storage_that_fails_is_a_sentence_and_nothing_has_changed(
    tmp_path, settings, new_speech, url, error
):
    read = Settings(**settings | {"data": tmp_path / "data", "storage": url})
    read.data.mkdir()
    prepare(read)
    with TestClient(create_app(read), "http://localhost", client=("127.0.0.1", 5)) as client:

        def send(i):
            path, text = new_speech[i]
            return client.post(
                "/upload/corrections", files={"audio": ("x.wav", path.read_bytes())},
                data={"text": text},
            )  # fmt: skip

        first = send(0)
        assert first.status_code == 201
        one = f"/corrections/{first.json()['id']}"
        before = stored(url)
        Bucket.cut, Bucket.calls, Bucket.error = 0, 0, error
        for answer in (
            send(1),
            client.delete(one),
            client.patch(one, json={"text": new_speech[1][1]}),
        ):
            if error is FileNotFoundError and answer.status_code == 409:
                continue  # it says that the recording is gone
            assert answer.status_code == 503
            assert answer.json()["detail"].startswith("The service cannot reach the storage")
            assert "password" not in answer.text
        if error is not FileNotFoundError:
            assert client.get("/health").json()["status"] == "degraded"
        Bucket.cut = None
        assert stored(url) == before
        assert client.get("/corrections").json()["total"] == 1
        assert client.get("/health").json()["status"] == "ok"
        assert client.get(f"{one}/audio").content == new_speech[0][0].read_bytes()
        assert send(1).status_code == 201
        assert client.delete(one).status_code == 204
        assert client.get(f"{one}/audio").status_code == 404
        assert [json.loads(f["about.json"])["seq"] for f in stored(url).values()] == [2]
        assert not any((read.data / "corrections").iterdir())


def test_a_full_disk_of_the_storage_is_told_apart():
    error = StorageError(28, "No space left on device")
    assert disk_problem(error)[0] == 507
    assert disk_problem(StorageError(None, "x"))[0] == 503


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("bucket/speech", "must be an address such as s3://"),
        ("nonsense://x", "nonsense"),
        ("file:///proc/nowhere", "/proc/nowhere"),
    ],
)
def test_a_wrong_address_is_a_sentence_at_the_start(refused_start, address, words):
    said = refused_start(STORAGE=address)
    assert said.startswith("EWC_SPEECH_STORAGE")
    assert words in said
    assert "\n" not in said


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(objects.fsspec, "url_to_fs", missing)
    with pytest.raises(UnusableStorageError, match="^EWC_SPEECH_STORAGE.*s3://.*s3fs"):
        opened(tmp_path / "d", "s3://bucket/prefix")
