"""The corrections: a folder with two files for each, and an index.

The order of steps makes an upload safe. Both files are written under ``incoming/ID`` and synced;
then the *folder* is renamed to ``corrections/ID``, which happens at once or not at all; then the
row goes into the index. A kill before the rename leaves half a thing in ``incoming``, which the
next start sweeps away: the sender had no answer. A kill between rename and row leaves a whole
correction without a row, and the next start enters it. Files are the truth, the index can be made
again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from ewc_tutorial import files
from ewc_tutorial.speech import audio
from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.folders import TEXT_NAME

_CHUNK = 2**20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Correction:
    """A row of the index; ``seq`` counts up in the order of arrival, ``sha256`` is the audio's."""

    seq: int
    id: str
    created: str
    text: str
    format: str
    rate: int
    seconds: float
    bytes: int
    sha256: str


class Corrections:
    """Keeps corrections below ``folder``.

    Args:
        folder: gets the sub-folders ``incoming`` and ``corrections``.
        database: holds the index.
        max_bytes, max_seconds: limits of a recording.
    """

    def __init__(
        self, folder: Path, database: Database, max_bytes: int, max_seconds: float
    ) -> None:
        self._incoming = folder / "incoming"
        self._folder = folder / "corrections"
        self._database = database
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        for path in (self._incoming, self._folder):
            path.mkdir(parents=True, exist_ok=True)
        files.sync_folder(folder)

    def add(
        self, sound: BinaryIO, text: str, check: Callable[[audio.Clip], None] | None = None
    ) -> tuple[Correction, bool]:
        """Keep a recording and its text; return the correction and whether it is new.

        When this returns, both files and the index are on the disk. The same bytes with the same
        text are kept once, so that a sender who got no answer can simply send again.

        Args:
            sound: the bytes of the recording.
            text: as the model would write it.
            check: gets what is known of the recording and may refuse it.

        Raises:
            RefusedError: the recording is too large or is none.
        """
        correction_id = uuid.uuid4().hex
        half = self._incoming / correction_id
        half.mkdir()
        try:
            clip, content = self._write(half, sound, text, check)
            known = self._find(content, text)
            if known is not None and self.path(known).exists():
                return known, False
            files.sync_folder(half)
            final = self._folder / (known.id if known else correction_id)
            shutil.rmtree(final, ignore_errors=True)  # what is left of one that was damaged
            os.rename(half, final)
        finally:
            shutil.rmtree(half, ignore_errors=True)
        files.sync_folder(self._folder)
        if known is not None:
            return known, True
        try:
            return self._enter(final, clip, text, content)
        except (sqlite3.Error, OSError):
            shutil.rmtree(final, ignore_errors=True)  # the sender hears that it is not kept
            raise

    def _write(
        self,
        half: Path,
        sound: BinaryIO,
        text: str,
        check: Callable[[audio.Clip], None] | None,
    ) -> tuple[audio.Clip, str]:
        """Write both files; return what the recording is, and its hash."""
        digest, size = hashlib.sha256(), 0
        path = half / "audio.part"
        with files.synced(path) as file:
            while chunk := sound.read(_CHUNK):
                size += len(chunk)
                if size > self._max_bytes:
                    raise RefusedError(f"audio must have at most {self._max_bytes:,} bytes.", 413)
                digest.update(chunk)
                file.write(chunk)
        clip, _ = audio.decode(path, self._max_seconds)
        if check is not None:
            check(clip)
        os.rename(path, half / f"audio.{clip.format}")
        with files.synced(half / TEXT_NAME) as file:
            file.write(text.encode())
        return clip, digest.hexdigest()

    def _enter_from_disk(self, folder: Path) -> None:
        (path,) = folder.glob("audio.*")
        clip, _ = audio.decode(path, self._max_seconds)
        text = (folder / TEXT_NAME).read_text(encoding="utf-8")
        self._enter(folder, clip, text, hashlib.sha256(path.read_bytes()).hexdigest())

    def _enter(
        self, folder: Path, clip: audio.Clip, text: str, content: str
    ) -> tuple[Correction, bool]:
        """Enter a whole folder into the index."""
        size = (folder / f"audio.{clip.format}").stat().st_size
        row = (
            folder.name, datetime.now(UTC).isoformat(timespec="milliseconds"), text, clip.format,
            clip.rate, clip.seconds, size, content,
        )  # fmt: skip
        try:
            with self._database.connection() as connection:
                connection.execute(
                    "INSERT INTO corrections (id, created, text, format, rate, seconds, bytes, "
                    "sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
        except sqlite3.IntegrityError:
            # Sent twice at the same time: the other one was first.
            shutil.rmtree(folder)
            known = self._find(content, text)
            assert known is not None
            return known, False
        added = self._find(content, text)
        assert added is not None
        return added, True

    def get(self, correction_id: str) -> Correction | None:
        """Return a correction, or None."""
        with self._database.connection() as connection:
            row = connection.execute(
                "SELECT * FROM corrections WHERE id = ?", (correction_id,)
            ).fetchone()
        return Correction(**row) if row else None

    def path(self, correction: Correction) -> Path:
        """Return where its recording is; the file may be gone."""
        return self._folder / correction.id / f"audio.{correction.format}"

    def change_text(self, correction: Correction, text: str) -> Correction:
        """Put another text in the place of a correction's.

        Raises:
            RefusedError: (409) the recording is there with this text already, or its file is gone.
        """
        folder = self._folder / correction.id
        if not folder.exists():
            raise RefusedError("The files of this correction are gone: send it again.", 409)
        try:
            with self._database.connection() as connection:
                connection.execute(
                    "UPDATE corrections SET text = ? WHERE id = ?", (text, correction.id)
                )
                # Inside the transaction: if either cannot be done, neither is.
                files.replace_file(folder / TEXT_NAME, text.encode())
        except sqlite3.IntegrityError:
            raise RefusedError("This recording is there with this text already.", 409) from None
        return replace(correction, text=text)

    def remove(self, correction: Correction) -> None:
        """Delete a correction. Models that have learned from it are not changed by this."""
        folder = self._folder / correction.id
        gone = self._incoming / f"{correction.id}.removed"  # swept away after a kill
        if folder.exists():
            os.rename(folder, gone)
            files.sync_folder(self._folder)
        with self._database.connection() as connection:
            connection.execute("DELETE FROM corrections WHERE id = ?", (correction.id,))
        shutil.rmtree(gone, ignore_errors=True)
        _log.info("Correction %s was deleted by a request.", correction.id)

    def recover(self) -> None:
        """Put folder and index in order after an end at any point. For the start only."""
        swept = files.sweep(self._incoming)
        if swept:
            _log.warning("%d uploads that were cut off have been removed.", swept)
        with self._database.connection() as connection:
            known = {row["id"] for row in connection.execute("SELECT id FROM corrections")}
        here = {path.name: path for path in self._folder.iterdir() if path.is_dir()}
        for name in sorted(here.keys() - known):
            try:
                self._enter_from_disk(here[name])
                _log.warning("Correction %s was whole on disk and is now in the index.", name)
            except (RefusedError, ValueError, OSError) as error:
                _log.error("Folder %s is no correction and is left alone: %s", here[name], error)
        for name in sorted(known - here.keys()):
            _log.error("The files of correction %s are gone; it is not used in training.", name)
        self._take_texts_from_files(here.keys() & known)

    def _take_texts_from_files(self, names: Iterable[str]) -> None:
        """After a kill while a text was changed, the index may have the earlier one."""
        with self._database.connection() as connection:
            rows = connection.execute("SELECT id, text FROM corrections").fetchall()
        indexed = {row["id"]: row["text"] for row in rows}
        for name in names:
            try:
                text = (self._folder / name / TEXT_NAME).read_text(encoding="utf-8")
                if text != indexed[name]:
                    with self._database.connection() as connection:
                        connection.execute(
                            "UPDATE corrections SET text = ? WHERE id = ?", (text, name)
                        )
            except (OSError, ValueError, sqlite3.IntegrityError) as error:
                _log.error("The text of correction %s cannot be used: %s", name, error)

    def count(self) -> int:
        """Return how many corrections there are."""
        with self._database.connection() as connection:
            return connection.execute("SELECT COUNT(*) FROM corrections").fetchone()[0]

    def last_seq(self) -> int:
        """Return the number of the latest correction, 0 if there is none."""
        with self._database.connection() as connection:
            return connection.execute("SELECT MAX(seq) FROM corrections").fetchone()[0] or 0

    def page(self, after: int = 0, limit: int = 100) -> list[Correction]:
        """Return the next corrections after number ``after``, in the order of arrival."""
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT * FROM corrections WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
            ).fetchall()
        return [Correction(**row) for row in rows]

    def split(self, last_seq: int, hold_out: int) -> tuple[list[Path], list[Path]]:
        """Return the recordings to train on and to measure on, up to number ``last_seq``.

        Which is which depends on the number alone (every ``hold_out``-th, from the second on), so
        what once was kept for measuring is never trained on later. A recording that was sent with
        several texts has the number of the first, else it would be trained and measured on.
        """
        parts: tuple[list[Path], list[Path]] = ([], [])
        with self._database.connection() as connection:
            rows = connection.execute(
                "SELECT id, format, MIN(seq) OVER (PARTITION BY sha256) AS first FROM corrections "
                "WHERE seq <= ? ORDER BY seq",
                (last_seq,),
            ).fetchall()
        for row in rows:
            path = self._folder / row["id"] / f"audio.{row['format']}"
            if path.exists():
                parts[row["first"] % hold_out == 2 % hold_out].append(path)
        return parts

    def _find(self, content: str, text: str) -> Correction | None:
        with self._database.connection() as connection:
            row = connection.execute(
                "SELECT * FROM corrections WHERE sha256 = ? AND text = ?", (content, text)
            ).fetchone()
        return Correction(**row) if row else None
