"""Corrections in a storage for objects, such as S3's: anything that fsspec has an address for.

Such a storage cannot rename, so the order of its objects says what is whole: recording and text
come first, ``about.json`` last, just before the row in the index is committed. What has no
``about.json`` was never answered, and is swept away. What is being deleted has an object
``removed``, written before the row goes, and lost with all others after. So a kill at any moment
leaves what a start can put in order, and the index can be made again from a listing.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ewc_tutorial import files
from ewc_tutorial.speech import audio
from ewc_tutorial.speech.disk import look_at_disk
from ewc_tutorial.speech.errors import RefusedError, StorageError, UnusableStorageError
from ewc_tutorial.speech.folders import TEXT_NAME
from ewc_tutorial.speech.index import Correction

#: What only the index knows of a correction.
ABOUT = "about.json"
_REMOVED = "removed"
_START = "start"
#: What is this young may still be under way, from a service that has just lost its index.
REMAINS = timedelta(hours=1)
_log = logging.getLogger(__name__)


class Objects:
    """Keeps corrections below an address; the methods are those of
    :class:`~ewc_tutorial.speech.storage.Storage`.

    Args:
        url: for fsspec.
        cache: folder for copies of recordings that are read on this machine.
        incoming: folder of what is half done.

    Raises:
        UnusableStorageError: the address is none, or a package for it is missing.
    """

    def __init__(self, url: str, cache: Path, incoming: Path) -> None:
        self._cache = cache
        self._incoming = incoming
        kind = url.partition("://")[0]
        try:
            # A listing that is kept would not show what another machine has written.
            self._fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise UnusableStorageError(
                f"EWC_SPEECH_STORAGE of the kind {kind}:// needs a package: {error}."
            ) from None
        except Exception as error:
            raise UnusableStorageError(
                f"EWC_SPEECH_STORAGE cannot be used: {_first_line(error)}"
            ) from None
        self._root = f"{root.rstrip('/')}/corrections"
        self._local = isinstance(self._fs, LocalFileSystem)

    def check(self) -> None:
        """Write an object and delete it again. For the start.

        Raises:
            UnusableStorageError: it cannot be done.
        """
        try:
            self.write(_START, "check", b"The service can write here.\n")
            self.delete(_START)
        except OSError as error:
            raise UnusableStorageError(
                f"EWC_SPEECH_STORAGE cannot be used: {_first_line(error.__cause__ or error)}"
            ) from None

    def put(self, half: Path, name: str) -> None:
        for path in sorted(half.iterdir(), key=lambda path: path.name == ABOUT):
            self._upload(path, self._path(name, path.name))

    def write(self, name: str, file: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=self._incoming) as folder:
            half = Path(folder) / file
            half.write_bytes(content)  # and closed: Windows opens no temporary file twice
            self._upload(half, self._path(name, file))

    def _upload(self, source: Path, target: str) -> None:
        with _reaching():
            try:
                (self._copy_synced if self._local else self._fs.put_file)(str(source), target)
            except FileNotFoundError as error:  # there is no such bucket
                raise StorageError(error.errno, _first_line(error)) from error

    @staticmethod
    def _copy_synced(source: str, target: str) -> None:
        """As ``put_file`` does, which leaves it to the system when files reach the disk."""
        path = Path(target)
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
            files.sync_folder(folder.parent)
        with open(source, "rb") as content, files.replacing(path) as file:
            shutil.copyfileobj(content, file)

    def read(self, names: Iterable[str], file: str) -> dict[str, bytes | Exception]:
        paths = {self._fs._strip_protocol(self._path(name, file)): name for name in names}
        if not paths:
            return {}
        with _reaching():
            found = self._fs.cat(list(paths), recursive=False, on_error="return")
        if not isinstance(found, dict):  # which fsspec returns for several
            found = dict.fromkeys(paths, found)
        return {
            paths[path]: _as_our_error(content) if isinstance(content, Exception) else content
            for path, content in found.items()
        }

    def has(self, name: str, file: str) -> bool:
        with _reaching():
            try:
                self._fs.invalidate_cache()
                self._fs.info(self._path(name, file))  # isfile() would say no to any error
            except FileNotFoundError:
                return False
            return True

    def present(self) -> Callable[[str, str], bool]:
        found = self._found()
        return lambda name, file: file in found.get(name, ())

    def names(self) -> list[str]:
        found = self._found().items()
        return sorted(name for name, there in found if ABOUT in there and _REMOVED not in there)

    def delete(self, name: str) -> None:
        """Without ``about.json`` the rest is swept at a start, whatever becomes of it now."""
        with _reaching():
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name, ABOUT))
            with suppress(FileNotFoundError):
                self._fs.rm(f"{self._root}/{name}", recursive=True)
        shutil.rmtree(self._cache / name, ignore_errors=True)

    def set_aside(self, name: str) -> None:
        self.write(name, _REMOVED, b"This correction is being deleted.\n")

    def put_back(self, name: str) -> None:
        with _reaching(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name, _REMOVED))

    def delete_aside(self, name: str) -> None:
        try:
            self.delete(name)
        except OSError as error:
            _log.error("The objects of correction %s go at the next start: %s", name, error)

    def aside(self) -> list[str]:
        return [name for name, there in self._found().items() if _REMOVED in there]

    def sweep(self, known: set[str]) -> int:
        swept, young = 0, datetime.now(UTC) - REMAINS
        for name, there in self._found().items():
            if name in known or there & {ABOUT, _REMOVED}:
                continue
            if self._last_change(name, there) < young:
                self.delete(name)
                swept += 1
        return swept

    def _last_change(self, name: str, there: set[str]) -> datetime:
        with _reaching():
            times = [self._fs.modified(self._path(name, file)) for file in there]
        return max(t if t.tzinfo else t.replace(tzinfo=UTC) for t in times)

    @contextmanager
    def copy(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._incoming) as folder:
            for file in self._found(name).get(name, ()):
                self._download(name, file, Path(folder) / file)
            yield Path(folder)

    def local(self, correction: Correction, file: str) -> Path:
        folder = self._cache / correction.id
        path = folder / file
        folder.mkdir(exist_ok=True)
        if not (path.exists() and _is_whole(path, correction)):
            path.unlink(missing_ok=True)
            # A folder of its own: two may want the same at once.
            with tempfile.TemporaryDirectory(dir=folder) as half, suppress(FileNotFoundError):
                part = Path(half) / file
                self._download(correction.id, file, part)
                if _is_whole(part, correction):
                    part.replace(path)
                else:
                    _log.error("%s of correction %s is damaged there.", file, correction.id)
        text, sent = folder / TEXT_NAME, correction.sent.encode()
        if not text.exists() or text.read_bytes() != sent:
            files.replace_file(text, sent)
        return path

    def forget(self, known: Callable[[], set[str]]) -> None:
        copies = list(self._cache.iterdir())
        names = known()  # of these copies all; later ones are another matter
        for path in copies:
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True)

    def look(self) -> None:
        look_at_disk(self._incoming)
        if self._local:
            look_at_disk(Path(self._root))
        else:
            self.has(_START, "check")

    def _download(self, name: str, file: str, target: Path) -> None:
        with _reaching():
            self._fs.get_file(self._path(name, file), str(target))

    def _found(self, name: str = "") -> dict[str, set[str]]:
        """Return the files of each name, or of one."""
        found: dict[str, set[str]] = {}
        with _reaching(), suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            for path in self._fs.find(f"{self._root}/{name}".rstrip("/")):
                *_, parent, file = path.split("/")
                found.setdefault(parent, set()).add(file)
        return found

    def _path(self, name: str, file: str) -> str:
        return f"{self._root}/{name}/{file}"


@contextmanager
def _reaching() -> Iterator[None]:
    """Make one kind of error of all that the packages behind fsspec raise."""
    try:
        yield
    except (StorageError, FileNotFoundError):
        raise
    except Exception as error:
        raise _as_our_error(error) from error


def _as_our_error(error: Exception) -> OSError:
    if isinstance(error, (StorageError, FileNotFoundError)):
        return error
    return StorageError(getattr(error, "errno", None), _first_line(error))


def _is_whole(path: Path, correction: Correction) -> bool:
    """Return whether a file is what the index has a hash of, as sent or, converted, as a sound."""
    if not (path.name == "audio.flac" and correction.format not in audio.NATIVE):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == correction.sha256
    try:
        return audio.fingerprint(audio.read(path)) == correction.sound
    except RefusedError:
        return False


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
