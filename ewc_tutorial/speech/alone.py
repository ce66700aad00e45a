"""That one server at a time works with an index on a PostgreSQL server."""

from __future__ import annotations

import logging
import os
import signal
import threading

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.errors import AlreadyServedError

#: PostgreSQL takes a moment to notice that a server which was killed is gone.
RELEASE_SECONDS = 10.0
#: Between two looks whether the lock is still there.
LOOK_SECONDS = 2.0
_log = logging.getLogger(__name__)


class Alone:
    """The lock of a server on its index, until :meth:`stop` or this process's end.

    It is lost with its connection, when PostgreSQL is restarted for example, and then taken again.
    If another server has it by then, this one ends.

    Raises:
        AlreadyServedError: another server has it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held = database.hold("server", RELEASE_SECONDS)
        self._stopping = threading.Event()
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                if self._held.closed:
                    self._held = self._database.hold("server")
                self._held.scalar(sa.select(1))
            except AlreadyServedError as error:
                _log.error("The index was away for a while. %s This server ends.", error)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except SQLAlchemyError:
                self._held.close()
        if not self._held.closed:
            self._held.invalidate()  # ends the connection, and with it goes the lock

    def stop(self) -> None:
        """Let go of the lock."""
        self._stopping.set()
