"""The trainings: one row each, of which at most one is at work."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable
from typing import Any

from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.index import now


def _decoded(row: sqlite3.Row, losses: Iterable[sqlite3.Row]) -> dict[str, Any]:
    found = dict(row)
    found["options"] = json.loads(found["options"])
    found["results"] = json.loads(found["results"])
    found["losses"] = [dict(loss) for loss in losses]
    return found


class Jobs:
    """The index of trainings. Server and worker both write to it, each in short transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, options: dict[str, Any], last_seq: int, model_before: str) -> str:
        """Enter a new job, which waits for its turn, and return its id.

        Args:
            options: whatever the worker needs to know, as JSON.
            last_seq: the latest correction that belongs to this training.
            model_before: the version it starts from.
        """
        job = uuid.uuid4().hex
        with self._database.connection() as connection:
            connection.execute(
                "INSERT INTO jobs (id, state, created, options, last_seq, model_before) "
                "VALUES (?, 'waiting', ?, ?, ?, ?)",
                (job, now(), json.dumps(options), last_seq, model_before),
            )
        return job

    def waiting(self) -> list[dict[str, Any]]:
        """Return the jobs that wait for their turn, the first one first, without losses."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT * FROM jobs WHERE state = 'waiting' ORDER BY seq"
            ).fetchall()
        return [_decoded(row, []) for row in rows]

    def queue(self, job: str, options: dict[str, Any], last_seq: int, model_before: str) -> None:
        """Note that a waiting job is next; the arguments of :meth:`create` are as of now."""
        self._update(
            job, "state = 'queued', options = ?, last_seq = ?, model_before = ?",
            json.dumps(options), last_seq, model_before,
        )  # fmt: skip

    def get(self, job: str) -> dict[str, Any] | None:
        """Return a job with its losses, or None."""
        with self._database.connection() as connection:
            row = connection.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
            losses = connection.execute(
                "SELECT step, loss, penalty FROM losses WHERE job = ? ORDER BY step", (job,)
            ).fetchall()
        if row is None:
            return None
        return _decoded(row, losses)

    def unfinished(self) -> str | None:
        """Return the id of the job that is queued or running, or None."""
        with self._database.connection() as connection:
            row = connection.execute(
                "SELECT id FROM jobs WHERE state IN ('queued', 'running')"
            ).fetchone()
        return row["id"] if row else None

    def states(self) -> dict[str, int]:
        """Return how many jobs are in each state that some are in."""
        with self._database.connection() as connection:
            rows = connection.execute("SELECT state, COUNT(*) AS n FROM jobs GROUP BY state")
            return {row["state"]: row["n"] for row in rows}

    def begin(self, job: str) -> None:
        """Note that a worker has taken the job up, for the first time or again."""
        self._update(job, "state = 'running', attempts = attempts + 1")

    def progress(self, job: str, phase: str, progress: float) -> None:
        """Note what the worker is doing and which share of all is done, from 0 to 1."""
        self._update(job, "phase = ?, progress = ?", phase, progress)

    def add_results(self, job: str, results: dict[str, Any]) -> None:
        """Add to the results; a key that is there is replaced."""
        with self._database.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute("SELECT results FROM jobs WHERE id = ?", (job,)).fetchone()
            merged = json.dumps(json.loads(row["results"]) | results)
            connection.execute("UPDATE jobs SET results = ? WHERE id = ?", (merged, job))

    def add_loss(self, job: str, step: int, loss: float, penalty: float) -> None:
        """Note the loss on the new data and the penalty at a step, once more after a resumption."""
        with self._database.connection() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO losses VALUES (?, ?, ?, ?)", (job, step, loss, penalty)
            )

    def finish(self, job: str, model_after: str) -> None:
        """Note that the job is done."""
        self._update(
            job,
            "state = 'done', phase = 'done', progress = 1, model_after = ?, finished = ?",
            model_after,
            now(),
        )

    def fail(self, job: str, sentence: str) -> None:
        """Note that the job has failed, unless it is finished already."""
        self._end(job, "failed", sentence)

    def reject(self, job: str, sentence: str) -> None:
        """Note that the model which the job made is not to be served."""
        self._end(job, "rejected", sentence)

    def cancel(self, job: str) -> None:
        """Note that somebody has ended the job, unless it is finished already."""
        self._end(job, "cancelled", "It was cancelled by a request.")

    def put_back(self, job: str) -> None:
        """Note that an attempt was ended in order, with the server, and does not count."""
        row = self.get(job)
        # A process that was ended before it took the job up has made no attempt.
        stopped = min(row["results"].get("stopped", 0) + 1, row["attempts"])
        self.add_results(job, {"stopped": stopped})

    def cut_off(self, job: str) -> int:
        """Return how many attempts ended in disorder."""
        row = self.get(job)
        return row["attempts"] - row["results"].get("stopped", 0)

    def page(self, before: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Return the latest jobs before number ``before``, the newest first, without losses."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT * FROM jobs WHERE seq < ? ORDER BY seq DESC LIMIT ?",
                (2**62 if before is None else before, limit),
            ).fetchall()
        return [_decoded(row, []) for row in rows]

    def _end(self, job: str, state: str, sentence: str) -> None:
        self._update(job, "state = ?, error = ?, finished = ?", state, sentence, now())

    def _update(self, job: str, assignments: str, *values: Any) -> None:
        with self._database.connection() as connection:
            connection.execute(
                f"UPDATE jobs SET {assignments} WHERE id = ? AND finished IS NULL",
                (*values, job),
            )
