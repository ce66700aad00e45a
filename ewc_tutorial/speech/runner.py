"""Starts the process of a training, watches it, and ends it with the server.

A process that ends without a word was killed, by the system when memory was short or by somebody.
It is started again after a moment, and goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ewc_tutorial.speech.disk import DISK_ERRORS, disk_problem
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.settings import Settings

#: So long a training waits for an index that does not answer.
INDEX_SECONDS = 600.0
#: What its process ends with where that was in vain, or a connection broke in the middle.
LOST_INDEX = 75

#: And where another process still works on a training.
OCCUPIED = 76

#: So often a job that was cut off is taken up again.
MAX_ATTEMPTS = 3
#: Before that: whoever ended the process may be about to end the server, too.
PAUSE_SECONDS = 5.0
#: So many trainings keep their log.
_LOGS = 100
#: What a worker writes to its standard output and error goes here.
LOG = "log.txt"
_log = logging.getLogger(__name__)


class Runner:
    """Runs one worker at a time.

    Args:
        settings: are passed on to it.
        jobs: the index, which it writes to.
        on_over: is called when a job is over, in a thread of its own.
    """

    def __init__(self, settings: Settings, jobs: Jobs, on_over: Callable[[], None]) -> None:
        self._settings = settings
        self._jobs = jobs
        self._patient = jobs.patient(INDEX_SECONDS)  # for threads that nobody waits for
        self._on_over = on_over
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._running: str | None = None
        self._watching: threading.Thread | None = None
        self._kills: Counter[str] = Counter()  # also of processes that had not yet begun
        self._expected: set[str] = set()  # jobs whose process is being ended by this one

    def start(self, job: str) -> None:
        """Start the worker for a job that is in the index.

        Raises:
            OSError: it cannot be started; the job has failed then.
        """
        try:
            self._start(job)
        except OSError as error:
            self._jobs.fail(job, f"The training could not be started: {error.strerror}.")
            raise

    def _start(self, job: str) -> None:
        work = self._settings.data / "work" / job
        work.mkdir(parents=True, exist_ok=True)
        with open(work / LOG, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ewc_tutorial.speech.worker", job],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Else Ctrl+C would end it before the server can say that all is in order.
                start_new_session=True,
            )
        # Kept open: its end tells the worker that this process is gone.
        process.stdin.write(json.dumps(self._settings.to_worker()).encode() + b"\n")
        process.stdin.flush()
        self._process, self._running = process, job
        self._watching = threading.Thread(
            target=self._watch, args=(process, job, work), daemon=True
        )
        self._watching.start()

    def recover(self) -> None:
        """Take up the job that a kill has cut off, if there is one. For the start only."""
        sweep(self._settings.data, self._jobs)
        if (job := self._jobs.unfinished()) is not None:
            self._take_up(job)

    def _take_up(self, job: str) -> bool:
        """Start the worker again, unless that has been tried too often; return whether it runs."""
        times = max(self._jobs.cut_off(job), self._kills[job])
        if times >= MAX_ATTEMPTS:
            self._jobs.fail(job, f"It was cut off {times} times and is not tried again.")
            self._tidy(job)
            return False
        _log.warning("Training %s was cut off; it goes on from its last checkpoint.", job)
        self.start(job)
        return True

    def give_up_the_dead(self) -> None:
        """Fail a job that no process works on: a full disk may have kept it from being noted."""
        job = self._jobs.unfinished()
        alive = self._watching is not None and self._watching.is_alive()
        if job is not None and not (alive and job == self._running):
            self._jobs.fail(job, "Its process ended and could not leave a message.")
            self._tidy(job)

    def cancel(self, job: str) -> None:
        """End a job, unless it is finished already."""
        if job == self._running:
            self._end_process(job)
        self._jobs.cancel(job)
        self._tidy(job)
        self._on_over()

    def stop(self) -> None:
        """End the worker; its job stays unfinished, for the next start to take it up."""
        self._stopping.set()
        if self._running is not None and self._end_process(self._running):
            self._jobs.put_back(self._running)
        elif self._watching is not None:
            self._watching.join(timeout=2)  # it may be noting that all were ended together

    def _end_process(self, job: str) -> bool:
        """End the process, if it runs; return whether it did."""
        process = self._process
        if process is None or process.poll() is not None:
            return False
        self._expected.add(job)
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return True

    def _tidy(self, job: str) -> None:
        _tidy(self._settings.data / "work" / job)

    def _watch(self, process: subprocess.Popen[bytes], job: str, work: Path) -> None:
        code = process.wait()
        if job in self._expected:
            return
        if (code < 0 or code in (LOST_INDEX, OCCUPIED)) and job == self._patient.unfinished():
            if code == OCCUPIED:  # perhaps on this very one, cut off from those who watched it
                _log.warning("Training %s waits for another process that still works.", job)
            else:
                self._note_a_kill(-code, job)
            self._go_on(job)
            return
        if code:
            # A sentence that the worker itself has left stays: a finished job is not changed.
            self._patient.fail(
                job, f"The training process ended with code {code}; its log is work/{job}/{LOG}."
            )
            _log.error("Training %s failed; see %s.", job, work / LOG)
        self._tidy(job)
        self._on_over()

    def _note_a_kill(self, number: int, job: str) -> None:
        if number > 0:
            _log.error("The process of training %s was ended by signal %d.", job, number)
        else:
            _log.error("The process of training %s has lost the index or the storage.", job)
        if number in (signal.SIGTERM, signal.SIGINT, -LOST_INDEX):
            self._patient.put_back(job)
        self._kills[job] += 1

    def _go_on(self, job: str) -> None:
        if self._stopping.wait(PAUSE_SECONDS) or job != self._patient.unfinished():
            return
        try:
            runs = self._take_up(job)
        except DISK_ERRORS as error:
            runs = False
            _log.error("Training %s cannot go on. %s", job, disk_problem(error)[1])
        if not runs:
            self._on_over()


def sweep(data: Path, jobs: Jobs) -> None:
    """Delete what finished trainings have left: all but the logs of the latest."""
    latest, unfinished = [row["id"] for row in jobs.page(limit=_LOGS)], jobs.unfinished()
    for folder in (data / "work").glob("*/"):
        if folder.name not in latest:
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.name != unfinished:
            _tidy(folder)


def _tidy(work: Path) -> None:
    """Delete what a job that is over has left; its log stays."""
    for path in work.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOG:
            path.unlink(missing_ok=True)
