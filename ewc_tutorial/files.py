"""Files that are either whole or not there, even if the power goes.

A write has reached the disk only after ``fsync``; a new name is there only after ``fsync`` of its
folder; a rename within one file system replaces all at once or not at all. So: write under a
temporary name, sync, rename, sync the folder.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (where the system can: not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the content of a file durable that another program has written."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Make every file below a folder durable, and every name."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(Path(parent) / name)
        sync_folder(Path(parent))


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """Write a file: after the block its content is on the disk (its name is not yet)."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a new content of ``path``: a reader finds the old or the new one, whole.

    What a kill leaves behind beside it ends in ``.part``.
    """
    # Threads may write the same at once, and so may processes of two containers, whose ids agree.
    half = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with synced(half) as file:
            yield file
        os.replace(half, path)
    except Exception:
        half.unlink(missing_ok=True)  # on a full disk they would add up
        raise
    sync_folder(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Give ``path`` a new content, as :func:`replacing` does."""
    with replacing(path) as file:
        file.write(content)


def publish_folder(prepared: Path, final: Path) -> None:
    """Move a finished folder to its name, its content being on the disk before the name is."""
    sync_tree(prepared)
    os.rename(prepared, final)
    sync_folder(final.parent)


def sweep(folder: Path) -> int:
    """Delete what is in a folder for half-finished things; return how many there were."""
    found = list(folder.iterdir()) if folder.exists() else []
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return len(found)
