"""The index of the corrections: what the files hold, in a database, to be searched and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.tables import CORRECTIONS, DELETIONS


def now() -> str:
    """Return the time as the index has it: in UTC, to the millisecond, so that it sorts."""
    return time_before(timedelta())


def time_before(span: timedelta) -> str:
    """Return the time so long ago, as the index has it."""
    return (datetime.now(UTC) - span).isoformat(timespec="milliseconds")


def can_be_id(text: str) -> bool:
    """Return whether a row may have this id; of all texts PostgreSQL refuses one character."""
    return "\0" not in text


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
            IntegrityError: its id or number is there, or its file with this text.
        """
        table = CORRECTIONS.c
        first = sa.select(sa.func.min(table.first)).where(table.sound == row["sound"])
        # One after another, so that who reads on behind a number has missed no lower one.
        with self._database.connection(alone=True) as connection:
            seq = row.get("seq") or 1 + max(
                connection.scalar(sa.select(sa.func.max(t.c.seq))) or 0
                for t in (CORRECTIONS, DELETIONS)
            )
            whole = {"first": connection.scalar(first) or seq} | row | {"seq": seq}
            connection.execute(sa.insert(CORRECTIONS).values(whole))
            correction = Correction(**whole)
            before_commit(correction)
        return correction

    def find(self, sha256: str, text: str) -> Correction | None:
        """Return the correction with this file and this text, or None."""
        return self._one(CORRECTIONS.c.sha256 == sha256, CORRECTIONS.c.text == text)

    @contextmanager
    def held(self, **fields: str) -> Iterator[Correction | None]:
        """Yield the correction with these fields, or None; within the block nobody enters, changes
        or deletes any."""
        with self._database.connection(alone=True) as connection:
            wanted = sa.select(CORRECTIONS).filter_by(**fields)
            row = connection.execute(wanted).mappings().first()
            yield None if row is None else Correction(**row)

    def get(self, correction_id: str) -> Correction | None:
        """Return a correction, or None."""
        return self._one(CORRECTIONS.c.id == correction_id) if can_be_id(correction_id) else None

    def _one(self, *conditions: sa.ColumnElement[bool]) -> Correction | None:
        found = self._select(sa.and_(*conditions))
        return found[0] if found else None

    def page(self, after: int = 0, limit: int | None = 100) -> list[Correction]:
        """Return the next corrections after number ``after``, in the order of arrival."""
        return self._select(CORRECTIONS.c.seq > after, limit)

    def up_to(self, last_seq: int) -> list[Correction]:
        """Return all corrections up to a number, in the order of arrival."""
        return self._select(CORRECTIONS.c.seq <= last_seq)

    def older_than(self, created: str) -> list[Correction]:
        """Return the corrections that came before a time."""
        return self._select(CORRECTIONS.c.created < created)

    def incomplete(self) -> list[str]:
        """Return the ids of rows that an earlier version of the service has made."""
        table = CORRECTIONS.c
        with self._database.connection() as connection:
            rows = sa.select(table.id).where(table.first.is_(None)).order_by(table.seq)
            return list(connection.scalars(rows))

    def complete(self, correction_id: str, sound: str | None) -> None:
        """Fill in what such a row lacks; a recording that is gone has no ``sound``."""
        table, other = CORRECTIONS.c, CORRECTIONS.alias().c
        first = sa.select(sa.func.min(sa.func.coalesce(other.first, other.seq)))
        first = first.where(other.sound == table.sound)
        row = sa.update(CORRECTIONS).where(table.id == correction_id)
        with self._database.connection() as connection:
            connection.execute(
                row.values(sound=sound or table.id, sent=sa.func.coalesce(table.sent, table.text))
            )
            connection.execute(row.values(first=first.scalar_subquery()))

    def _select(
        self, condition: sa.ColumnElement[bool], limit: int | None = None
    ) -> list[Correction]:
        wanted = sa.select(CORRECTIONS).where(condition).order_by(CORRECTIONS.c.seq).limit(limit)
        with self._database.connection() as connection:
            return [Correction(**row) for row in connection.execute(wanted).mappings()]

    def ids(self) -> set[str]:
        """Return the ids of all corrections."""
        with self._database.connection() as connection:
            return set(connection.scalars(sa.select(CORRECTIONS.c.id)))

    def set_text(
        self, correction_id: str, text: str, sent: str, before_commit: Callable[[], None]
    ) -> bool:
        """Put another text in the place of one; return whether there is such a correction.

        Raises:
            IntegrityError: its recording is there with this text already.
        """
        row = sa.update(CORRECTIONS).where(CORRECTIONS.c.id == correction_id)
        with self._database.connection(alone=True) as connection:
            there = connection.execute(row.values(text=text, sent=sent)).rowcount > 0
            if there:
                before_commit()
        return there

    def delete(
        self, correction: Correction, reason: str, before_commit: Callable[[Deletion | None], None]
    ) -> None:
        """Delete a row; that it was there, and why it is gone, is kept.

        Args:
            correction: whose row.
            reason: to keep.
            before_commit: gets what is kept, or None if there was no row; if it raises, nothing is
                deleted.
        """
        kept = None
        # Alone, for its files go before its row is seen to be gone.
        with self._database.connection(alone=True) as connection:
            gone = sa.delete(CORRECTIONS).where(CORRECTIONS.c.id == correction.id)
            if connection.execute(gone).rowcount:
                kept = Deletion(correction.seq, correction.id, correction.created, now(), reason)
                # It may have been deleted before, and have come back with its folder from a backup.
                connection.execute(sa.delete(DELETIONS).where(DELETIONS.c.seq == kept.seq))
                connection.execute(sa.insert(DELETIONS).values(asdict(kept)))
            before_commit(kept)

    def restore_deletions(self, rows: list[dict[str, Any]]) -> None:
        """Enter what was deleted, but for what is there, as deleted or as a correction."""
        with self._database.connection(alone=True) as connection:
            known = {
                n for t in (CORRECTIONS, DELETIONS) for n in connection.scalars(sa.select(t.c.seq))
            }
            for row in rows:
                if row["seq"] not in known:
                    connection.execute(sa.insert(DELETIONS).values(row))

    def deletions(self, after: int, limit: int) -> list[Deletion]:
        """Return what was deleted after number ``after``, by number."""
        seq = DELETIONS.c.seq
        wanted = sa.select(DELETIONS).where(seq > after).order_by(seq).limit(limit)
        with self._database.connection() as connection:
            return [Deletion(**row) for row in connection.execute(wanted).mappings()]

    def count(self) -> int:
        """Return how many corrections there are."""
        with self._database.connection() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(CORRECTIONS)) or 0

    def last_seq(self) -> int:
        """Return the number of the latest correction, 0 if there is none."""
        with self._database.connection() as connection:
            return connection.scalar(sa.select(sa.func.max(CORRECTIONS.c.seq))) or 0
