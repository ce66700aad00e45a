"""Errors of the disk and of the index, as an HTTP status and a sentence."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path


def disk_problem(error: Exception) -> tuple[int, str]:
    """Return 507 or 503, and what to say of an ``OSError`` or an error of SQLite."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "disk is full" in str(error):
        return 507, "The disk of the service is full; nothing was changed."
    if isinstance(error, OSError):
        return 503, f"The service cannot use its folder: {error.strerror}; nothing was changed."
    return 503, f"The service cannot use its index: {error}; nothing was changed."


def look_at_disk(folder: Path) -> None:
    """Write a little to a folder and take it away again.

    Raises:
        OSError: it cannot be written, as on a full disk or one that may be read alone.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
