"""Starts the process of a training, watches it, and ends it with the server."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.settings import Settings

#: So often a job that was cut off is taken up again.
MAX_ATTEMPTS = 3
_log = logging.getLogger(__name__)


class Runner:
    """Runs one worker at a time."""

    def __init__(self, settings: Settings, jobs: Jobs) -> None:
        self._settings = settings
        self._jobs = jobs
        self._process: subprocess.Popen[bytes] | None = None
        self._running: str | None = None
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
        with open(work / "log.txt", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ewc_tutorial.speech.worker", job],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        # Kept open: its end tells the worker that this process is gone.
        process.stdin.write(json.dumps(self._settings.to_worker()).encode() + b"\n")
        process.stdin.flush()
        self._process, self._running = process, job
        threading.Thread(target=self._watch, args=(process, job, work), daemon=True).start()

    def recover(self) -> None:
        """Take up the job that a kill has cut off, if there is one. For the start only."""
        job = self._jobs.unfinished()
        if job is None:
            return
        times = self._jobs.cut_off(job)
        if times >= MAX_ATTEMPTS:
            self._jobs.fail(job, f"It was cut off {times} times and is not tried again.")
            self._tidy(job)
            return
        _log.warning("Training %s was cut off; it goes on from its last checkpoint.", job)
        self.start(job)

    def give_up_the_dead(self) -> None:
        """Fail a job that no process works on: a full disk may have kept it from being noted."""
        job = self._jobs.unfinished()
        alive = self._process is not None and self._process.poll() is None
        if job is not None and not (alive and job == self._running):
            self._jobs.fail(job, "Its process ended and could not leave a message.")
            self._tidy(job)

    def cancel(self, job: str) -> None:
        """End a job, unless it is finished already."""
        if job == self._running:
            self._end_process(job)
        self._jobs.cancel(job)
        self._tidy(job)

    def stop(self) -> None:
        """End the worker; its job stays unfinished, for the next start to take it up."""
        if self._running is not None and self._end_process(self._running):
            self._jobs.put_back(self._running)

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
        """Delete the checkpoints of a job that is over; its log stays."""
        shutil.rmtree(self._settings.data / "work" / job / "checkpoints", ignore_errors=True)

    def _watch(self, process: subprocess.Popen[bytes], job: str, work: Path) -> None:
        code = process.wait()
        if job in self._expected:
            return
        if code:
            # A sentence that the worker itself has left stays: a finished job is not changed.
            self._jobs.fail(
                job, f"The training process ended with code {code}; its log is work/{job}/log.txt."
            )
            _log.error("Training %s failed; see %s.", job, work / "log.txt")
        self._tidy(job)
