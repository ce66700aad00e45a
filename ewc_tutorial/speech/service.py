"""Everything that the routes need, made when the server starts."""

from __future__ import annotations

from ewc_tutorial.speech.corrections import Corrections
from ewc_tutorial.speech.database import Database, lock_folder
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.recogniser import Recogniser
from ewc_tutorial.speech.serving import Serving
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.trainings import Trainings
from ewc_tutorial.speech.versions import Versions


class Service:
    """The parts of the service, on one data folder, which it holds the lock of."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        settings.data.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(settings.data, "server.lock")
        database = Database(settings.data / "service.sqlite3")
        self.corrections = Corrections(
            settings.data, database, settings.max_bytes, settings.max_seconds
        )
        self.jobs = Jobs(database)
        self.models = Versions(settings.data / "models")
        self.serving = Serving(self.models)
        self.trainings = Trainings(settings, self.jobs, self.corrections, self.models, self.serving)

    def start(self) -> None:
        """Put in order what an earlier end has left, and take up its training.

        Raises:
            UnusableModelError: there is no model to serve.
        """
        self.corrections.recover()
        self.serving.start()
        self.trainings.recover()

    def stop(self) -> None:
        self.trainings.runner.stop()
        self._lock.close()

    @property
    def recogniser(self) -> Recogniser:
        """The model in use."""
        return self.serving.current()[1]

    def clean(self, text: str) -> str:
        """Return a text as the model in use would write it, or raise RefusedError."""
        return self.recogniser.spelling.clean(text, self.settings.max_characters)
