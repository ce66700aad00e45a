"""Errors of the disk and of the index, as an HTTP status and a sentence."""

from __future__ import annotations

import errno


def disk_problem(error: Exception) -> tuple[int, str]:
    """Return 507 or 503, and what to say of an ``OSError`` or an error of SQLite."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "disk is full" in str(error):
        return 507, "The disk of the service is full; nothing was changed."
    if isinstance(error, OSError):
        return 503, f"The service cannot use its folder: {error.strerror}; nothing was changed."
    return 503, f"The service cannot use its index: {error}; nothing was changed."
