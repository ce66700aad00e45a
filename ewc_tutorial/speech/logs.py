"""Log lines: as text or as JSON, and never so many that they fill the disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pythonjsonlogger.json import JsonFormatter

#: So many lines of one kind in so many seconds.
LINES = 20
SECONDS = 60.0


class NoFlood(logging.Filter):
    """Lets so many warnings of one kind pass in a minute; the next that passes says how many did
    not. What is no warning passes.

    A kind is a place in the program: what differs from line to line is filled in later.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        kind = (record.pathname, record.lineno)
        now = self._clock()
        began, lines = self._kinds.get(kind, (now, 0))
        if now - began >= SECONDS:
            if lines > LINES:
                record.msg = f"{record.msg} (and {lines - LINES} more lines like this before)"
            began, lines = now, 0
        self._kinds[kind] = began, lines + 1
        return lines < LINES


def set_up(kind: str) -> None:
    """Write all lines to the standard error, as ``text`` or as ``json``."""
    handler = logging.StreamHandler()
    handler.addFilter(NoFlood())
    if kind == "json":
        handler.setFormatter(
            JsonFormatter(
                "{asctime}{levelname}{name}{message}",
                style="{",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                json_ensure_ascii=False,
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
