"""Corrections are whole or not there, whatever happens at whatever moment."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
from pathlib import Path

import pytest
import sqlalchemy

pytest.importorskip("soundfile", reason="the group 'speech' is not installed")

from ewc_tutorial.speech import corrections as module
from ewc_tutorial.speech.corrections import Corrections
from ewc_tutorial.speech.database import lock_folder
from ewc_tutorial.speech.errors import AlreadyServedError, RefusedError
from ewc_tutorial.speech.folders import recordings_in, text_beside, text_of
from ewc_tutorial.speech.recovery import recover


def contents(folder: Path) -> dict[str, tuple[str, str]]:
    """Return id → (hash of the audio, text) from the files alone."""
    found = {}
    for path in (folder / "corrections").iterdir():
        (sound,) = path.glob("audio.*")
        found[path.name] = (hashlib.sha256(sound.read_bytes()).hexdigest(), text_of(sound))
    return found


def index(kept: Corrections) -> dict[str, tuple[str, str]]:
    return {c.id: (c.sha256, c.text) for c in kept.index.page(limit=1000)}


def test_a_correction_is_kept_byte_for_byte(tmp_path, wav, store):
    kept, sound = store(tmp_path / "d"), wav("x.flac").read_bytes()
    correction, new = kept.add(io.BytesIO(sound), "hello")
    assert new
    assert correction.sha256 == hashlib.sha256(sound).hexdigest()
    assert (correction.bytes, correction.format, correction.seq) == (len(sound), "flac", 1)
    assert index(kept) == contents(tmp_path / "d") != {}


def test_the_same_again_is_kept_once(tmp_path, wav, store):
    kept, sound = store(tmp_path / "d"), wav().read_bytes()
    first, _ = kept.add(io.BytesIO(sound), "hello")
    again, new = kept.add(io.BytesIO(sound), "hello")
    other, other_new = kept.add(io.BytesIO(sound), "hell")
    assert (again, new) == (first, False)
    assert other_new
    assert other.id != first.id
    assert index(kept) == contents(tmp_path / "d")


def test_what_is_refused_leaves_nothing(tmp_path, wav, store):
    kept = store(tmp_path / "d")
    with pytest.raises(RefusedError):
        kept.add(io.BytesIO(b"RIFF????WAVE"), "hello")
    with pytest.raises(RefusedError) as caught:
        kept.add(io.BytesIO(b"RIFF????WAVE" + bytes(10**6)), "hello")
    assert caught.value.status == 413
    assert not any((tmp_path / "d" / "incoming").iterdir())
    assert contents(tmp_path / "d") == {}


def test_concurrent_additions_are_all_kept_and_not_mixed_up(tmp_path, wav, store):
    kept = store(tmp_path / "d")
    sounds = [wav(f"{i}.wav", 0.2, seed=i).read_bytes() for i in range(24)]
    start = threading.Barrier(len(sounds) + 8)

    def add(i: int) -> None:
        start.wait()
        kept.add(io.BytesIO(sounds[i]), f"text {i}")

    # Eight of them are sent twice at the same time.
    numbers = [*range(24), *range(8)]
    threads = [threading.Thread(target=add, args=(i,)) for i in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = {(hashlib.sha256(s).hexdigest(), f"text {i}") for i, s in enumerate(sounds)}
    assert set(index(kept).values()) == wanted
    assert index(kept) == contents(tmp_path / "d")
    assert [c.seq for c in kept.index.page(limit=1000)] == sorted(
        c.seq for c in kept.index.page(limit=1000)
    )


class PowerCutError(BaseException):
    pass


def test_a_cut_at_any_moment_leaves_a_whole_correction_or_none(tmp_path, wav, monkeypatch, store):
    """Every call that changes the disk is once the last one that happens."""
    sound = wav().read_bytes()
    names = ("rename", "fsync", "mkdir")
    real = {name: getattr(os, name) for name in names}
    outcomes = []
    for cut in range(100):
        folder = tmp_path / f"d{cut}"
        kept = store(folder)
        kept.add(io.BytesIO(wav("old.wav", seed=9).read_bytes()), "earlier")
        calls = 0

        def counted(name, cut=cut):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls > cut:
                    raise PowerCutError
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, counted(name))
            # A process that is gone does not tidy up.
            patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
            try:
                kept.add(io.BytesIO(sound), "hello")
                answered = True
            except PowerCutError:
                answered = False
        after = store(folder)
        recover(after)
        assert index(after) == contents(folder)
        texts = sorted(text for _, text in index(after).values())
        assert texts in (["earlier"], ["earlier", "hello"])
        assert not any((folder / "incoming").iterdir())
        outcomes.append(len(texts))
        if answered:
            assert len(texts) == 2
            break
    assert outcomes == sorted(outcomes)
    assert {1, 2} == set(outcomes)
    assert outcomes.count(2) >= 2, "one cut came after the rename and before the answer"


def test_recovery_leaves_alone_what_it_does_not_know(tmp_path, wav, store):
    kept = store(tmp_path / "d")
    stranger = tmp_path / "d" / "corrections" / "holiday"
    stranger.mkdir()
    (stranger / "picture.jpg").write_bytes(b"x")
    recover(kept)
    assert kept.index.count() == 0
    assert (stranger / "picture.jpg").exists()


def test_the_split_is_the_same_for_ever_and_leaves_out_lost_files(tmp_path, wav, store):
    kept = store(tmp_path / "d")
    for i in range(12):
        kept.add(io.BytesIO(wav(f"{i}.wav", 0.2, seed=i).read_bytes()), f"{i + 1}")
    train, test = kept.split(12, hold_out=5)
    assert [text_of(p) for p in test] == ["2", "7", "12"]
    assert [text_of(p) for p in kept.split(8, hold_out=5)[1]] == ["2", "7"]
    assert len(train) == 9
    train[0].unlink()
    assert len(kept.split(12, hold_out=5)[0]) == 8


def test_two_servers_cannot_have_one_folder(tmp_path):
    lock = lock_folder(tmp_path, "server.lock")
    with pytest.raises(AlreadyServedError, match="EWC_SPEECH_DATA"):
        lock_folder(tmp_path, "server.lock")
    lock.close()
    lock_folder(tmp_path, "server.lock").close()


def test_recorders_write_endings_in_any_case(tmp_path):
    for sound, text in (("a.WAV", "a.txt"), ("b.wav", "b.TXT"), ("c.Flac", "c.txt"), ("d.wav", "")):
        (tmp_path / sound).touch()
        (tmp_path / f"._{sound}").touch()  # macOS on a stick
        if text:
            (tmp_path / text).write_text(f" the text of {sound}\n")
    *found, without = recordings_in(tmp_path)
    assert [path.name for path in found] == ["a.WAV", "b.wav", "c.Flac"]
    assert [text_of(path) for path in found] == [f"the text of {p.name}" for p in found]
    assert text_beside(without) is None


def test_a_correction_whose_files_are_gone_is_kept_when_it_is_sent_again(tmp_path, wav, store):
    kept, sound = store(tmp_path / "d"), wav().read_bytes()
    first, _ = kept.add(io.BytesIO(sound), "hello")
    shutil.rmtree(tmp_path / "d" / "corrections" / first.id)
    assert kept.add(io.BytesIO(sound), "hello") == (first, True)
    assert index(kept) == contents(tmp_path / "d") != {}


def test_what_is_sent_again_during_its_deletion_is_kept_anew(tmp_path, wav, monkeypatch, store):
    kept, sound = store(tmp_path / "d"), wav().read_bytes()
    first, _ = kept.add(io.BytesIO(sound), "hello")
    real, answers = kept.storage.set_aside, []
    again = threading.Thread(target=lambda: answers.append(kept.add(io.BytesIO(sound), "hello")))

    def set_aside(name):
        real(name)
        again.start()
        again.join(0.5)  # long enough for an upload that does not wait

    with monkeypatch.context() as patch:
        patch.setattr(kept.storage, "set_aside", set_aside)
        kept.remove(first)
    again.join()
    ((second, new),) = answers
    assert (new, second.seq) == (True, 2)
    assert index(kept) == contents(tmp_path / "d") == {second.id: (first.sha256, "hello")}
    kept.remove(second)
    assert [d.seq for d in kept.index.deletions(0, 9)] == [1, 2]


def test_what_is_sent_again_after_a_broken_deletion_survives_the_next_start(tmp_path, wav, store):
    kept, sound = store(tmp_path / "d"), wav().read_bytes()
    first, _ = kept.add(io.BytesIO(sound), "hello")
    kept.storage.set_aside(first.id)  # and the connection to the index was lost
    assert kept.add(io.BytesIO(sound), "hello") == (first, True)
    recover(kept)
    assert index(kept) == contents(tmp_path / "d") != {}


def test_a_text_is_changed_in_file_and_index_or_in_neither(tmp_path, wav, monkeypatch, store):
    kept, sound = store(tmp_path / "d"), wav().read_bytes()
    first, _ = kept.add(io.BytesIO(sound), "hello")
    other, _ = kept.add(io.BytesIO(sound), "hell")
    assert kept.change_text(first, "help").text == "help"
    assert index(kept) == contents(tmp_path / "d")
    with pytest.raises(RefusedError, match="already") as caught:
        kept.change_text(other, "help")
    assert caught.value.status == 409
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            kept.change_text(first, "hill")
    assert sorted(text for _, text in index(kept).values()) == ["hell", "help"]
    assert index(kept) == contents(tmp_path / "d")


def test_a_changed_text_that_cannot_be_committed_leaves_the_earlier_one(
    tmp_path, wav, monkeypatch, store
):
    kept = store(tmp_path / "d")
    first, _ = kept.add(io.BytesIO(wav().read_bytes()), "hello")
    real = sqlalchemy.Connection.commit

    def full(connection):
        patch.setattr(sqlalchemy.Connection, "commit", real)
        connection.rollback()
        raise sqlalchemy.exc.OperationalError("COMMIT", None, Exception("disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(sqlalchemy.Connection, "commit", full)
        with pytest.raises(sqlalchemy.exc.OperationalError):
            kept.change_text(first, "help")
    assert kept.index.page() == [first]
    assert index(kept) == contents(tmp_path / "d")


def test_a_text_is_not_changed_of_what_is_deleted_meanwhile(tmp_path, wav, monkeypatch, store):
    kept = store(tmp_path / "d")
    first, _ = kept.add(io.BytesIO(wav().read_bytes()), "hello")
    kept.remove(first)
    with monkeypatch.context() as patch:
        patch.setattr(kept.storage, "has", lambda *_: True)  # as it was just before
        with pytest.raises(RefusedError, match="no correction of this id") as caught:
            kept.change_text(first, "help")
    assert caught.value.status == 404
    assert contents(tmp_path / "d") == {}


def test_a_kill_between_file_and_index_of_a_changed_text_leaves_the_new_one(tmp_path, wav, store):
    kept = store(tmp_path / "d")
    first, _ = kept.add(io.BytesIO(wav().read_bytes()), "hello")
    (tmp_path / "d" / "corrections" / first.id / "text.txt").write_text("help")
    recover(kept)
    assert [c.text for c in kept.index.page()] == ["help"]


def test_a_deleted_correction_is_gone_and_stays_gone(tmp_path, wav, store):
    kept = store(tmp_path / "d")
    both = [kept.add(io.BytesIO(wav(seed=i).read_bytes()), "hello")[0] for i in range(2)]
    kept.remove(both[0])
    recover(kept)
    assert [c.id for c in kept.index.page()] == [both[1].id]
    assert list(contents(tmp_path / "d")) == [both[1].id]
    assert not any((tmp_path / "d" / "incoming").iterdir())
    kept.remove(both[0])  # again, as after a kill
    # Its number is not given to another.
    assert kept.add(io.BytesIO(wav(seed=7).read_bytes()), "x")[0].seq == 3


def test_a_deleted_correction_that_comes_back_from_a_backup_can_be_deleted_again(
    tmp_path, wav, store
):
    kept = store(tmp_path / "d")
    first, _ = kept.add(io.BytesIO(wav().read_bytes()), "hello")
    shutil.copytree(kept.folder / first.id, tmp_path / "backup")
    kept.remove(first)
    shutil.copytree(tmp_path / "backup", kept.folder / first.id)
    recover(kept)
    assert kept.index.page() == [first]
    kept.remove(first, "retention")
    assert index(kept) == contents(tmp_path / "d") == {}
    assert [(d.seq, d.reason) for d in kept.index.deletions(0, 9)] == [(1, "retention")]


def test_an_index_that_cannot_be_written_leaves_no_correction(tmp_path, wav, monkeypatch, store):
    kept = store(tmp_path / "d")
    real = kept.enter

    def locked(*_):
        raise sqlalchemy.exc.OperationalError("INSERT", None, Exception("database is locked"))

    monkeypatch.setattr(kept, "enter", locked)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        kept.add(io.BytesIO(wav().read_bytes()), "hello")
    monkeypatch.setattr(kept, "enter", real)
    recover(kept)
    assert kept.index.count() == 0
    assert contents(tmp_path / "d") == {}


def test_a_recording_with_two_texts_is_on_one_side_of_the_split(tmp_path, wav, store):
    kept = store(tmp_path / "d")
    for i in range(6):
        sound = wav(f"{i}.wav", 0.2, seed=i).read_bytes()
        for text in ("one", "two"):
            kept.add(io.BytesIO(sound), text)
    parts = [{p.read_bytes() for p in part} for part in kept.split(12, hold_out=3)]
    assert not parts[0] & parts[1]
    assert all(parts)
