"""The index: a file of SQLite, so set that what was committed survives ``kill -9`` and a power cut,
or a database of a PostgreSQL server, where one host is not enough."""

from __future__ import annotations

import copy
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError, SQLAlchemyError

from ewc_tutorial.speech import tables
from ewc_tutorial.speech.errors import AlreadyServedError, UnusableIndexError

BUSY_SECONDS = 30.0
#: How PostgreSQL tells this service's locks from those of others: any number will do.
_OURS = 0x45_57_43
_WRITING = 0
_NAMED = {"server": 1, "worker": 2}
_log = logging.getLogger(__name__)


class Database:
    """An index; every use has a connection of its own, so threads need no care.

    Of SQLite one more stays open and idle: the files beside it that readers need stay with it,
    where a full disk would not let them be made.

    Args:
        place: a file of SQLite, or the address of a database: ``postgresql://USER@HOST/NAME``.
        patience: seconds to wait for a server that is gone, before that is an error.

    Attributes:
        on_server: whether it is PostgreSQL's.

    Raises:
        UnusableIndexError: the address cannot be used.
    """

    def __init__(self, place: Path | str, patience: float = 0.0) -> None:
        self.on_server = not isinstance(place, Path)
        self._engine = _on_server(str(place)) if self.on_server else _in_file(str(place))
        self._patience = patience
        try:
            if not self.on_server:
                with self._engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            with self.connection(alone=True) as connection:
                tables.create(connection)
        except SQLAlchemyError as error:
            if self.on_server:
                raise UnusableIndexError(
                    f"EWC_SPEECH_DATABASE cannot be used: {cause(error)}."
                ) from None
            raise
        if not self.on_server:
            self._open = self._engine.connect()
            self._open.exec_driver_sql("SELECT COUNT(*) FROM jobs").fetchone()
            self._open.rollback()

    def close(self) -> None:
        """Let go of the file, or of all idle connections."""
        if not self.on_server:
            self._open.close()
        self._engine.dispose()

    def patient(self, seconds: float) -> Database:
        """Return the same index with another patience."""
        waiting = copy.copy(self)
        waiting._patience = seconds
        return waiting

    @contextmanager
    def connection(self, alone: bool = False) -> Iterator[sa.Connection]:
        """Yield a connection in one transaction: committed at the end, undone at an exception.

        Args:
            alone: no other transaction that says so is under way meanwhile, for what reads and
                then writes what depends on it.
        """
        with self._connect() as connection:
            if not self.on_server:
                connection.exec_driver_sql("BEGIN IMMEDIATE" if alone else "BEGIN")
            elif alone:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_OURS, _WRITING)))
            yield connection
            connection.commit()

    def _connect(self) -> sa.Connection:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return self._engine.connect()
            except OperationalError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(min(1.0, self._patience))

    def hold(self, name: str, seconds: float = 0.0) -> sa.Connection:
        """Return a lock of a PostgreSQL index that nobody else gets while this process lives and
        does not ``invalidate()`` the returned object.

        Args:
            name: ``server`` or ``worker``.
            seconds: to wait for it.

        Raises:
            AlreadyServedError: another process still has it after ``seconds``.
        """
        held = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # A holder whose machine has lost its power is forgotten in a minute, not in two hours.
        for key, value in (("idle", 30), ("interval", 10), ("count", 3)):
            held.exec_driver_sql(f"SET tcp_keepalives_{key} = {value}")
        deadline = time.monotonic() + seconds
        while not held.scalar(sa.select(sa.func.pg_try_advisory_lock(_OURS, _NAMED[name]))):
            if time.monotonic() >= deadline:
                held.invalidate()
                raise AlreadyServedError(
                    f"Another {name} of the speech service already works with this index: stop it, "
                    "or set EWC_SPEECH_DATABASE to another one."
                )
            time.sleep(0.1)
        return held


def _in_file(path: str) -> sa.Engine:
    # Connections are not kept: a file that is gone or exchanged does no harm for long.
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=path),
        poolclass=sa.NullPool,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin where connection() says
        # A commit returns only when the log is on the disk.
        connection.execute("PRAGMA synchronous = FULL")

    return engine


def _on_server(address: str) -> sa.Engine:
    try:
        engine = sa.create_engine(
            sa.make_url(address).set(drivername="postgresql+psycopg"),
            pool_size=10,
            max_overflow=40,
            pool_timeout=BUSY_SECONDS,
            pool_pre_ping=True,  # of connections that a restart of the server has closed
            # A server whose machine has lost its power is given up after a quarter of a minute.
            connect_args={"connect_timeout": 5, "tcp_user_timeout": 15_000},
            hide_parameters=True,
        )
    except ImportError as error:
        raise UnusableIndexError(
            f"EWC_SPEECH_DATABASE needs {error.name}: pip install 'ewc-tutorial[speech-hosts]'."
        ) from None
    except (SQLAlchemyError, ValueError) as error:
        raise UnusableIndexError(f"EWC_SPEECH_DATABASE cannot be used: {cause(error)}.") from None

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: Any, _: object) -> None:
        # A commit returns only when it is on the server's disk, whatever its default is.
        if connection.execute("SHOW synchronous_commit").fetchone()[0] == "off":
            connection.execute("SET synchronous_commit TO on")
        connection.commit()

    return engine


def cause(error: Exception) -> str:
    """Return the first line of what a driver says, without the statement that it came from."""
    said = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return str(said).strip().partition("\n")[0].rstrip(".")


def is_lost(error: Exception) -> bool:
    """Return whether a connection broke, so that what it was to commit may be there or not."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def open_database(path: Path) -> Database:
    """Return the database in a file. One that is damaged is put aside and a new one begun, into
    which corrections and trainings come from their files; losses are lost. For the start only.
    """
    try:
        database = Database(path)
        with database.connection() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if found == "ok":
            return database
        database.close()
    except DatabaseError as error:
        if type(error.orig) is not sqlite3.DatabaseError:  # it is locked, the disk is full, …
            raise
        found = cause(error)
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    for ending in ("", "-wal", "-shm"):
        if (part := path.with_name(path.name + ending)).exists():
            part.rename(aside.with_name(aside.name + ending))
    _log.error("The index is damaged (%s) and is made again; it is kept as %s.", found, aside.name)
    return Database(path)


def lock_folder(folder: Path, name: str, seconds: float = 0.0) -> sqlite3.Connection:
    """Return a lock that no other process gets while this one holds the returned object.

    It is SQLite's own lock on an otherwise empty file: it works on every system, and the system
    takes it away from a process that was killed.

    Raises:
        AlreadyServedError: another process still has it after ``seconds``.
    """
    lock = sqlite3.connect(
        folder / name, timeout=seconds, isolation_level=None, check_same_thread=False
    )
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        lock.close()
        raise AlreadyServedError(
            f"Another speech service is already working on the folder {str(folder)!r}: stop it, or "
            "set EWC_SPEECH_DATA to another folder."
        ) from None
    return lock
