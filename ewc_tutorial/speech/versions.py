"""The models before and after: one folder per version, and a pointer to the one in use.

A version is written beside the others under a temporary name, synced, and renamed; then the file
``current``, which holds the version's name, is replaced. Both are atomic: whoever follows the
pointer, at any moment and after any kill, finds a whole model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ewc_tutorial import files

BASE = "base"
_HALF = ".half-"


class Versions:
    """The versions below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._pointer = folder / "current"

    def current(self) -> str | None:
        """Return the name of the version in use, or None before the first."""
        try:
            return self._pointer.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def path(self, name: str) -> Path:
        """Return the folder of a version."""
        return self.folder / name

    def publish(self, name: str, write: Callable[[Path], None]) -> None:
        """Make a new version and switch to it.

        Args:
            name: of the version. If it is there already, whole as every version is, only the
                switch is made: so a publication that was cut off can be repeated.
            write: gets an empty folder and puts the model there.
        """
        final = self.path(name)
        if not final.exists():
            half = self.folder / f"{_HALF}{name}"
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            write(half)
            files.publish_folder(half, final)
        files.replace_file(self._pointer, f"{name}\n".encode())

    def recover(self) -> None:
        """Delete versions that were cut off while being written. For the start only."""
        for path in self.folder.iterdir():
            if path.name.startswith("."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
