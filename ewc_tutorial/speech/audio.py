"""Recordings: what is accepted, and how they become samples at 16 kHz.

There is one way in, :func:`decode`. What it accepts at an upload is what a training reads later.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from ewc_tutorial.speech import convert
from ewc_tutorial.speech.errors import RefusedError

#: Samples per second that wav2vec 2.0 was made for.
RATE = 16_000
RATES = (8_000, 192_000)
MAX_CHANNELS = 2
MIN_SECONDS = 0.1
#: Samples lie within ±1; a file of floats may have the scale of integers, and is then divided.
MAX_PEAK = 2.0**31
#: A wave that moves less than this is silent: about three steps of 16-bit samples.
MIN_RANGE = 1e-4
#: The kinds that need no ffmpeg. libsndfile reads many more, which nobody here needs.
NATIVE = ("wav", "flac")
_MAGIC = {b"RIFF": "wav", b"fLaC": "flac"}
_BLOCK = 65_536


@dataclass(frozen=True)
class Clip:
    """What is known of a recording: ``format``, ``rate`` in Hz and ``seconds``."""

    format: str
    rate: int
    seconds: float


def decode(source: Path | BinaryIO, max_seconds: float = float("inf")) -> tuple[Clip, np.ndarray]:
    """Return what a recording is and its sound, mono float32 ``(samples,)`` at 16 kHz, within ±1.

    The file is read from its beginning to its end in blocks, without a seek, for what a header or a
    seek table says may be wrong. What comes out of mixing and resampling is checked, not what went
    in. WAV and FLAC are read here, other formats through ffmpeg.

    Raises:
        RefusedError: it is no recording, needs ffmpeg where there is none (415), cannot be decoded,
            has an unusual rate or number of channels, is too short or too long, silent, or holds
            values that are no numbers or beyond any scale.
    """
    kind = kind_of(source)
    if kind not in NATIVE:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sound"
            if not isinstance(source, Path):
                with open(path, "wb") as file:
                    shutil.copyfileobj(source, file)
                source = path
            convert.to_flac(source, Path(folder) / "sound.flac", kind, max_seconds)
            clip, wave = decode(Path(folder) / "sound.flac", max_seconds)
        return replace(clip, format=kind), wave
    try:
        with soundfile.SoundFile(source) as sound:
            rate = _checked_rate(sound)
            blocks, frames = [], 0
            while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
                frames += len(block)
                if frames > max_seconds * rate:
                    raise RefusedError(f"audio must last at most {max_seconds:g} seconds.")
                peak = np.abs(block).max()
                if not peak <= MAX_PEAK:  # also if it is NaN
                    raise RefusedError(
                        f"audio must not hold values that are no finite numbers or beyond ±2^31, "
                        f"but has {peak:g}."
                    )
                blocks.append(block.mean(axis=1, dtype=np.float64).astype(np.float32))
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"audio looks like {kind.upper()} but cannot be decoded.") from error
    if frames < MIN_SECONDS * rate:
        raise RefusedError(
            f"audio must last at least {MIN_SECONDS:g} seconds, not {frames / rate:.3f}."
        )
    return Clip(kind, rate, frames / rate), _at_16_khz(np.concatenate(blocks), rate)


def fingerprint(wave: np.ndarray) -> str:
    """Return what stands for a sound ``(samples,)`` at 16 kHz, however its file was packed.

    It is a hash of 16-bit samples, so a WAV file and the FLAC file made of it have the same.
    """
    return hashlib.sha256(np.round(wave * 2**15).astype("<i4").tobytes()).hexdigest()


def read(path: Path) -> np.ndarray:
    """Return the sound alone, as :func:`decode` does."""
    return decode(path)[1]


def kind_of(source: Path | BinaryIO) -> str:
    """Return the kind of a recording, by its beginning.

    Raises:
        RefusedError: it is none.
    """
    try:
        with open(source, "rb") if isinstance(source, Path) else nullcontext(source) as file:
            start = file.read(12)
            file.seek(0)
    except OSError as error:
        raise RefusedError(f"audio cannot be read: {error.strerror}.") from error
    kind = _MAGIC.get(start[:4])
    if kind == "wav" and start[8:12] != b"WAVE":
        kind = None
    kind = kind or convert.kind_of(start)
    if kind is None:
        raise RefusedError("audio must be a WAV or FLAC file, but it begins like neither.")
    return kind


def _checked_rate(sound: soundfile.SoundFile) -> int:
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise RefusedError(
            f"audio must have between {RATES[0]} and {RATES[1]} samples per second, not "
            f"{sound.samplerate}."
        )
    if sound.channels > MAX_CHANNELS:
        raise RefusedError(f"audio must be mono or stereo, but it has {sound.channels} channels.")
    return sound.samplerate


def _at_16_khz(wave: np.ndarray, rate: int) -> np.ndarray:
    wave = wave / max(1.0, float(np.abs(wave).max()))
    if rate != RATE:
        wave = soxr.resample(wave, rate, RATE)
    wave = wave.astype(np.float32)
    if not np.ptp(wave) > MIN_RANGE:
        raise RefusedError(
            "audio must not be silent: mixed to one channel, all its samples are the same."
        )
    return wave
