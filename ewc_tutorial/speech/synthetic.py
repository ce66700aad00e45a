"""Speech for a machine with no recordings and no network: letters as tones, speakers as voices.

Every letter is a pair of tones, as the keys of a telephone are: one of four low ones and one of
three high ones. A speaker has a pitch (all tones are multiplied by it), a pace, a timbre (how loud
the overtones and the higher tone are) and a level of noise. A speaker of another pitch says tones
that lie between those of the others, or on top of other letters: this is what the recogniser must
learn, and where it can lose the old voices.

Nothing here sounds like a human being. It takes the place of speech in the lesson and in the
tests; real WAV and FLAC files go the same way through the service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Samples per second: what wav2vec 2.0 expects.
RATE = 16_000
#: The letters that can be said, each by its place in the 4 × 3 keypad.
LETTERS = "adehilnorstw"
LOW_TONES = (420.0, 546.0, 710.0, 923.0)
HIGH_TONES = (1300.0, 1690.0, 2197.0)
#: Seconds that a letter and the pause between two words last at pace 1.
LETTER_SECONDS = 0.08
PAUSE_SECONDS = 0.06
WORDS = tuple(
    """
    deer does eats hears hen hides hill hold horse in is island lion little loses near north old
    on rain red rests ride road root rose sail salt sand sea seed snow star stone tower tree water
    west white wide wind winter
    """.split()  # noqa: SIM905 (a list of words is for reading)
)


@dataclass(frozen=True)
class Speaker:
    """A voice.

    Attributes:
        name: to name files and curves by.
        pitch: factor on all tones; 1.3 turns every tone into the next higher one.
        pace: factor on the number of letters per second.
        overtones: loudness of the second and third harmonic, beside 1 for the first.
        balance: loudness of the high tone, beside 1 for the low one.
        noise: standard deviation of white noise, beside a letter of about 0.5.
    """

    name: str
    pitch: float = 1.0
    pace: float = 1.0
    overtones: tuple[float, float] = (0.1, 0.0)
    balance: float = 0.8
    noise: float = 0.02


#: Those that the recogniser grows up with.
OLD_SPEAKERS = (
    Speaker("Ada", pitch=0.9, pace=0.85, overtones=(0.3, 0.1), balance=0.7, noise=0.02),
    Speaker("Ben", pitch=1.0, pace=1.0, overtones=(0.0, 0.0), balance=0.9, noise=0.04),
    Speaker("Cleo", pitch=1.1, pace=1.15, overtones=(0.15, 0.1), balance=1.0, noise=0.03),
)
#: The one whose corrections arrive later.
NEW_SPEAKER = Speaker("Dora", 1.08, 0.7, overtones=(0.5, 0.3), balance=0.9, noise=0.03)
#: Voices in the place of the old ones, when their recordings are gone.
OTHER_SPEAKERS = tuple(
    Speaker(f"other {i}", pitch, pace, (0.15, 0.05))
    for i, (pitch, pace) in enumerate(((0.86, 1.1), (0.95, 0.9), (1.05, 1.05)))
)


def say(text: str, speaker: Speaker, generator: np.random.Generator) -> np.ndarray:
    """Return the recording ``(samples,)`` in float32, within ±1, of ``speaker`` saying ``text``.

    Letters last up to 15 % longer or shorter than the mean, pitch drifts by about 1 %, and loudness
    varies, each time anew.

    Raises:
        ValueError: a character of ``text`` is neither one of :data:`LETTERS` nor a space.
    """
    unknown = sorted(set(text) - set(LETTERS) - {" "})
    if unknown:
        raise ValueError(
            f"text must be made of the letters {LETTERS!r} and spaces, but has {unknown[0]!r}."
        )
    drift = speaker.pitch * np.exp(0.01 * generator.standard_normal())
    silence = PAUSE_SECONDS / speaker.pace
    parts = [np.zeros(int(RATE * silence))]
    for letter in text:
        if letter == " ":
            parts.append(np.zeros(int(RATE * silence * generator.uniform(0.85, 1.15))))
        else:
            parts.append(_letter(letter, speaker, drift, generator))
    parts.append(parts[0])
    wave = np.concatenate(parts) * generator.uniform(0.7, 1.0)
    noise = generator.standard_normal(len(wave), dtype=np.float32)
    return np.clip(wave + speaker.noise * noise, -1.0, 1.0).astype(np.float32)


def _letter(
    letter: str, speaker: Speaker, pitch: float, generator: np.random.Generator
) -> np.ndarray:
    seconds = LETTER_SECONDS / speaker.pace * generator.uniform(0.85, 1.15)
    t = np.arange(int(RATE * seconds)) / RATE
    place = LETTERS.index(letter)
    low, high = LOW_TONES[place // len(HIGH_TONES)], HIGH_TONES[place % len(HIGH_TONES)]
    wave = np.zeros(len(t))
    loudness = 0.0
    for tone, level in ((low, 1.0), (high, speaker.balance)):
        for harmonic, amount in enumerate((1.0, *speaker.overtones), start=1):
            phase = generator.uniform(0, 2 * np.pi)
            wave += level * amount * np.sin(2 * np.pi * pitch * tone * harmonic * t + phase)
            loudness += (level * amount) ** 2
    # Attack and decay within 8 ms, so that letters are heard apart and nothing clicks.
    edge = np.minimum(1.0, np.minimum(t, t[::-1]) / 0.008)
    return 0.35 * edge * wave / np.sqrt(loudness)


def sentences(n: int, seed: int = 0, words: Sequence[str] = WORDS) -> list[str]:
    """Return ``n`` sentences of two or three random words."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words, generator.integers(2, 4))) for _ in range(n)]


def recordings(
    speakers: Sequence[Speaker], n: int, seed: int = 0
) -> list[tuple[np.ndarray, str, str]]:
    """Return ``n`` recordings (wave, text, speaker's name); the speakers take turns."""
    generator = np.random.default_rng((seed, 1))
    return [
        (say(text, speaker, generator), text, speaker.name)
        for text, speaker in zip(sentences(n, seed), _turns(speakers, n), strict=True)
    ]


def _turns(speakers: Sequence[Speaker], n: int) -> list[Speaker]:
    return [speakers[i % len(speakers)] for i in range(n)]


def write_folder(
    folder: Path, speakers: Sequence[Speaker], n: int, seed: int = 0
) -> list[tuple[Path, str]]:
    """Write ``n`` recordings as NAME.wav (16 bit) and NAME.txt below a folder per speaker.

    Returns:
        The paths of the WAV files with their texts.
    """
    written = []
    for i, (wave, text, name) in enumerate(recordings(speakers, n, seed)):
        path = Path(folder) / name.lower() / f"{i:04d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, wave)
        path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
        written.append((path, text))
    return written


def write(path: Path, wave: np.ndarray) -> None:
    """Write a recording in 16 bits."""
    import soundfile

    soundfile.write(path, wave, RATE, subtype="PCM_16")
