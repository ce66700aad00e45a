"""Recordings as the model takes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ewc_tutorial.speech import audio
from ewc_tutorial.speech.errors import NotLearnedError, RefusedError
from ewc_tutorial.speech.recogniser import Recogniser

#: A recording, as a file or as samples (samples,) at 16 kHz, and its text if that is known.
Recording = tuple[Path | np.ndarray, str | None]
_log = logging.getLogger(__name__)


def wave_of(sound: Path | np.ndarray) -> np.ndarray:
    """Return the samples of a recording, read if it is a file."""
    return sound if isinstance(sound, np.ndarray) else audio.read(sound)


def in_memory(recordings: Sequence[Recording]) -> list[Recording]:
    """Return recordings with their samples, but for those that can no longer be read."""
    found: list[Recording] = []
    for sound, text in recordings:
        try:
            found.append((wave_of(sound), text))
        except RefusedError as error:
            _log.warning("%s is passed over: %s", sound, error.sentence)
    return found


class Samples(Dataset):
    """Recordings as a data set of what the model takes, read when they are asked for."""

    def __init__(self, recogniser: Recogniser, recordings: Sequence[Recording]) -> None:
        self._recogniser = recogniser
        self._recordings = recordings

    def __len__(self) -> int:
        return len(self._recordings)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a recording; if its file can no longer be read, the next one that can."""
        if index >= len(self):
            raise IndexError(index)  # the end of a loop over the data set
        for i in range(len(self)):
            sound, text = self._recordings[(index + i) % len(self)]
            try:
                return self._recogniser.sample(wave_of(sound), text)
            except RefusedError as error:
                _log.warning("%s is passed over: %s", sound, error.sentence)
        raise NotLearnedError(f"None of the {len(self)} recordings can be read any more.")
