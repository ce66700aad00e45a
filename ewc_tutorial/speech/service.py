"""Everything that the routes need, made when the server starts."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ewc_tutorial.speech.alone import Alone
from ewc_tutorial.speech.audio import Clip
from ewc_tutorial.speech.corrections import Corrections
from ewc_tutorial.speech.database import Database, lock_folder, open_database
from ewc_tutorial.speech.disk import DISK_ERRORS, disk_problem
from ewc_tutorial.speech.index import Correction, time_before
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.private import make_private
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.recovery import recover
from ewc_tutorial.speech.runner import Runner
from ewc_tutorial.speech.serving import Serving
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.trainings import Trainings
from ewc_tutorial.speech.versions import Versions

if TYPE_CHECKING:
    from ewc_tutorial.speech.elsewhere import Queue

#: Between two looks for corrections that are older than the settings allow.
EXPIRE_SECONDS = 3600.0
_log = logging.getLogger(__name__)


class Service:
    """The parts of the service, on one data folder, which it holds the lock of."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        settings.data.mkdir(parents=True, exist_ok=True)
        make_private(settings.data)
        self._stopping = threading.Event()
        self._alone: Alone | None = None
        self._lock = lock_folder(settings.data, "server.lock")
        self._database = database = self._index_alone()
        self.corrections = Corrections(
            settings.data, database, settings.max_bytes, settings.max_seconds, settings.storage
        )
        self.corrections.storage.check()
        self.jobs = Jobs(database)
        self.models = Versions(settings.data / "models")
        self.serving = Serving(self.models)
        make_runner: type[Runner] | type[Queue] = Runner
        if settings.worker == "elsewhere":
            from ewc_tutorial.speech import elsewhere

            elsewhere.make_tables(database)
            make_runner = elsewhere.Queue
        self.trainings = Trainings(
            settings, self.jobs, self.corrections, self.models, self.serving, make_runner
        )

    def _index_alone(self) -> Database:
        place = self.settings.index
        if isinstance(place, Path):
            return open_database(place)
        database = Database(place)
        self._alone = Alone(database)
        return database

    def start(self) -> None:
        """Put in order what an earlier end has left, and take up its training.

        Raises:
            UnusableModelError: there is no model to serve.
        """
        self.serving.start()
        recover(self.corrections, self.clean)
        if self.settings.retention_days is not None:
            threading.Thread(target=self._expire, daemon=True).start()
        self.trainings.recover()

    def _expire(self) -> None:
        """Delete what is too old, now and every hour."""
        kept = timedelta(days=self.settings.retention_days or 0.0)
        while True:
            try:
                self.corrections.expire(time_before(kept))
            except DISK_ERRORS as error:
                _log.error("Old corrections cannot be deleted now. %s", disk_problem(error)[1])
            if self._stopping.wait(EXPIRE_SECONDS):
                return

    def keep(self, sound: BinaryIO, sent: str) -> tuple[Correction, bool]:
        """Keep a correction, if the model in use could learn from it; return whether it is new.

        Raises:
            RefusedError: it cannot be used.
        """
        recogniser, text = self.recogniser, self.clean(sent)

        def check(clip: Clip) -> None:
            recogniser.check_length(clip.seconds)
            recogniser.check_room(text, clip.seconds)

        return self.corrections.add(sound, text, check, sent)

    def stop(self) -> None:
        self._stopping.set()
        self.trainings.runner.stop()
        if self._alone is not None:
            self._alone.stop()
        self._database.close()
        self._lock.close()

    @property
    def recogniser(self) -> Recogniser:
        """The model in use, or that which was until a new one is loaded."""
        return self.serving.peek()[1]

    def clean(self, text: str) -> str:
        """Return a text as the model in use would write it, or raise RefusedError."""
        settings = self.settings
        return self.recogniser.spelling.clean(text, settings.max_characters, settings.spelling)
