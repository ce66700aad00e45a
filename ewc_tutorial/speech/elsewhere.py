"""Trainings on other machines, which take them from a queue in the PostgreSQL of the index.

The queue is procrastinate's: it wakes a worker at once, gives each task to one alone, and keeps the
workers' signs of life. What a training is and how far it has come stays in the table of jobs; a
task holds the job's id and the service's settings, and is put in again whenever an unfinished job
has none.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ewc_tutorial.speech.database import Database, cause
from ewc_tutorial.speech.errors import UnusableIndexError
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.runner import MAX_ATTEMPTS, sweep
from ewc_tutorial.speech.settings import Settings

try:
    import procrastinate
    from procrastinate.exceptions import ConnectorException
    from psycopg_pool import PoolTimeout
except ImportError as missing:
    raise UnusableIndexError(
        f"EWC_SPEECH_WORKER needs {missing.name}: pip install 'ewc-tutorial[speech-hosts]'."
    ) from None

#: What a PostgreSQL that cannot be reached raises.
LOST = (ConnectorException, PoolTimeout, SQLAlchemyError)
TASK = "train"
#: The settings that each machine has of its own.
OWN = frozenset({"data", "old", "database", "threads"})
#: Between two looks of the service at the queue, and of a worker at its job.
LOOK_SECONDS = 1.0
#: Between two signs of life of a worker, and after how long without one it is given up.
ALIVE_SECONDS, DEAD_SECONDS = 5.0, 20.0
#: A worker waits so long for an index that does not answer, before it ends its training.
PATIENCE_SECONDS = 30.0
_log = logging.getLogger(__name__)


def queue_of(settings: Settings) -> procrastinate.App:
    """Return procrastinate's application, to be opened."""
    pool = {"min_size": 1, "max_size": 4, "timeout": 10.0}
    return procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=settings.database, **pool)
    )


def make_tables(database: Database) -> None:
    """Make procrastinate's tables, unless they are there."""
    with database.connection(alone=True) as connection:
        if connection.scalar(sa.select(sa.func.to_regclass("procrastinate_jobs"))) is None:
            schema = procrastinate.schema.SchemaManager.get_schema()
            connection.connection.driver_connection.execute(schema)


class Queue:
    """In the place of a :class:`~ewc_tutorial.speech.runner.Runner`: others run the trainings.

    Args:
        settings: go to the workers, but for what each machine has of its own.
        jobs: the index, which they write to.
        on_over: is called when no job is at work, in a thread of its own.
    """

    def __init__(self, settings: Settings, jobs: Jobs, on_over: Callable[[], None]) -> None:
        self._settings = settings
        self._jobs = jobs
        self._on_over = on_over
        self._stopping = threading.Event()
        logging.getLogger("procrastinate").setLevel(logging.WARNING)
        self._tending = threading.Thread(target=self._tend, daemon=True)

    def recover(self) -> None:
        """Begin to look after the queue. For the start only."""
        sweep(self._settings.data, self._jobs)
        self._tending.start()

    def start(self, job: str) -> None:
        """Nothing: a job that is in the index and not in the queue is put there in a moment."""

    def give_up_the_dead(self) -> None:
        """Nothing: whether its worker lives is looked after all the time."""

    def cancel(self, job: str) -> None:
        """End a job, unless it is finished already; its worker sees that in a moment."""
        self._jobs.cancel(job)
        self._on_over()

    def stop(self) -> None:
        """Look no longer after the queue; the trainings go on without the service."""
        self._stopping.set()

    def _tend(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(self._look_again_and_again())
            except LOST as error:
                _log.error("The queue of trainings cannot be reached: %s.", cause(error))
                self._stopping.wait(LOOK_SECONDS)

    async def _look_again_and_again(self) -> None:
        queue = queue_of(self._settings)
        async with queue.open_async():
            while not self._stopping.is_set():
                await self._look(queue)
                await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, queue: procrastinate.App) -> None:
        job = self._jobs.unfinished()
        if job is None:
            self._on_over()
            return
        manager = queue.job_manager
        tasks = [
            task
            for status in ("todo", "doing")
            for task in await manager.list_jobs_async(task=TASK, status=status, queueing_lock=job)
        ]
        stalled = await manager.get_stalled_jobs(
            task_name=TASK, seconds_since_heartbeat=DEAD_SECONDS
        )
        dead = [task for task in stalled if task.queueing_lock == job]
        if tasks and not dead:
            return
        if (times := self._jobs.cut_off(job)) >= MAX_ATTEMPTS:
            self._jobs.fail(job, f"It was cut off {times} times and is not tried again.")
        elif dead:
            _log.warning("The worker of training %s is gone; another one is to go on.", job)
            await manager.retry_job(dead[0])
        else:
            what = queue.configure_task(TASK, queueing_lock=job)
            sent = self._settings.to_worker()
            await what.defer_async(job=job, settings={k: sent[k] for k in sent.keys() - OWN})


def merged(sent: dict[str, Any], own: Settings) -> Settings:
    """Return the service's settings with those that each machine has of its own."""
    return Settings.model_validate(sent | {name: getattr(own, name) for name in OWN})
