"""Recordings: what is accepted, and how they become samples at 16 kHz."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ewc_tutorial.speech.errors import RefusedError

#: Samples per second that wav2vec 2.0 was made for.
RATE = 16_000
RATES = (8_000, 192_000)
MAX_CHANNELS = 2
MIN_SECONDS = 0.1
#: How the accepted formats begin. libsndfile reads many more, which nobody here needs.
_MAGIC = {b"RIFF": "wav", b"fLaC": "flac"}
_BLOCK = 65_536


@dataclass(frozen=True)
class Clip:
    """What is known of a recording: ``format`` (wav or flac), ``rate`` in Hz and ``seconds``."""

    format: str
    rate: int
    seconds: float


def examine(path: Path, max_seconds: float) -> Clip:
    """Decode a recording to its end, in blocks, and return what it is.

    What the header says of its length is not believed.

    Raises:
        RefusedError: it is no WAV or FLAC file, cannot be decoded, has an unusual rate or number of
            channels, is too short or too long, silent, or holds values that are no numbers.
    """
    with open(path, "rb") as file:
        start = file.read(12)
    kind = _MAGIC.get(start[:4])
    if kind is None or (kind == "wav" and start[8:12] != b"WAVE"):
        raise RefusedError("audio must be a WAV or FLAC file, but it begins like neither.")
    try:
        with soundfile.SoundFile(path) as sound:
            rate, channels = sound.samplerate, sound.channels
            if not RATES[0] <= rate <= RATES[1]:
                raise RefusedError(
                    f"audio must have between {RATES[0]} and {RATES[1]} samples per second, not "
                    f"{rate}."
                )
            if channels > MAX_CHANNELS:
                raise RefusedError(f"audio must be mono or stereo, but it has {channels} channels.")
            frames, low, high = 0, np.inf, -np.inf
            while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
                frames += len(block)
                if frames > max_seconds * rate:
                    raise RefusedError(f"audio must last at most {max_seconds:g} seconds.")
                if not np.isfinite(block).all():
                    raise RefusedError("audio must not hold values that are no finite numbers.")
                low, high = min(low, block.min()), max(high, block.max())
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"audio looks like {kind.upper()} but cannot be decoded.") from error
    if frames < MIN_SECONDS * rate:
        raise RefusedError(
            f"audio must last at least {MIN_SECONDS:g} seconds, not {frames / rate:.3f}."
        )
    if low == high:
        raise RefusedError("audio must not be silent: all its samples are the same.")
    return Clip(kind, rate, frames / rate)


def read(path: Path) -> np.ndarray:
    """Return a recording as mono float32 ``(samples,)`` at 16 kHz."""
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    wave = wave.mean(axis=1)
    return wave if rate == RATE else soxr.resample(wave, rate, RATE).astype(np.float32)
