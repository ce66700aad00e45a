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
    clip, wave = audio.decode(path, 30.0)
    assert (clip.format, clip.rate, clip.seconds) == (name[2:], rate, pytest.approx(0.5))
    assert np.array_equal(wave, audio.read(path))
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
        audio.decode(damaged(wav(), change), 30.0)
    assert caught.value.sentence.endswith(".")
    assert caught.value.status == 422


def test_the_samples_count_and_not_what_the_header_claims(wav):
    assert audio.decode(damaged(wav(seconds=1.0), header_says(2**31 - 1)), 2.0)[0].seconds < 1.1
    with pytest.raises(RefusedError, match="at most 2 seconds"):
        audio.decode(wav(seconds=2.1), 2.0)
    # One hour of silence in a FLAC file of some kilobytes.
    long = wav("long.flac", 0.1)
    soundfile.write(long, np.zeros(8_000 * 3600, np.int16), 8_000)
    assert long.stat().st_size < 100_000
    with pytest.raises(RefusedError, match="at most 30 seconds"):
        audio.decode(long, 30.0)


def test_numbers_that_are_none_are_refused(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.full(8_000, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(RefusedError, match="finite"):
        audio.decode(tmp_path / "x.wav", 30.0)


def test_many_channels_are_refused(wav):
    with pytest.raises(RefusedError, match="4 channels"):
        audio.decode(wav(channels=4), 30.0)


@pytest.mark.parametrize("peak", [3.4e38, 1e12, np.inf])
def test_huge_numbers_are_refused(tmp_path, peak):
    """Finite ones whose mean or square is not have once ended every training."""
    wave = peak * np.sign(np.random.default_rng(0).standard_normal((8_000, 2)))
    soundfile.write(tmp_path / "x.wav", wave.astype(np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(RefusedError, match="beyond"):
        audio.decode(tmp_path / "x.wav")


def test_floats_on_the_scale_of_integers_are_brought_back(tmp_path):
    wave = 0.9 * np.sin(np.arange(8_000) / 9).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", 32768 * wave, 16_000, subtype="FLOAT")
    assert np.abs(audio.read(tmp_path / "x.wav") - wave / np.abs(wave).max()).max() < 1e-6


def test_channels_in_opposite_phase_are_silence(tmp_path):
    wave = 0.5 * np.sin(np.arange(8_000) / 9)
    soundfile.write(tmp_path / "x.wav", np.stack([wave, -wave], axis=1), 16_000)
    with pytest.raises(RefusedError, match="mixed to one channel"):
        audio.decode(tmp_path / "x.wav")


def with_seek_table(content: bytes, offset: int) -> bytes:
    """Return a FLAC file with a table of one entry, which says where sample 4,096 is."""
    assert content[4] & 0x7F == 0, "the first block is STREAMINFO"
    entry = struct.pack(">QQH", 4096, offset, 4096)
    table = bytes([0x03 | content[4] & 0x80]) + len(entry).to_bytes(3, "big") + entry
    return content[:4] + bytes([content[4] & 0x7F]) + content[5:42] + table + content[42:]


@pytest.mark.parametrize("offset", [0, 1, 2**16, 2**40])
def test_a_wrong_seek_table_does_no_harm(wav, tmp_path, offset):
    content = wav("x.flac", 2.0, seed=3).read_bytes()
    wanted = audio.read(tmp_path / "x.flac")
    (tmp_path / "y.flac").write_bytes(with_seek_table(content, offset))
    clip, wave = audio.decode(tmp_path / "y.flac")
    assert clip.seconds == 2.0
    assert np.array_equal(wave, wanted)


def test_mutated_files_are_decoded_or_refused(wav, tmp_path):
    """What passes once passes again, from a file as from memory; nothing else is raised."""
    random = np.random.default_rng(0)
    kinds = {"a.wav": "PCM_16", "b.wav": "FLOAT", "c.flac": "PCM_16"}
    originals = [wav(name, 0.3, subtype=kind).read_bytes() for name, kind in kinds.items()]
    accepted = 0
    for i in range(300):
        content = bytearray(originals[i % 3])
        for _ in range(random.integers(1, 9)):
            content[random.integers(12, min(len(content), 12 + 4 ** random.integers(2, 9)))] = (
                random.integers(256)
            )
        path = tmp_path / "m"
        path.write_bytes(content)
        try:
            _, wave = audio.decode(path, 30.0)
        except RefusedError:
            continue
        accepted += 1
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() <= 1.2
        with open(path, "rb") as file:
            assert np.array_equal(audio.decode(file)[1], wave)
    assert 30 < accepted < 300
