"""The model in use: loaded when it changes, and never exchanged for one that cannot be used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ewc_tutorial.speech.errors import RefusedError, UnusableModelError
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.versions import BASE, Versions

#: So many transcriptions wait for the one under way; more are refused.
MAX_WAITING = 16
_log = logging.getLogger(__name__)


class Serving:
    """Follows the pointer of :class:`Versions`.

    Whoever asks gets the model that is loaded; one asker at a time loads a new one. Hearing has a
    lock of its own, so that nobody who wants only the model waits for it.
    """

    def __init__(self, models: Versions) -> None:
        self._models = models
        self._loading = threading.Lock()
        self._hearing = threading.Lock()
        self._room = threading.BoundedSemaphore(MAX_WAITING + 1)
        self.in_queue = 0  # counted in the event loop alone
        self._served: tuple[str, Recogniser] | None = None
        self._refused: str | None = None

    def start(self) -> None:
        """Load the version in use, or else the nearest good one that it comes from, and say so.

        Others may never have been fit for use, or were taken out of it.

        Raises:
            UnusableModelError: no version can be loaded.
        """
        wanted = self._models.current() or ""
        why = []
        for name in dict.fromkeys([wanted, *self._models.line(wanted), BASE]):
            try:
                self._served = (name, self._load(name))
            except UnusableModelError as error:
                why.append(str(error))
                continue
            if why:
                self._models.switch(name)
                _log.error("%s Version %s is served instead.", why[0], name)
            return
        raise UnusableModelError(
            f"No model can be served. {' '.join(why)} The name of another version can be written "
            f"into {self._models.folder / 'current'}."
        )

    def current(self) -> tuple[str, Recogniser]:
        """Return the version in use and its model, loaded anew if another one is wanted."""
        assert self._served is not None, "start() comes first"
        name = self._models.current()
        changed = name not in (self._served[0], self._refused)
        if changed and self._loading.acquire(blocking=False):
            try:
                self._served = (name or "", self._load(name or ""))
                self._refused = None
            except UnusableModelError as error:
                self._refused = name
                _log.error("%s Version %s stays in use.", error, self._served[0])
            finally:
                self._loading.release()
        return self._served

    def switch(self, name: str) -> None:
        """Put a version into use, if it can be loaded.

        Raises:
            RefusedError: there is none of this name (404) or it cannot be used (409); the served
                one stays.
        """
        if not self._models.exists(name):
            raise RefusedError("There is no version of this name.", 404)
        with self._loading:
            try:
                loaded = self._load(name)
            except UnusableModelError as error:
                raise RefusedError(str(error), 409) from None
            before = self._models.current()
            self._models.switch(name)
            if not self._models.exists(name):
                self._models.switch(before or BASE)
                raise RefusedError(
                    f"Version {name} has just been removed, for newer ones take its place: choose "
                    "one of GET /models.",
                    409,
                )
            self._served, self._refused = (name, loaded), None

    @contextmanager
    def queue(self) -> Iterator[None]:
        """Take a place in the queue of transcriptions for a ``with`` block.

        Raises:
            RefusedError: (503) too many are waiting.
        """
        if not self._room.acquire(blocking=False):
            raise RefusedError(f"{MAX_WAITING} transcriptions are waiting: try again later.", 503)
        self.in_queue += 1
        try:
            yield
        finally:
            self.in_queue -= 1
            self._room.release()

    def transcribe(self, wave: np.ndarray) -> tuple[str, str]:
        """Return what is heard, and the version that heard it."""
        with self._hearing:
            name, recogniser = self.current()
            return recogniser.transcribe([wave])[0], name

    def peek(self) -> tuple[str, Recogniser]:
        """Return the version that is loaded and its model, at once, whatever is wanted."""
        assert self._served is not None, "start() comes first"
        return self._served

    def _load(self, name: str) -> Recogniser:
        if not self._models.exists(name):
            raise UnusableModelError(f"There is no version {name!r} in {self._models.folder}.")
        return Recogniser(self._models.path(name))
