"""SQLite, so set that what was committed survives ``kill -9`` and a power cut."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ewc_tutorial.speech.errors import AlreadyServedError

SCHEMA = """
CREATE TABLE IF NOT EXISTS corrections (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT NOT NULL UNIQUE,
    created TEXT NOT NULL,
    text    TEXT NOT NULL,
    format  TEXT NOT NULL,
    rate    INTEGER NOT NULL,
    seconds REAL NOT NULL,
    bytes   INTEGER NOT NULL,
    sha256  TEXT NOT NULL,
    sent    TEXT,
    sound   TEXT,
    first   INTEGER,
    UNIQUE (sha256, text)
);
CREATE TABLE IF NOT EXISTS deletions (
    seq     INTEGER PRIMARY KEY,
    id      TEXT NOT NULL,
    created TEXT NOT NULL,
    deleted TEXT NOT NULL,
    reason  TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS jobs (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT NOT NULL UNIQUE,
    state        TEXT NOT NULL,
    phase        TEXT NOT NULL DEFAULT 'waiting',
    progress     REAL NOT NULL DEFAULT 0,
    created      TEXT NOT NULL,
    finished     TEXT,
    attempts     INTEGER NOT NULL DEFAULT 0,
    options      TEXT NOT NULL,
    last_seq     INTEGER NOT NULL,
    results      TEXT NOT NULL DEFAULT '{}',
    model_before TEXT NOT NULL,
    model_after  TEXT,
    error        TEXT
);
-- At most one job can be unfinished: the database itself refuses a second.
CREATE UNIQUE INDEX IF NOT EXISTS one_job_at_a_time ON jobs ((1))
    WHERE state IN ('queued', 'running');
CREATE TABLE IF NOT EXISTS losses (
    job     TEXT NOT NULL REFERENCES jobs (id),
    step    INTEGER NOT NULL,
    loss    REAL NOT NULL,
    penalty REAL NOT NULL,
    PRIMARY KEY (job, step)
);
"""
#: Columns that a database of an earlier version of the service lacks.
_ADDED = {"corrections": {"sent": "TEXT", "sound": "TEXT", "first": "INTEGER"}}
BUSY_SECONDS = 30.0
_log = logging.getLogger(__name__)


class Database:
    """A file of SQLite; every use has a connection of its own, so threads need no care.

    One more stays open and idle: the files beside it that readers need stay with it, where a full
    disk would not let them be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self.connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(SCHEMA)
            for table, columns in _ADDED.items():
                here = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
                for name, kind in columns.items():
                    if name not in here:
                        connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
        self._open = sqlite3.connect(path, check_same_thread=False)
        self._open.execute("SELECT COUNT(*) FROM jobs").fetchone()

    def close(self) -> None:
        """Let go of the file."""
        self._open.close()

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection in one transaction: committed at the end, undone at an exception."""
        with closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS)) as connection:
            # A commit returns only when the log is on the disk.
            connection.execute("PRAGMA synchronous = FULL")
            connection.row_factory = sqlite3.Row
            with connection:
                yield connection


def open_database(path: Path) -> Database:
    """Return the database in a file. One that is damaged is put aside and a new one begun, into
    which the corrections come from their files; the list of trainings is lost. For the start only.
    """
    try:
        database = Database(path)
        with database.connection() as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found == "ok":
            return database
        database.close()
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # it is locked, the disk is full, …
            raise
        found = str(error)
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
