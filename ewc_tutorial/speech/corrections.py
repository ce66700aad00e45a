"""The corrections: a few files for each, in a storage, and an index.

What follows is of the storage that is a folder (:mod:`~ewc_tutorial.speech.storage`); one for
objects keeps the same promise in another way (:mod:`~ewc_tutorial.speech.objects`).

The order of steps makes an upload safe. Recording and text are written under ``incoming/ID`` and
synced; then the *folder* is renamed to ``corrections/ID``, which happens at once or not at all;
then the row goes into the index. A kill before the rename leaves half a thing in ``incoming``,
which the next start sweeps away: the sender had no answer. A kill between rename and row leaves a
whole correction without a row, and the next start enters it (:mod:`~ewc_tutorial.speech.recovery`).

Files are the truth, the index can be made again: ``about.json`` keeps what only the index knows,
the number and the time of arrival, and is written just before the row is committed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy.exc import IntegrityError

from ewc_tutorial import files
from ewc_tutorial.speech import audio, convert
from ewc_tutorial.speech.database import Database, is_lost
from ewc_tutorial.speech.disk import DISK_ERRORS
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.folders import TEXT_NAME
from ewc_tutorial.speech.index import Correction, Deletion, Index, now
from ewc_tutorial.speech.objects import ABOUT
from ewc_tutorial.speech.storage import storage_of
from ewc_tutorial.speech.trail import DELETION, Trail

#: The name, without an ending, of a recording that was sent in a format that ffmpeg reads.
ORIGINAL = "original"
#: What ``about.json`` has.
_KNOWN = {"seq": int, "first": int, "created": str}
_CHUNK = 2**20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """A recording that is on the disk: what it is, the hash of its file, that of its sound."""

    clip: audio.Clip
    bytes: int
    sha256: str
    sound: str


class Corrections:
    """Keeps corrections below ``folder``.

    Args:
        folder: gets the sub-folders ``incoming`` and ``corrections``.
        database: holds the index.
        max_bytes, max_seconds: limits of a recording.
        storage: address of where they are kept [the sub-folder ``corrections``, which otherwise
            has copies of what is read here].

    Attributes:
        index: to search it.
        trail: for an index that must be made again.
        incoming, folder: of what is half done, and of what is whole.
        storage: keeps what is whole.

    Raises:
        UnusableStorageError: the address cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        database: Database,
        max_bytes: int,
        max_seconds: float,
        storage: str | None = None,
    ) -> None:
        self.incoming = folder / "incoming"
        self.folder = folder / "corrections"
        self.index = Index(database)
        self.trail = Trail(folder)
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        for path in (self.incoming, self.folder):
            path.mkdir(parents=True, exist_ok=True)
        files.sync_folder(folder)
        self.storage = storage_of(storage, self.folder, self.incoming)

    def add(
        self,
        sound: BinaryIO,
        text: str,
        check: Callable[[audio.Clip], None] | None = None,
        sent: str | None = None,
    ) -> tuple[Correction, bool]:
        """Keep a recording and its text; return the correction and whether it is new.

        When this returns, both files and the index are on the disk. The same bytes with the same
        text are kept once, so that a sender who got no answer can simply send again.

        Args:
            sound: the bytes of the recording.
            text: as the model would write it.
            check: gets what is known of the recording and may refuse it.
            sent: the text as it was sent, which is what the file keeps [the same].

        Raises:
            RefusedError: the recording is too large or is none.
        """
        correction_id = uuid.uuid4().hex
        half = self.incoming / correction_id
        half.mkdir()
        try:
            written = self._write(half, sound, text if sent is None else sent, check)
            known = self.index.find(written.sha256, text)
            if known is not None:
                if self._is_there(known):
                    return known, False
                if (found := self._bring_back(half, written, text)) is not None:
                    return found
            self.storage.put(half, correction_id)
        finally:
            shutil.rmtree(half, ignore_errors=True)
        try:
            return self.enter(correction_id, written, text, text if sent is None else sent, {})
        except DISK_ERRORS as error:
            if not is_lost(error):  # the index may have it then, and the next start looks
                self.storage.delete(correction_id)  # the sender hears that it is not kept
            raise

    def _bring_back(
        self, half: Path, written: Written, text: str
    ) -> tuple[Correction, bool] | None:
        """Keep what was sent again in the place of files that are gone, and return it as
        :meth:`add` does: None, if they are gone because the correction has just been deleted."""
        with self.index.held(sha256=written.sha256, text=text) as known:
            if known is None:
                return None
            if self._is_there(known):  # it was sent twice at the same time
                return known, False
            files.replace_file(half / ABOUT, about_of(known))
            # What a deletion that broke off has left would else be finished by the next start.
            self.storage.put_back(known.id)
            self.storage.put(half, known.id)
            return known, True

    def _is_there(self, correction: Correction) -> bool:
        return self.storage.has(correction.id, _name_of(correction.format))

    def _write(
        self,
        half: Path,
        sound: BinaryIO,
        text: str,
        check: Callable[[audio.Clip], None] | None,
    ) -> Written:
        """Write both files, each once it is known to be good."""
        size = 0
        path = half / "audio.part"
        with files.synced(path) as file:
            while chunk := sound.read(_CHUNK):
                size += len(chunk)
                if size > self._max_bytes:
                    raise RefusedError(f"audio must have at most {self._max_bytes:,} bytes.", 413)
                file.write(chunk)
        kind = audio.kind_of(path)
        if kind not in audio.NATIVE:  # decoded once, and not anew for each step of a training
            os.rename(path, half / f"{ORIGINAL}.{kind}")
            path = half / "audio.flac"
            convert.to_flac(half / f"{ORIGINAL}.{kind}", path, kind, self._max_seconds)
            files.sync_file(path)
        written = self.look_at(path)
        if check is not None:
            check(written.clip)
        os.rename(path, half / _name_of(written.clip.format))
        with files.synced(half / TEXT_NAME) as file:
            file.write(text.encode())
        return written

    def look_at(self, path: Path) -> Written:
        """Return what a recording is. If there is an original in another format beside it, then
        ``format``, ``bytes`` and ``sha256`` are of that.

        Raises:
            RefusedError: it cannot be used.
        """
        clip, wave = audio.decode(path, self._max_seconds)
        for original in path.parent.glob(f"{ORIGINAL}.*"):
            path, clip = original, replace(clip, format=original.suffix[1:])
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(clip, path.stat().st_size, content, audio.fingerprint(wave))

    def enter(
        self, name: str, written: Written, text: str, sent: str, known: dict[str, Any]
    ) -> tuple[Correction, bool]:
        """Enter what is whole into the index; of two that are the same, the first stays.

        Args:
            name: of its files in the storage.
            written: what its recording is.
            text, sent: as the model writes it, and as it was sent.
            known: ``seq``, ``first`` and ``created``, if it had them before.
        """
        clip = written.clip
        row = {
            "id": name, "created": now(), "text": text, "format": clip.format,
            "rate": clip.rate, "seconds": clip.seconds, "bytes": written.bytes,
            "sha256": written.sha256, "sent": sent, "sound": written.sound, **known,
        }  # fmt: skip
        try:
            return self.index.enter(row, self.write_about), True
        except IntegrityError:
            there = self.index.find(written.sha256, text)
            if there is None:
                raise
            # Sent twice at the same time: the other one was first.
            self.storage.delete(name)
            return there, False

    def write_about(self, correction: Correction) -> None:
        """Put beside a correction's files what only the index knows of it."""
        self.storage.write(correction.id, ABOUT, about_of(correction))

    def path(self, correction: Correction) -> Path:
        """Return where its recording is, as WAV or FLAC; the file may be gone."""
        return self.storage.local(correction, _name_of(correction.format))

    def original(self, correction: Correction) -> Path:
        """Return where its recording is as it was sent."""
        if correction.format in audio.NATIVE:
            return self.path(correction)
        return self.storage.local(correction, f"{ORIGINAL}.{correction.format}")

    def change_text(self, correction: Correction, text: str, sent: str | None = None) -> Correction:
        """Put another text in the place of a correction's; the arguments are as for :meth:`add`.

        Raises:
            RefusedError: (409) the recording is there with this text already, or its file is gone;
                (404) the correction has just been deleted.
        """
        if not self._is_there(correction):
            raise RefusedError("The files of this correction are gone: send it again.", 409)
        sent = text if sent is None else sent
        begun = False

        def write() -> None:  # inside the transaction: if either cannot be done, neither is
            nonlocal begun
            begun = True
            self.storage.write(correction.id, TEXT_NAME, sent.encode())

        try:
            there = self.index.set_text(correction.id, text, sent, write)
        except IntegrityError:
            raise RefusedError("This recording is there with this text already.", 409) from None
        except DISK_ERRORS as error:
            if begun and not is_lost(error):  # the index may have the new text then
                self._write_text_of_index(correction.id)
            raise
        if not there:
            raise RefusedError("There is no correction of this id.", 404)
        return replace(correction, text=text, sent=sent)

    def _write_text_of_index(self, correction_id: str) -> None:
        with self.index.held(id=correction_id) as correction:  # another may have changed it since
            if correction is not None:
                self.storage.write(correction.id, TEXT_NAME, correction.sent.encode())

    def remove(self, correction: Correction, reason: str = "request") -> None:
        """Delete a correction; number, times and reason stay in the index.

        Models that have learned from it are not changed by this.
        """

        def take_away(kept: Deletion | None) -> None:
            self.storage.set_aside(correction.id)  # after a kill the start goes on here
            if kept is not None:
                self.trail.add(DELETION, asdict(kept))

        try:
            self.index.delete(correction, reason, take_away)
        except DISK_ERRORS as error:
            if not is_lost(error):
                self.storage.put_back(correction.id)
            raise
        self.storage.delete_aside(correction.id)
        _log.info("Correction %s was deleted: %s.", correction.id, reason)

    def expire(self, before: str) -> int:
        """Delete what came before a time (as the index has it); return how many there were."""
        found = self.index.older_than(before)
        for correction in found:
            self.remove(correction, "retention")
        return len(found)

    def parts(self, last_seq: int, hold_out: int) -> tuple[list[Correction], list[Correction]]:
        """Return the corrections to train on and to measure on, up to number ``last_seq``.

        Which is which depends on a number alone (every ``hold_out``-th, from the second on), so
        what once was kept for measuring is never trained on later. It is the number of the first
        correction with the same sound: what was sent as WAV and as FLAC, or with several texts, is
        not both trained and measured on. One whose recording is gone is in neither.
        """
        is_there = self.storage.present()
        parts: tuple[list[Correction], list[Correction]] = ([], [])
        for correction in self.index.up_to(last_seq):
            if is_there(correction.id, _name_of(correction.format)):
                parts[correction.first % hold_out == 2 % hold_out].append(correction)
        return parts

    def split(self, last_seq: int, hold_out: int) -> tuple[list[Path], list[Path]]:
        """Return the recordings of :meth:`parts`, each a file on this machine."""
        train, tests = self.parts(last_seq, hold_out)
        return [self.path(c) for c in train], [self.path(c) for c in tests]


def _name_of(kind: str) -> str:
    """Return the name of the file that a recording of this kind is read from."""
    return f"audio.{kind if kind in audio.NATIVE else 'flac'}"


def about_of(correction: Correction) -> bytes:
    """Return the file with what only the index knows of a correction."""
    return json.dumps({name: getattr(correction, name) for name in _KNOWN}).encode()


def read_about(content: bytes | Exception) -> dict[str, Any]:
    """Return what only the index knew of a correction: nothing, if it never had a row."""
    try:
        about = json.loads(content)  # type: ignore[arg-type]
        return {name: kind(about[name]) for name, kind in _KNOWN.items()}
    except (ValueError, TypeError, KeyError):
        return {}
