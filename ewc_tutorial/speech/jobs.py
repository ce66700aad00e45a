"""The trainings: one row each, of which at most one is at work."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.index import can_be_id, now
from ewc_tutorial.speech.tables import JOBS, LOSSES, UNFINISHED


def _decoded(row: Mapping[str, Any], losses: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    found = dict(row)
    found["options"] = json.loads(found["options"])
    found["results"] = json.loads(found["results"])
    found["losses"] = [dict(loss) for loss in losses]
    return found


class Jobs:
    """The index of trainings. Server and worker both write to it, each in short transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def patient(self, seconds: float) -> Jobs:
        """Return the same for those who can wait so long for an index that does not answer."""
        return Jobs(self._database.patient(seconds))

    def create(self, options: dict[str, Any], last_seq: int, model_before: str) -> str:
        """Enter a new job, which waits for its turn, and return its id.

        Args:
            options: whatever the worker needs to know, as JSON.
            last_seq: the latest correction that belongs to this training.
            model_before: the version it starts from.
        """
        job = uuid.uuid4().hex
        row = {
            "id": job, "state": "waiting", "created": now(), "options": json.dumps(options),
            "last_seq": last_seq, "model_before": model_before,
        }  # fmt: skip
        last = sa.select(sa.func.max(JOBS.c.seq))
        with self._database.connection(alone=True) as connection:
            row["seq"] = 1 + (connection.scalar(last) or 0)
            connection.execute(sa.insert(JOBS).values(row))
        return job

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """Enter jobs that are over, as :meth:`page` returned them, but for those that are there."""
        with self._database.connection(alone=True) as connection:
            known = set(connection.scalars(sa.select(JOBS.c.seq)))
            for row in rows:
                if row["seq"] not in known:
                    texts = {name: json.dumps(row[name]) for name in ("options", "results")}
                    connection.execute(sa.insert(JOBS).values(row | texts))

    def waiting(self) -> list[dict[str, Any]]:
        """Return the jobs that wait for their turn, the first one first, without losses."""
        return self._select(sa.select(JOBS).where(JOBS.c.state == "waiting").order_by(JOBS.c.seq))

    def claim(self, job: str, options: dict[str, Any], last_seq: int, model_before: str) -> bool:
        """Note that a waiting job is next; the arguments of :meth:`create` are as of now.

        Returns:
            Whether it is: it may have been cancelled or claimed meanwhile, or another one runs.
        """
        change = sa.update(JOBS).where(JOBS.c.id == job, JOBS.c.state == "waiting")
        try:
            with self._database.connection() as connection:
                claimed = connection.execute(
                    change.values(
                        state="queued", options=json.dumps(options), last_seq=last_seq,
                        model_before=model_before,
                    )
                )  # fmt: skip
                return claimed.rowcount == 1
        except IntegrityError:  # of one_job_at_a_time
            return False

    def get(self, job: str) -> dict[str, Any] | None:
        """Return a job with its losses, or None."""
        if not can_be_id(job):
            return None
        steps = sa.select(LOSSES.c.step, LOSSES.c.loss, LOSSES.c.penalty).where(LOSSES.c.job == job)
        with self._database.connection() as connection:
            row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job)).mappings().first()
            losses = connection.execute(steps.order_by(LOSSES.c.step)).mappings().all()
        return None if row is None else _decoded(row, losses)

    def unfinished(self) -> str | None:
        """Return the id of the job that is queued or running, or None."""
        with self._database.connection() as connection:
            return connection.scalar(sa.select(JOBS.c.id).where(UNFINISHED))

    def is_unfinished(self, job: str) -> bool:
        """Return whether a job is queued or running."""
        with self._database.connection() as connection:
            wanted = sa.select(JOBS.c.seq).where(JOBS.c.id == job, UNFINISHED)
            return connection.scalar(wanted) is not None

    def states(self) -> dict[str, int]:
        """Return how many jobs are in each state that some are in."""
        counted = sa.select(JOBS.c.state, sa.func.count()).group_by(JOBS.c.state)
        with self._database.connection() as connection:
            return dict(tuple(row) for row in connection.execute(counted))

    def begin(self, job: str) -> None:
        """Note that a worker has taken the job up, for the first time or again."""
        self._update(job, state="running", attempts=JOBS.c.attempts + 1)

    def progress(self, job: str, phase: str, progress: float) -> None:
        """Note what the worker is doing and which share of all is done, from 0 to 1."""
        self._update(job, phase=phase, progress=progress)

    def add_results(self, job: str, results: dict[str, Any]) -> None:
        """Add to the results; a key that is there is replaced."""
        with self._database.connection(alone=True) as connection:
            _merge(connection, job, results)

    def add_loss(self, job: str, step: int, loss: float, penalty: float) -> None:
        """Note the loss on the new data and the penalty at a step, once more after a resumption."""
        there = sa.delete(LOSSES).where(LOSSES.c.job == job, LOSSES.c.step == step)
        row = {"job": job, "step": step, "loss": loss, "penalty": penalty}
        with self._database.connection() as connection:
            connection.execute(there)
            connection.execute(sa.insert(LOSSES).values(row))

    def finish(
        self, job: str, model_after: str, serve: Callable[[], dict[str, Any]] = dict
    ) -> bool:
        """Note that the job is done, unless it is finished already; return whether it was not.

        Args:
            serve: puts the model into use and returns more results. A request that cancels the job
                comes before it or after the end.
        """
        change = sa.update(JOBS).where(JOBS.c.id == job, JOBS.c.finished.is_(None))
        done = {"state": "done", "phase": "done", "progress": 1.0, "model_after": model_after}
        with self._database.connection(alone=True) as connection:
            if connection.execute(change.values(**done, finished=now())).rowcount == 0:
                return False
            _merge(connection, job, serve())
        return True

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
        below = JOBS.c.seq < (2**62 if before is None else before)
        return self._select(sa.select(JOBS).where(below).order_by(JOBS.c.seq.desc()).limit(limit))

    def _select(self, wanted: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._database.connection() as connection:
            return [_decoded(row) for row in connection.execute(wanted).mappings()]

    def _end(self, job: str, state: str, sentence: str) -> None:
        # PostgreSQL takes no NUL in a text, which an error's message may have.
        self._update(job, state=state, error=sentence.replace("\0", ""), finished=now())

    def _update(self, job: str, **values: Any) -> None:
        change = sa.update(JOBS).where(JOBS.c.id == job, JOBS.c.finished.is_(None))
        with self._database.connection() as connection:
            connection.execute(change.values(**values))


def _merge(connection: sa.Connection, job: str, results: dict[str, Any]) -> None:
    row = JOBS.c.id == job
    known = connection.scalar(sa.select(JOBS.c.results).where(row))
    merged = json.dumps(json.loads(known) | results)
    connection.execute(sa.update(JOBS).where(row).values(results=merged))
