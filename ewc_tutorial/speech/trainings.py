"""Which training runs when: one at a time, the others wait in the order of their requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ewc_tutorial.speech.corrections import Corrections
from ewc_tutorial.speech.disk import DISK_ERRORS, disk_problem
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.folders import recordings_in
from ewc_tutorial.speech.index import now
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.messages import TrainRequest
from ewc_tutorial.speech.plan import Plan, steps_for, usual_lam
from ewc_tutorial.speech.recogniser import SMALL
from ewc_tutorial.speech.runner import Runner
from ewc_tutorial.speech.serving import Serving
from ewc_tutorial.speech.settings import Settings
from ewc_tutorial.speech.trail import TRAINING
from ewc_tutorial.speech.versions import BASE, Versions

if TYPE_CHECKING:
    from ewc_tutorial.speech.elsewhere import Queue

#: So many trainings wait at most.
MAX_WAITING = 8
#: What a training takes from the settings and, where a request says so, from there.
_PLANNED = (
    "lam", "steps", "batch_size", "learning_rate", "fisher_samples", "lora_rank", "curvature",
    "replay", "freeze_encoder", "checkpoint_every",
)  # fmt: skip
_log = logging.getLogger(__name__)


class Trainings:
    """Takes requests for trainings and gives them to the runner, one after another.

    What a training works with is settled when its turn comes: the corrections until then, and the
    version that is served then.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        corrections: Corrections,
        models: Versions,
        serving: Serving,
        make_runner: Callable[[Settings, Jobs, Callable[[], None]], Runner | Queue] = Runner,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._corrections = corrections
        self._models = models
        self._serving = serving
        self._turn = threading.RLock()
        self._noted: set[int] = set()
        self.runner = make_runner(settings, jobs, self.go_on)

    def request(self, wish: TrainRequest) -> str:
        """Enter a training, start it if no other runs, and return its id.

        The same wish as that of one that still waits gets its id.

        Raises:
            RefusedError: there are too few recordings (409), or too many trainings wait (503).
            OSError: its process cannot be started.
        """
        self._check(wish)
        with self._turn:  # whoever comes meanwhile would not see this one, or give it up for dead
            self.runner.give_up_the_dead()
            waiting = self._jobs.waiting()
            for row in waiting:
                if row["options"]["wish"] == wish.model_dump():
                    return row["id"]
            if len(waiting) >= MAX_WAITING:
                raise RefusedError(f"{MAX_WAITING} trainings are waiting: try again later.", 503)
            job = self._jobs.create(*self._settled(wish, 1))
            self._start_next()
        return job

    def cancel(self, job: str) -> None:
        """End a training, unless it is finished already."""
        with self._turn:  # its process may be about to be started
            self.runner.cancel(job)

    def recover(self) -> None:
        """Take up what an earlier end has cut off, or what waits. For the start only."""
        known = self._corrections.trail.rows(TRAINING)
        self._jobs.restore(known)
        self._noted.update(row["seq"] for row in known)
        self.runner.recover()
        self.go_on()

    def _note_what_is_over(self) -> None:
        """Write down how trainings ended, for an index that must be made again."""
        for row in self._jobs.page(limit=MAX_WAITING + 2)[::-1]:
            if row["finished"] and row["seq"] not in self._noted:
                del row["losses"]
                self._corrections.trail.add(TRAINING, row)
                self._noted.add(row["seq"])

    def go_on(self) -> None:
        """Start the next training, if none runs and one waits."""
        try:
            with self._turn:
                self._note_what_is_over()
            while not self._start_next():
                pass
        except DISK_ERRORS as error:
            # Nobody waits for an answer here; the next request for a training tries again.
            _log.error("No training can be started now. %s", disk_problem(error)[1])

    def _start_next(self) -> bool:
        """Return whether there is nothing more to start."""
        with self._turn:
            if self._jobs.unfinished() is not None or not (waiting := self._jobs.waiting()):
                return True
            row = waiting[0]
            wish = TrainRequest.model_validate(row["options"]["wish"])
            try:
                self._check(wish)
            except RefusedError as error:  # the corrections have been deleted meanwhile
                self._jobs.fail(row["id"], error.sentence)
                return False
            if not self._jobs.claim(row["id"], *self._settled(wish, row["seq"])):
                return False
            self.runner.start(row["id"])
        return True

    def _check(self, wish: TrainRequest) -> None:
        new, new_tests = self._corrections.parts(self._corrections.index.last_seq(), self._hold_out)
        if not new or not new_tests:
            raise RefusedError(
                f"There are {len(new) + len(new_tests)} corrections; a training needs at least "
                "2, one to learn from and one to measure on.",
                409,
            )
        old = self._settings.old_folder
        if not recordings_in(old) and not self._models.importance(self._start_of(wish)):
            raise RefusedError(
                f"There is no earlier speech in {str(old)!r} to measure importance on, and "
                "corrections cannot take its place: put NAME.wav with NAME.txt there.",
                409,
            )

    def _settled(self, wish: TrainRequest, seq: int) -> tuple[dict[str, Any], int, str]:
        """Return options, last correction and first version of a training that begins now."""
        last_seq = self._corrections.index.last_seq()
        small = hasattr(self._serving.current()[1].model.config, SMALL)
        plan: dict[str, Any] = {
            "learning_rate": 2e-3 if small else 3e-5,
            "freeze_encoder": not small,
            # Every training has another order of the recordings, and repeats with its own.
            "seed": self._settings.seed + seq - 1,
        }
        for source in (self._settings, wish):
            plan |= {n: value for n, value in source if n in _PLANNED and value is not None}
        plan.setdefault("lam", usual_lam(plan["replay"]))
        if "steps" not in plan:
            n_new = len(self._corrections.parts(last_seq, self._hold_out)[0])
            plan["steps"] = steps_for(n_new, Plan(**plan).new_per_batch)
        # By the clock that deletions go by, and before the worker looks: what is deleted later may
        # have been learned, also by an attempt that was cut off.
        options = {"plan": plan, "wish": wish.model_dump(), "settled": now()}
        return options, last_seq, self._start_of(wish)

    def _start_of(self, wish: TrainRequest) -> str:
        return BASE if wish.start == "base" else self._serving.current()[0]

    @property
    def _hold_out(self) -> int:
        return self._settings.hold_out
