"""What is accepted as a recording, and how it is read."""

from __future__ import annotations

import struct

import numpy as np
import pytest

pytest.importorskip("soundfile", reason="the group 'speech' is not installed")

import soundfile

from ewc_tutorial.speech import audio
from ewc_tutorial.speech.errors import RefusedError


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype"),
    [("x.wav", 16_000, 1, "PCM_16"), ("x.wav", 44_100, 2, "PCM_24"), ("x.flac", 8_000, 1, None)],
)
def test_wav_and_flac_become_mono_at_16_khz(wav, name, rate, channels, subtype):
    path = wav(name, 0.5, rate, channels, subtype=subtype)
    clip = audio.examine(path, 30.0)
    assert (clip.format, clip.rate, clip.seconds) == (name[2:], rate, pytest.approx(0.5))
    wave = audio.read(path)
    assert wave.dtype == np.float32
    assert wave.shape == (8_000,)


def test_resampling_keeps_a_tone_where_it_is(tmp_path):
    t = np.arange(44_100) / 44_100
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 1000 * t), 44_100)
    spectrum = np.abs(np.fft.rfft(audio.read(tmp_path / "tone.wav")))
    assert spectrum.argmax() == 1000  # one second: bins of 1 Hz


def damaged(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))
    return path


def header_says(n_bytes):
    """Return a change of the size that a WAV header claims for its samples."""
    return lambda content: content[:40] + struct.pack("<I", n_bytes) + content[44:]


REFUSED = {
    "empty": (lambda c: b"", "begins like neither"),
    "text": (lambda c: b"these are words, not sounds", "begins like neither"),
    "another RIFF": (lambda c: c[:8] + b"AVI " + c[12:], "begins like neither"),
    "half a header": (lambda c: c[:20], "cannot be decoded"),
    "no samples": (lambda c: c[:44], "at least 0.1 seconds"),
    "too high a rate": (lambda c: c[:24] + struct.pack("<I", 10**9) + c[28:], "samples per second"),
    "silence": (lambda c: c[:44] + bytes(len(c) - 44), "silent"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_recording_is_refused_in_one_sentence(wav, kind):
    change, words = REFUSED[kind]
    with pytest.raises(RefusedError, match=words) as caught:
        audio.examine(damaged(wav(), change), 30.0)
    assert caught.value.sentence.endswith(".")
    assert caught.value.status == 422


def test_the_samples_count_and_not_what_the_header_claims(wav):
    assert audio.examine(damaged(wav(seconds=1.0), header_says(2**31 - 1)), 2.0).seconds < 1.1
    with pytest.raises(RefusedError, match="at most 2 seconds"):
        audio.examine(wav(seconds=2.1), 2.0)
    # One hour of silence in a FLAC file of some kilobytes.
    long = wav("long.flac", 0.1)
    soundfile.write(long, np.zeros(8_000 * 3600, np.int16), 8_000)
    assert long.stat().st_size < 100_000
    with pytest.raises(RefusedError, match="at most 30 seconds"):
        audio.examine(long, 30.0)


def test_numbers_that_are_none_are_refused(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.full(8_000, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(RefusedError, match="finite"):
        audio.examine(tmp_path / "x.wav", 30.0)


def test_many_channels_are_refused(wav):
    with pytest.raises(RefusedError, match="4 channels"):
        audio.examine(wav(channels=4), 30.0)
