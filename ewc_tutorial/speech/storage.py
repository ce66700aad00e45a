"""Where the files of corrections are kept for good: in a folder, unless a setting says otherwise.

What is kept has a name, the correction's id, and under it a few files. It is put there whole or not
at all. :class:`~ewc_tutorial.speech.objects.Objects` does the same in a storage for objects.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from ewc_tutorial import files
from ewc_tutorial.speech.disk import look_at_disk
from ewc_tutorial.speech.index import Correction
from ewc_tutorial.speech.objects import Objects

#: The ending of a folder in ``incoming`` whose correction is being deleted.
REMOVED = ".removed"


class Storage(Protocol):
    """What corrections need of the place where they are kept.

    All raise OSError where it cannot be used.
    """

    def put(self, half: Path, name: str) -> None:
        """Keep the files of a folder under a name; when this returns, they are durable."""

    def write(self, name: str, file: str, content: bytes) -> None:
        """Give a small file a new content, at once or not at all."""

    def read(self, names: Iterable[str], file: str) -> dict[str, bytes | Exception]:
        """Return the content of a small file of each name, or why it cannot be read."""

    def has(self, name: str, file: str) -> bool:
        """Return whether a file is there."""

    def present(self) -> Callable[[str, str], bool]:
        """Return what tells of many files whether they are there: of a name and a file."""

    def names(self) -> list[str]:
        """Return what is there, in the order of arrival as far as the storage knows it."""

    def delete(self, name: str) -> None:
        """Delete all files of a name."""

    def set_aside(self, name: str) -> None:
        """Note that a name is about to be deleted: after a kill, :meth:`aside` has it."""

    def put_back(self, name: str) -> None:
        """Take back :meth:`set_aside`."""

    def delete_aside(self, name: str) -> None:
        """Delete for good what was set aside, or leave it to the next start if that fails."""

    def aside(self) -> list[str]:
        """Return what an earlier end has left set aside."""

    def sweep(self, known: set[str]) -> int:
        """Delete what was cut off while it was put here, nothing of ``known``; return how many
        names that were. For the start."""

    def copy(self, name: str) -> AbstractContextManager[Path]:
        """Within the block, there is a folder with all files of a name."""

    def local(self, correction: Correction, file: str) -> Path:
        """Return where a recording can be read on this machine, its text beside it; it is not there
        if the storage has it no more."""

    def forget(self, known: Callable[[], set[str]]) -> None:
        """Delete copies on this machine, but for those of the names that ``known`` returns."""

    def look(self) -> None:
        """Raise OSError if it cannot be used now."""

    def check(self) -> None:
        """Raise UnusableStorageError if it cannot be used. For the start."""


class Folder:
    """Keeps corrections in a folder, each in a sub-folder.

    Args:
        folder: of what is whole.
        incoming: of what is half done, on the same file system.
    """

    def __init__(self, folder: Path, incoming: Path) -> None:
        self._folder = folder
        self._incoming = incoming

    def put(self, half: Path, name: str) -> None:
        files.sync_folder(half)
        final = self._folder / name
        shutil.rmtree(final, ignore_errors=True)  # what is left of one that was damaged
        os.rename(half, final)
        files.sync_folder(self._folder)

    def write(self, name: str, file: str, content: bytes) -> None:
        files.replace_file(self._folder / name / file, content)

    def read(self, names: Iterable[str], file: str) -> dict[str, bytes | Exception]:
        found: dict[str, bytes | Exception] = {}
        for name in names:
            try:
                found[name] = (self._folder / name / file).read_bytes()
            except OSError as error:
                found[name] = error
        return found

    def has(self, name: str, file: str) -> bool:
        return (self._folder / name / file).exists()

    def present(self) -> Callable[[str, str], bool]:
        return self.has

    def names(self) -> list[str]:
        here = [path for path in self._folder.iterdir() if path.is_dir()]
        return [path.name for path in sorted(here, key=lambda path: path.stat().st_mtime_ns)]

    def delete(self, name: str) -> None:
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def set_aside(self, name: str) -> None:
        if (self._folder / name).exists():
            os.rename(self._folder / name, self._aside(name))
            files.sync_folder(self._folder)

    def put_back(self, name: str) -> None:
        if self._aside(name).exists():
            os.rename(self._aside(name), self._folder / name)

    def delete_aside(self, name: str) -> None:
        shutil.rmtree(self._aside(name), ignore_errors=True)

    def aside(self) -> list[str]:
        return [path.name.removesuffix(REMOVED) for path in self._incoming.glob(f"*{REMOVED}")]

    def sweep(self, known: set[str]) -> int:
        return 0  # what is half done is in ``incoming``

    @contextmanager
    def copy(self, name: str) -> Iterator[Path]:
        yield self._folder / name

    def local(self, correction: Correction, file: str) -> Path:
        return self._folder / correction.id / file

    def forget(self, known: Callable[[], set[str]]) -> None:
        """Nothing: these are no copies."""

    def look(self) -> None:
        look_at_disk(self._incoming)

    def check(self) -> None:
        """Nothing: it has been made."""

    def _aside(self, name: str) -> Path:
        return self._incoming / f"{name}{REMOVED}"


def storage_of(url: str | None, folder: Path, incoming: Path) -> Storage:
    """Return where corrections are kept.

    Args:
        url: an address that fsspec knows; None is the folder.
        folder: of the corrections, or of copies of them.
        incoming: of what is half done.

    Raises:
        UnusableStorageError: the address leads nowhere, or a package is missing.
    """
    if url is None:
        return Folder(folder, incoming)
    return Objects(url, folder, incoming)
