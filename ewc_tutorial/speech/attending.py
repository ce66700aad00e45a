"""A worker for the trainings of a service on another machine.

    python -m ewc_tutorial.speech worker

It takes one training after another from the queue and runs each as the service itself would, in a
process of its own, which is ended with it and taken up again if it is killed alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from typing import Any

from ewc_tutorial.speech import elsewhere
from ewc_tutorial.speech.database import Database, cause
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.private import make_private
from ewc_tutorial.speech.runner import Runner
from ewc_tutorial.speech.settings import PREFIX, Settings

_log = logging.getLogger(__name__)


def attend(own: Settings) -> None:
    """Run trainings until the process is told to end.

    Raises:
        SystemExit: the settings name no index to take them from.
        UnusableIndexError: it cannot be reached.
    """
    logging.getLogger("procrastinate").setLevel(logging.WARNING)  # it writes each task, all of it
    if own.database is None:
        raise SystemExit(f"{PREFIX}DATABASE must be set for a worker: that of the service.")
    own.data.mkdir(parents=True, exist_ok=True)
    make_private(own.data)
    database = Database(own.database)
    elsewhere.make_tables(database)
    jobs = Jobs(database.patient(elsewhere.PATIENCE_SECONDS))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # The first line on the standard output: programs that start the worker wait for it.
    print(f"Worker {os.getpid()} waits for trainings.", flush=True)
    while not stop.is_set():
        try:
            asyncio.run(_work(own, jobs, stop))
        except elsewhere.LOST as error:
            _log.error("The queue of trainings cannot be reached: %s.", cause(error))
            stop.wait(elsewhere.LOOK_SECONDS)


async def _work(own: Settings, jobs: Jobs, stop: threading.Event) -> None:
    queue = elsewhere.queue_of(own)

    @queue.task(name=elsewhere.TASK)
    async def train(job: str, settings: dict[str, Any]) -> None:
        await _train(job, elsewhere.merged(settings, own), jobs)

    async with queue.open_async():
        working = asyncio.create_task(
            queue.run_worker_async(
                install_signal_handlers=False,
                update_heartbeat_interval=elsewhere.ALIVE_SECONDS,
                stalled_worker_timeout=elsewhere.DEAD_SECONDS,
                shutdown_graceful_timeout=0.1,  # what runs is ended, to go on from its checkpoint
                delete_jobs="always",
            )
        )
        while not stop.is_set() and not working.done():
            await asyncio.sleep(0.2)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _train(job: str, settings: Settings, jobs: Jobs) -> None:
    over = threading.Event()
    runner = Runner(settings, jobs, over.set)
    try:
        if await asyncio.to_thread(jobs.is_unfinished, job):
            await asyncio.to_thread(runner.start, job)
            _log.info("Training %s is under way.", job)
        while not over.is_set() and await asyncio.to_thread(jobs.is_unfinished, job):
            await asyncio.sleep(elsewhere.LOOK_SECONDS)
        if not over.is_set():  # it was cancelled
            await asyncio.to_thread(runner.cancel, job)
    finally:
        # Also where this task is cancelled, for the worker is told to end.
        await asyncio.shield(asyncio.to_thread(runner.stop))
