"""The models before and after: one folder per version, and a pointer to the one in use.

A version is written beside the others under a temporary name, synced, and renamed; then the file
``current``, which holds the version's name, is replaced. Both are atomic: whoever follows the
pointer, at any moment and after any kill, finds a whole model.

Beside the model a folder holds ``version.json``, what is known of it, and perhaps
``importance.pt``, the Fisher information measured at it. A version without its own has that of its
parent, for the penalty that held it when it was made is the one that remembers the old voices.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ewc_tutorial import files

BASE = "base"
IMPORTANCE = "importance.pt"
_ABOUT = "version.json"
_HALF = ".half-"
_CHUNK = 2**20
#: So old is half a version that nobody writes any more.
HALF_SECONDS = 3600.0
_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Versions:
    """The versions below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._pointer = folder / "current"
        self._removed = folder / "removed.json"

    def current(self) -> str | None:
        """Return the name of the version in use, or None before the first."""
        try:
            return self._pointer.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None

    def path(self, name: str) -> Path:
        """Return the folder of a version."""
        return self.folder / name

    def exists(self, name: str) -> bool:
        """Return whether there is a version of this name, which may come from anybody."""
        return _NAME.fullmatch(name) is not None and self.path(name).is_dir()

    def names(self) -> list[str]:
        """Return all versions, the newest first; ``base`` is the oldest."""
        here = [path.name for path in self.folder.iterdir() if self.exists(path.name)]
        return sorted(here, key=lambda name: (name != BASE, name), reverse=True)

    def about(self, name: str) -> dict[str, Any]:
        """Return what is known of a version, also of one that was removed: nothing, if it was made
        by hand or is damaged."""
        return _read(self.path(name) / _ABOUT) or _read(self._removed).get(name, {})

    def importance(self, name: str) -> Path | None:
        """Return the file with a version's importance, its own or the nearest ancestor's."""
        for ancestor in self.line(name):
            path = self.path(ancestor) / IMPORTANCE
            if path.exists():
                return path
        return None

    def line(self, name: str) -> Iterator[str]:
        """Yield a version, its parent, and so on, also those that were removed."""
        seen: set[str] = set()
        removed = _read(self._removed)
        while name not in seen and (self.exists(name) or name in removed):
            seen.add(name)
            yield name
            name = str(self.about(name).get("parent", ""))

    def add(
        self, name: str, write: Callable[[Path], None], about: Mapping[str, Any] | None = None
    ) -> None:
        """Make a new version, without switching to it.

        Args:
            name: of the version. If it is there already, whole as every version is, nothing is
                done: so an addition that was cut off can be repeated.
            write: gets an empty folder and puts the model there.
            about: what :meth:`about` is to return.
        """
        final = self.path(name)
        if final.exists():
            return
        half = self.folder / f"{_HALF}{name}"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        write(half)
        (half / _ABOUT).write_text(json.dumps(about or {}, indent=1), encoding="utf-8")
        files.publish_folder(half, final)

    def switch(self, name: str) -> None:
        """Put a version into use, at once or not at all."""
        files.replace_file(self._pointer, f"{name}\n".encode())

    def archive(self, name: str) -> tuple[int, Iterator[bytes]]:
        """Return a version as a tar file: its length in bytes, and its parts.

        Its files are opened here, so that it can be read to its end even if it is removed.
        """
        opened, headers, sizes = [], [], []
        for path in sorted(self.path(name).iterdir()):
            if path.is_file():
                file = open(path, "rb")  # noqa: SIM115 (for parts() to close)
                info = tarfile.TarInfo(f"{name}/{path.name}")
                about = os.fstat(file.fileno())
                info.size, info.mtime = about.st_size, int(about.st_mtime)
                opened.append(file)
                headers.append(info.tobuf(tarfile.GNU_FORMAT))
                sizes.append(info.size)

        def parts() -> Iterator[bytes]:
            for header, file, size in zip(headers, opened, sizes, strict=True):
                yield header
                with file:
                    while chunk := file.read(_CHUNK):
                        yield chunk
                yield bytes(-size % tarfile.BLOCKSIZE)
            yield bytes(2 * tarfile.BLOCKSIZE)

        padded = (size + -size % tarfile.BLOCKSIZE for size in sizes)
        return sum(map(len, headers)) + sum(padded) + 2 * tarfile.BLOCKSIZE, parts()

    def prune(self, newest: int) -> list[str]:
        """Delete the versions that nobody needs any more, and return their names.

        These stay: the base, the one in use and its parent, the newest ones, and those with an
        importance that one of them goes back to; and what no training has made. What is known of
        the removed ones stays, too.
        """
        current = self.current() or BASE
        trained = [name for name in self.names() if "job" in self.about(name)]
        kept = {BASE, *list(self.line(current))[:2], *trained[:newest]}
        for name in tuple(kept):
            if (importance := self.importance(name)) is not None:
                kept.add(importance.parent.name)
        gone = []
        for name in (name for name in trained if name not in kept):
            known = _read(self._removed) | {name: self.about(name)}
            files.replace_file(self._removed, json.dumps(known, indent=1).encode())
            half = self.folder / f"{_HALF}{name}"
            self.path(name).rename(half)  # at once: it is whole, or it is not there
            if self.current() == name:  # a request has put it into use meanwhile
                half.rename(self.path(name))
                continue
            shutil.rmtree(half, ignore_errors=True)
            gone.append(name)
            _log.info("Version %s was removed: newer ones have taken its place.", name)
        return gone

    def clear(self) -> list[str]:
        """Delete all versions, the base last, and return their names. For the start only."""
        names = self.names()
        for name in names:
            half = self.folder / f"{_HALF}{name}"
            self.path(name).rename(half)
            shutil.rmtree(half, ignore_errors=True)
        self._removed.unlink(missing_ok=True)
        return names

    def recover(self, elsewhere: bool = False) -> None:
        """Delete what was cut off while being written. For the start only.

        Args:
            elsewhere: a worker on another machine may be writing: what has changed within
                :data:`HALF_SECONDS` is left alone.
        """
        latest = time.time() - HALF_SECONDS if elsewhere else math.inf
        halves = [path for path in self.folder.iterdir() if path.name.startswith(".")]
        for path in [*halves, *self.folder.glob("[!.]*/.*.part")]:
            with suppress(FileNotFoundError):  # that worker may be done with it meanwhile
                if max(p.stat().st_mtime for p in (path, *path.rglob("*"))) > latest:
                    continue
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _read(path: Path) -> dict[str, Any]:
    """Return the dictionary in a file of JSON: an empty one, if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
