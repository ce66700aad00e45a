"""Recordings of people and the index are for the user alone that the service runs as."""

from __future__ import annotations

import logging
import os
from pathlib import Path

_OTHERS = 0o077
_log = logging.getLogger(__name__)


def make_private(folder: Path) -> None:
    """Take from everybody else all rights on a folder and what is below it, if they have any.

    Links are left alone: they may lead to what belongs to somebody.
    """
    if os.name == "nt" or not folder.stat().st_mode & _OTHERS:
        return
    try:
        folder.chmod(0o700)  # first, so that nobody comes in meanwhile
        for parent, folders, names in os.walk(folder):
            for name in (*folders, *names):
                path = Path(parent) / name
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode & ~_OTHERS & 0o777)
    except OSError as error:
        _log.warning("Others may be able to read %s: %s.", folder, error.strerror)
    else:
        _log.warning("%s could be read by others; now it cannot.", folder)
