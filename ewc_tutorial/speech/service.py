"""Everything that the routes need, made when the server starts."""

from __future__ import annotations

from typing import Any

from ewc_tutorial.speech.corrections import Corrections
from ewc_tutorial.speech.database import Database, lock_folder
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.folders import recordings_in
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.messages import TrainRequest
from ewc_tutorial.speech.recogniser import SMALL, Recogniser
from ewc_tutorial.speech.runner import Runner
from ewc_tutorial.speech.serving import Serving
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.versions import BASE, Versions

#: What a training takes from the settings and, where a request says so, from there.
_PLANNED = (
    "lam", "steps", "batch_size", "learning_rate", "fisher_samples", "lora_rank", "curvature",
    "replay", "freeze_encoder", "checkpoint_every", "seed",
)  # fmt: skip


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
        self.runner = Runner(settings, self.jobs)

    def start(self) -> None:
        """Put in order what an earlier end has left, and take up its training.

        Raises:
            UnusableModelError: there is no model to serve.
        """
        self.corrections.recover()
        self.serving.start()
        self.runner.recover()

    def stop(self) -> None:
        self.runner.stop()
        self._lock.close()

    @property
    def recogniser(self) -> Recogniser:
        """The model in use."""
        return self.serving.current()[1]

    def clean(self, text: str) -> str:
        """Return a text as the model in use would write it, or raise RefusedError."""
        return self.recogniser.spelling.clean(text, self.settings.max_characters)

    def train(self, wish: TrainRequest) -> str:
        """Start a training and return its id.

        Raises:
            RefusedError: (409) there are too few recordings, or another training is running.
        """
        last_seq = self.corrections.last_seq()
        new, new_tests = self.corrections.split(last_seq, self.settings.hold_out)
        if not new or not new_tests:
            raise RefusedError(
                f"There are {len(new) + len(new_tests)} corrections; a training needs at least "
                "2, one to learn from and one to measure on.",
                409,
            )
        start = BASE if wish.start == "base" else self.serving.current()[0]
        if not recordings_in(self.settings.old_folder) and not self.models.importance(start):
            raise RefusedError(
                f"There is no earlier speech in {str(self.settings.old_folder)!r} to measure "
                "importance on, and corrections cannot take its place: put NAME.wav with NAME.txt "
                "there.",
                409,
            )
        self.runner.give_up_the_dead()
        job = self.jobs.create({"plan": self._plan(wish)}, last_seq, start)
        self.runner.start(job)
        return job

    def _plan(self, wish: TrainRequest) -> dict[str, Any]:
        small = hasattr(self.recogniser.model.config, SMALL)
        plan = {"learning_rate": 2e-3 if small else 3e-5, "freeze_encoder": not small}
        for source in (self.settings, wish):
            plan |= {n: value for n, value in source if n in _PLANNED and value is not None}
        return plan
