"""What only the index knows beside the corrections, line by line in a file, for an index that must
be made again: which corrections were deleted, and how trainings ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

NAME = "trail.jsonl"
DELETION, TRAINING = "deletion", "training"


class Trail:
    """The file ``trail.jsonl`` in a folder; lines are only added to it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Add a row; it is on the disk when this returns."""
        # The line begins with its end, so that one which a power cut has left half spoils no other.
        line = "\n" + json.dumps({"kind": kind, **row})
        with open(self._path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Return the rows of a kind by their number ``seq``; of two the later one counts."""
        if not self._path.exists():
            return []
        found: dict[int, dict[str, Any]] = {}
        for line in self._path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                if row.pop("kind") == kind:
                    found[int(row["seq"])] = row
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return [found[seq] for seq in sorted(found)]
