"""Errors of the disk and of the index, as an HTTP status and a sentence."""

from __future__ import annotations

import errno
import sqlite3
import tempfile
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from ewc_tutorial.speech.database import cause
from ewc_tutorial.speech.errors import StorageError

#: What is raised where files or the index cannot be used.
DISK_ERRORS = (OSError, SQLAlchemyError)


def disk_problem(error: Exception) -> tuple[int, str]:
    """Return 507 or 503, and what to say of one of :data:`DISK_ERRORS`."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "disk is full" in cause(error) or "No space left" in cause(error):
        return 507, "The disk of the service is full; nothing was changed."
    if isinstance(error, StorageError):
        return 503, "The service cannot reach the storage of its recordings; nothing was changed."
    if isinstance(error, OSError):
        return 503, f"The service cannot use its folder: {error.strerror}; nothing was changed."
    if isinstance(getattr(error, "orig", None), sqlite3.Error):
        return 503, f"The service cannot use its index: {cause(error)}; nothing was changed."
    # A commit whose answer was lost may have come through. Where the server is, is for the log.
    return 503, "The service cannot reach its index: send it again later, it is not kept twice."


def look_at_disk(folder: Path) -> None:
    """Write a little to a folder and take it away again.

    Raises:
        OSError: it cannot be written, as on a full disk or one that may be read alone.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
