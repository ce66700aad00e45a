"""What telephones and browsers record, where ffmpeg is installed and where it is not."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("soundfile", reason="the group 'speech' is not installed")

import soundfile

from ewc_tutorial.speech import audio, convert
from ewc_tutorial.speech.corrections import Corrections
from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.recovery import recover

FORMATS = {
    "mp3": ("mp3", ["-c:a", "libmp3lame"]),
    "opus": ("ogg", ["-c:a", "libopus"]),
    "ogg": ("ogg", ["-c:a", "libvorbis"]),
    "m4a": ("m4a", ["-c:a", "aac"]),
    "webm": ("webm", ["-c:a", "libopus"]),
}
needs_ffmpeg = pytest.mark.skipif(not convert.available(), reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A tone of 1 kHz of a second and a half in every format."""
    folder = tmp_path_factory.mktemp("formats")
    t = np.arange(66_150) / 44_100
    soundfile.write(folder / "tone.wav", 0.5 * np.sin(2 * np.pi * 1000 * t), 44_100)
    for ending, (_, options) in FORMATS.items():
        command = ["ffmpeg", "-loglevel", "error", "-i", folder / "tone.wav", *options]
        subprocess.run([*command, folder / f"tone.{ending}"], check=True)
    return folder


@needs_ffmpeg
@pytest.mark.parametrize("ending", FORMATS)
def test_each_format_is_heard_and_kept_as_it_was_sent(encoded, tmp_path, ending):
    path, kind = encoded / f"tone.{ending}", FORMATS[ending][0]
    content = path.read_bytes()
    for source in (path, io.BytesIO(content)):
        clip, wave = audio.decode(source, 30.0)
        assert (clip.format, clip.seconds) == (kind, pytest.approx(1.5, abs=0.1))
        spectrum = np.abs(np.fft.rfft(wave))
        assert spectrum.argmax() / len(wave) * audio.RATE == pytest.approx(1000, abs=1)
    kept = Corrections(tmp_path, Database(tmp_path / "i.sqlite3"), 10**6, 30.0)
    correction, new = kept.add(io.BytesIO(content), "a")
    assert new
    assert (correction.format, correction.bytes) == (kind, len(content))
    assert correction.sha256 == hashlib.sha256(content).hexdigest()
    assert kept.original(correction).read_bytes() == content
    assert np.array_equal(audio.read(kept.path(correction)), wave)
    assert kept.add(io.BytesIO(content), "a") == (correction, False)
    assert kept.split(9, 2)[0] == [kept.path(correction)]
    # The index can be made again, and the same file is known.
    (tmp_path / "i.sqlite3").unlink()
    again = Corrections(tmp_path, Database(tmp_path / "i.sqlite3"), 10**6, 30.0)
    recover(again)
    assert again.index.page() == [correction]


@needs_ffmpeg
def test_what_is_too_long_or_damaged_or_a_list_of_addresses_is_refused(encoded, tmp_path):
    with pytest.raises(RefusedError, match="at most 1 seconds"):
        audio.decode(encoded / "tone.mp3", 1.0)
    for ending, (kind, _) in FORMATS.items():
        content = (encoded / f"tone.{ending}").read_bytes()
        for damaged in (content[:60], content[:12] + b"\x5a" * 500):
            with pytest.raises(
                RefusedError, match=f"like {kind.upper()} but cannot be decoded|last"
            ):
                audio.decode(io.BytesIO(damaged), 30.0)
    # Something that begins like MP3 and is a list of files to ffmpeg, were it free to guess.
    playlist = tmp_path / "x.mp3"
    playlist.write_bytes(b"ID3#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")
    with pytest.raises(RefusedError):
        audio.decode(playlist, 30.0)


@needs_ffmpeg
def test_a_film_has_no_more_than_its_sound(encoded, tmp_path):
    film = tmp_path / "film.mp4"
    picture = ["-f", "lavfi", "-i", "color=s=64x64:d=1.5:r=5"]
    subprocess.run(
        ["ffmpeg", "-loglevel", "error", *picture, "-i", encoded / "tone.wav", "-shortest", film],
        check=True,
    )
    assert audio.decode(film)[0].seconds == pytest.approx(1.5, abs=0.1)
    subprocess.run(["ffmpeg", "-loglevel", "error", *picture, tmp_path / "mute.mp4"], check=True)
    with pytest.raises(RefusedError, match="cannot be decoded"):
        audio.decode(tmp_path / "mute.mp4")


BEGINNINGS = {
    "mp3": b"ID3\x04" + bytes(60), "MP3": b"\xff\xfb\x90\x64" + bytes(60),
    "ogg": b"OggS" + bytes(60), "m4a": b"\0\0\0\x20ftypM4A " + bytes(60),
    "webm": b"\x1aE\xdf\xa3" + bytes(60),
}  # fmt: skip


@pytest.mark.parametrize("name", BEGINNINGS)
def test_without_ffmpeg_the_format_is_named(monkeypatch, name):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RefusedError, match=f"audio is {name.upper()}.*send WAV or FLAC") as caught:
        audio.decode(io.BytesIO(BEGINNINGS[name]))
    assert caught.value.status == 415


def test_ffmpeg_may_not_take_for_ever(monkeypatch, tmp_path):
    slow = tmp_path / "ffmpeg"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(convert, "TIMEOUT_SECONDS", 0.3)
    with pytest.raises(RefusedError, match=r"more than 0\.3 seconds"):
        audio.decode(io.BytesIO(BEGINNINGS["mp3"]))
