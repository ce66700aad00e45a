"""Starts the process of a training, watches it, and ends it with the server."""

from __future__ import annotations

import json
import logging
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
        self._stopping = False

    def start(self, job: str) -> None:
        """Start the worker for a job that is in the index."""
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
        self._process = process
        threading.Thread(target=self._watch, args=(process, job, work), daemon=True).start()

    def recover(self) -> None:
        """Take up the job that a kill has cut off, if there is one. For the start only."""
        job = self._jobs.unfinished()
        if job is None:
            return
        attempts = self._jobs.get(job)["attempts"]
        if attempts >= MAX_ATTEMPTS:
            self._jobs.fail(job, f"It was cut off {attempts} times and is not tried again.")
            return
        _log.warning("Training %s was cut off; it goes on from its last checkpoint.", job)
        self.start(job)

    def stop(self) -> None:
        """End the worker; its job stays unfinished, for the next start to take it up."""
        self._stopping = True
        process = self._process
        if process is not None and process.poll() is None:
            process.stdin.close()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self, process: subprocess.Popen[bytes], job: str, work: Path) -> None:
        code = process.wait()
        if self._stopping:
            return
        if code:
            # A sentence that the worker itself has left stays: a finished job is not changed.
            self._jobs.fail(
                job, f"The training process ended with code {code}; its log is work/{job}/log.txt."
            )
            _log.error("Training %s failed; see %s.", job, work / "log.txt")
