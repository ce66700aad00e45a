"""An index that is lost, old or behind its files; sounds that are the same; what is too old."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
from datetime import timedelta

import numpy as np
import pytest

pytest.importorskip("soundfile", reason="the group 'speech' is not installed")

import soundfile

from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.folders import text_of
from ewc_tutorial.speech.index import time_before
from ewc_tutorial.speech.recovery import recover


def filled(store, folder, wav, n=8):
    kept = store(folder)
    for i in range(n):
        kept.add(io.BytesIO(wav(f"{i}.wav", 0.2, seed=i).read_bytes()), f"text {i}", sent=f"{i}!")
    return kept


def rows(kept):
    return kept.index.page(limit=None)


def test_an_index_made_again_is_the_same_but_for_what_no_file_has(tmp_path, wav, store, indexes):
    kept = filled(store, tmp_path / "d", wav)
    kept.remove(rows(kept)[2])
    kept.remove(rows(kept)[-1])
    with open(tmp_path / "d" / "trail.jsonl", "ab") as trail:  # a power cut
        trail.write(b'\n{"kind": "deletion", "seq": 1, "id"')
    kept.remove(rows(kept)[-1], "retention")
    before, split = rows(kept), kept.split(99, 5)
    deleted = kept.index.deletions(0, 9)
    indexes.lose(tmp_path / "d")
    again = store(tmp_path / "d")
    recover(again, lambda sent: f"text {sent[:-1]}")
    assert rows(again) == before
    assert [c.seq for c in before] == [1, 2, 4, 5, 6]
    assert again.index.deletions(0, 9) == deleted
    assert [(d.seq, d.reason) for d in deleted] == [
        (3, "request"), (7, "retention"), (8, "request"),
    ]  # fmt: skip
    assert again.split(99, 5) == split
    assert again.add(io.BytesIO(wav(seed=50).read_bytes()), "next")[0].seq == 9


def test_folders_without_a_number_come_in_the_order_of_their_arrival(tmp_path, wav, store, indexes):
    kept = filled(store, tmp_path / "d", wav)
    wanted = [c.id for c in rows(kept)]
    for i, name in enumerate(wanted):
        (kept.folder / name / "about.json").unlink()
        os.utime(kept.folder / name, (1000 + i, 1000 + i))
    indexes.lose(tmp_path / "d")
    again = store(tmp_path / "d")
    recover(again)
    assert [c.id for c in rows(again)] == wanted
    # A folder that somebody has copied has a number that is taken.
    shutil.copytree(kept.folder / wanted[0], kept.folder / "copy")
    (kept.folder / "copy" / "text.txt").write_text("other")
    recover(again)
    assert (rows(again)[-1].id, rows(again)[-1].seq) == ("copy", 9)


def test_an_index_made_again_gives_no_number_of_what_was_deleted(tmp_path, wav, store, indexes):
    kept = filled(store, tmp_path / "d", wav, 4)
    first, _, third, last = rows(kept)
    kept.remove(last)
    (kept.folder / third.id / "about.json").unlink()  # as a kill before its row would leave it
    shutil.copytree(kept.folder / first.id, kept.folder / "copy")
    os.utime(kept.folder / "copy", (2e9, 2e9))  # the later of two with a number is the copy
    (kept.folder / "copy" / "text.txt").write_text("other")
    deleted = kept.index.deletions(0, 9)
    indexes.lose(tmp_path / "d")
    again = store(tmp_path / "d")
    recover(again)
    assert again.index.deletions(0, 9) == deleted
    assert [c.seq for c in rows(again)] == [1, 2, 5, 6]
    assert {c.id for c in rows(again)[2:]} == {third.id, "copy"}


@pytest.mark.parametrize("indexes", ["sqlite"], indirect=True)
def test_an_index_of_an_earlier_version_of_the_service_is_completed(tmp_path, wav, store, indexes):
    kept = filled(store, tmp_path / "d", wav, 3)
    kept.add(io.BytesIO(wav("0.wav", 0.2, seed=0).read_bytes()), "twice")
    wanted = rows(kept)
    for correction in wanted:
        (kept.folder / correction.id / "about.json").unlink()
        (kept.folder / correction.id / "text.txt").write_text(correction.text)
    indexes.lose(tmp_path / "d")
    with sqlite3.connect(tmp_path / "d" / "service.sqlite3") as connection:
        connection.execute(
            "CREATE TABLE corrections (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL "
            "UNIQUE, created TEXT NOT NULL, text TEXT NOT NULL, format TEXT NOT NULL, rate INTEGER "
            "NOT NULL, seconds REAL NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, "
            "UNIQUE (sha256, text))"
        )
        for c in wanted:
            connection.execute(
                "INSERT INTO corrections VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (c.seq, c.id, c.created, c.text, c.format, c.rate, c.seconds, c.bytes, c.sha256),
            )
    connection.close()
    again = store(tmp_path / "d")
    recover(again)
    found = rows(again)
    assert [(c.seq, c.sound, c.first) for c in found] == [(c.seq, c.sound, c.first) for c in wanted]
    assert [c.first for c in found] == [1, 2, 3, 1]
    assert [c.sent for c in found] == [c.text for c in wanted]
    assert all((again.folder / c.id / "about.json").exists() for c in found)


def test_one_sound_is_on_one_side_of_the_split_however_it_comes(tmp_path, store):
    """As WAV, as FLAC, in stereo, with another text; also after the first of them is deleted."""
    kept = store(tmp_path / "d")
    random = np.random.default_rng(0)
    for i in range(10):
        wave = np.round(3000 * random.standard_normal(4000)).astype(np.int16)
        for name, sound in (("x.wav", wave), ("x.flac", wave), ("y.wav", np.stack([wave] * 2, 1))):
            soundfile.write(tmp_path / name, sound, 16_000, subtype="PCM_16")
            kept.add(io.BytesIO((tmp_path / name).read_bytes()), f"{i} {name}")

    def sides():
        return [{text_of(p).split()[0] for p in part} for part in kept.split(99, hold_out=4)]

    train, tests = sides()
    assert train | tests == {str(i) for i in range(10)}
    assert not train & tests
    assert tests
    for correction in rows(kept):
        if correction.first == correction.seq:
            kept.remove(correction)
    assert sides() == [train, tests]


def test_what_is_too_old_is_deleted_and_leaves_a_trail_without_content(tmp_path, wav, store):
    kept = filled(store, tmp_path / "d", wav, 4)
    with kept.index._database.connection() as connection:
        connection.exec_driver_sql("UPDATE corrections SET created = '2020-01-01' WHERE seq <= 2")
    assert kept.expire(time_before(timedelta(days=1))) == 2
    assert kept.expire(time_before(timedelta(days=1))) == 0
    assert [c.seq for c in rows(kept)] == [3, 4]
    assert len([*kept.folder.iterdir()]) == 2
    kept.remove(rows(kept)[0])
    trail = kept.index.deletions(0, 100)
    assert [(d.seq, d.reason) for d in trail] == [
        (1, "retention"), (2, "retention"), (3, "request"),
    ]  # fmt: skip
    assert set(vars(trail[0])) == {"seq", "id", "created", "deleted", "reason"}
    assert [d.seq for d in kept.index.deletions(1, 1)] == [2]


def test_a_deletion_that_a_kill_cut_off_is_finished(tmp_path, wav, store):
    kept = filled(store, tmp_path / "d", wav, 2)
    first = rows(kept)[0]
    os.rename(kept.folder / first.id, kept.incoming / f"{first.id}.removed")
    recover(kept)
    assert [c.seq for c in rows(kept)] == [2]
    assert [d.id for d in kept.index.deletions(0, 9)] == [first.id]
    assert not any(kept.incoming.iterdir())


def test_a_deletion_that_cannot_be_noted_changes_nothing(tmp_path, wav, monkeypatch, store):
    kept = filled(store, tmp_path / "d", wav, 1)
    (first,) = rows(kept)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ewc_tutorial.speech.corrections.files.sync_folder", full)
        with pytest.raises(OSError, match="No space"):
            kept.remove(first)
    assert rows(kept) == [first]
    assert kept.path(first).exists()
    assert kept.index.deletions(0, 9) == []


def test_a_text_is_as_it_was_sent_in_an_index_made_again(tmp_path, wav, store, indexes):
    kept = store(tmp_path / "d")
    kept.add(io.BytesIO(wav().read_bytes()), "stone deer", sent="Stone,\r\ndeer!\r")
    indexes.lose(tmp_path / "d")
    again = store(tmp_path / "d")
    recover(again, lambda _: "stone deer")
    assert [c.sent for c in rows(again)] == ["Stone,\r\ndeer!\r"]


def test_a_text_that_the_model_cannot_write_keeps_its_place(tmp_path, wav, store, indexes):
    filled(store, tmp_path / "d", wav, 2)
    indexes.lose(tmp_path / "d")

    def nothing(sent):
        raise RefusedError("no")

    again = store(tmp_path / "d")
    recover(again, nothing)
    assert [(c.seq, c.text, c.sent) for c in rows(again)] == [(1, "0!", "0!"), (2, "1!", "1!")]
