"""The index of the corrections: what the files hold, in SQLite, to be searched and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ewc_tutorial.speech.database import Database


def now() -> str:
    """Return the time as the index has it: in UTC, to the millisecond, so that it sorts."""
    return time_before(timedelta())


def time_before(span: timedelta) -> str:
    """Return the time so long ago, as the index has it."""
    return (datetime.now(UTC) - span).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Correction:
    """A row of the index.

    Attributes:
        seq: counts up in the order of arrival, and is never given again.
        text, sent: as the model writes it, and as it was sent.
        sha256: of the audio file.
        sound: of the samples at 16 kHz (:func:`~ewc_tutorial.speech.audio.fingerprint`).
        first: the number of the first correction of this sound: all of one sound are on one side
            of the split.
    """

    seq: int
    id: str
    created: str
    text: str
    format: str
    rate: int
    seconds: float
    bytes: int
    sha256: str
    sent: str
    sound: str
    first: int


@dataclass(frozen=True)
class Deletion:
    """What stays of a correction that was deleted: nothing of its recording or its text."""

    seq: int
    id: str
    created: str
    deleted: str
    reason: str


class Index:
    """The rows of corrections, and of what was deleted."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def enter(self, row: dict[str, Any], before_commit: Callable[[Correction], None]) -> Correction:
        """Enter a correction and return it.

        Args:
            row: the fields of a :class:`Correction`; without ``seq`` it gets the next number, and
                without ``first`` that of the others with its sound.
            before_commit: gets the correction; if it raises, nothing is entered.

        Raises:
            sqlite3.IntegrityError: its id or number is there, or its file with this text.
        """
        names = ", ".join(row)
        with self._database.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            cursor = connection.execute(
                f"INSERT INTO corrections ({names}) VALUES ({', '.join('?' * len(row))})",
                tuple(row.values()),
            )
            connection.execute(
                "UPDATE corrections SET first = COALESCE(first, "
                "(SELECT MIN(first) FROM corrections WHERE sound = ?), seq) WHERE seq = ?",
                (row["sound"], cursor.lastrowid),
            )
            correction = Correction(
                **connection.execute(
                    "SELECT * FROM corrections WHERE seq = ?", (cursor.lastrowid,)
                ).fetchone()
            )
            before_commit(correction)
        return correction

    def find(self, sha256: str, text: str) -> Correction | None:
        """Return the correction with this file and this text, or None."""
        return self._one("sha256 = ? AND text = ?", sha256, text)

    def get(self, correction_id: str) -> Correction | None:
        """Return a correction, or None."""
        return self._one("id = ?", correction_id)

    def _one(self, condition: str, *values: Any) -> Correction | None:
        found = self._select(f"WHERE {condition}", *values)
        return found[0] if found else None

    def page(self, after: int = 0, limit: int = 100) -> list[Correction]:
        """Return the next corrections after number ``after``, in the order of arrival."""
        return self._select("WHERE seq > ? ORDER BY seq LIMIT ?", after, limit)

    def up_to(self, last_seq: int) -> list[Correction]:
        """Return all corrections up to a number, in the order of arrival."""
        return self._select("WHERE seq <= ? ORDER BY seq", last_seq)

    def older_than(self, created: str) -> list[Correction]:
        """Return the corrections that came before a time."""
        return self._select("WHERE created < ? ORDER BY seq", created)

    def incomplete(self) -> list[str]:
        """Return the ids of rows that an earlier version of the service has made."""
        with self._database.connection() as connection:
            rows = connection.execute("SELECT id FROM corrections WHERE first IS NULL ORDER BY seq")
            return [row["id"] for row in rows]

    def complete(self, correction_id: str, sound: str | None) -> None:
        """Fill in what such a row lacks; a recording that is gone has no ``sound``."""
        with self._database.connection() as connection:
            connection.execute(
                "UPDATE corrections SET sound = COALESCE(?, id), sent = COALESCE(sent, text) "
                "WHERE id = ?",
                (sound, correction_id),
            )
            connection.execute(
                "UPDATE corrections SET first = (SELECT MIN(COALESCE(other.first, other.seq)) FROM "
                "corrections AS other WHERE other.sound = corrections.sound) WHERE id = ?",
                (correction_id,),
            )

    def _select(self, rest: str, *values: Any) -> list[Correction]:
        with self._database.connection() as connection:
            rows = connection.execute(f"SELECT * FROM corrections {rest}", values).fetchall()
        return [Correction(**row) for row in rows]

    def ids(self) -> set[str]:
        """Return the ids of all corrections."""
        with self._database.connection() as connection:
            return {row["id"] for row in connection.execute("SELECT id FROM corrections")}

    def set_text(
        self, correction_id: str, text: str, sent: str, before_commit: Callable[[], None]
    ) -> None:
        """Put another text in the place of one.

        Raises:
            sqlite3.IntegrityError: its recording is there with this text already.
        """
        with self._database.connection() as connection:
            connection.execute(
                "UPDATE corrections SET text = ?, sent = ? WHERE id = ?",
                (text, sent, correction_id),
            )
            before_commit()

    def delete(
        self, correction: Correction, reason: str, before_commit: Callable[[], None]
    ) -> None:
        """Delete a row; that it was there, and why it is gone, is kept."""
        with self._database.connection() as connection:
            gone = connection.execute("DELETE FROM corrections WHERE id = ?", (correction.id,))
            if gone.rowcount:
                connection.execute(
                    "INSERT INTO deletions VALUES (?, ?, ?, ?, ?)",
                    (correction.seq, correction.id, correction.created, now(), reason),
                )
            before_commit()

    def deletions(self, after: int, limit: int) -> list[Deletion]:
        """Return what was deleted after number ``after``, by number."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT * FROM deletions WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
            ).fetchall()
        return [Deletion(**row) for row in rows]

    def count(self) -> int:
        """Return how many corrections there are."""
        with self._database.connection() as connection:
            return connection.execute("SELECT COUNT(*) FROM corrections").fetchone()[0]

    def last_seq(self) -> int:
        """Return the number of the latest correction, 0 if there is none."""
        with self._database.connection() as connection:
            return connection.execute("SELECT MAX(seq) FROM corrections").fetchone()[0] or 0
