"""Recordings with a text beside each, in a folder or in a ZIP file.

Two ways of naming are known: ``NAME.wav`` with ``NAME.txt``, and ``audio_0001.wav`` with
``text_0001.txt``, as servers write it that number what comes in.
"""

from __future__ import annotations

import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import PurePosixPath
from typing import BinaryIO

from ewc_tutorial.speech.errors import RefusedError

#: Endings of recordings, in small letters; which of them can be read is asked later.
SOUNDS = (".wav", ".flac", ".mp3", ".opus", ".ogg", ".m4a", ".mp4", ".webm")
#: A text may have so many bytes before it is looked at.
MAX_TEXT = 64 * 1024
#: An archive may have so many files.
MAX_FILES = 5_000
#: Its table of contents may have so many bytes per file that it may have.
_BYTES_PER_NAME = 1024
#: What zipfile and its decompressors raise at damaged or encrypted files.
_UNPACKING = (
    zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError, OSError,
    zlib.error, lzma.LZMAError,
)  # fmt: skip
_NUMBERED = re.compile(r"audio(_\d+)", re.IGNORECASE)


def text_names(sound: str) -> Iterator[str]:
    """Yield the names, without a folder, that the text of a recording may have."""
    stem = PurePosixPath(sound).stem
    if found := _NUMBERED.fullmatch(stem):
        yield f"text{found[1]}.txt"
    yield f"{stem}.txt"


def sounds_among(names: list[str]) -> list[str]:
    """Return those names that are recordings, in order; those with a dot before are not for people:
    macOS puts one beside each file."""
    return sorted(
        name
        for name in names
        if PurePosixPath(name).suffix.lower() in SOUNDS
        and not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    )


def by_small_letters(names: list[str]) -> dict[str, list[str]]:
    """Return names by what they are in small letters: on most systems there can be several."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        found.setdefault(name.lower(), []).append(name)
    return found


def text_for(sound: str, names: dict[str, list[str]]) -> str:
    """Return the name of a recording's text.

    Args:
        sound: name of the recording, with its folder.
        names: all names (:func:`by_small_letters`).

    Raises:
        RefusedError: there is none, or it is not clear which one it is.
    """
    folder = PurePosixPath(sound).parent
    wanted = [str(folder / name) for name in text_names(sound)]
    for name in wanted:
        found = names.get(name.lower(), [])
        if name in found:
            return name
        if found and len(found) == len(names[sound.lower()]) == 1:
            return found[0]
        if found:
            raise RefusedError(
                f"the text of {PurePosixPath(sound).name} must be {PurePosixPath(name).name}, "
                "where other names differ from these in small and capital letters alone."
            )
    raise RefusedError(f"there is no {' or '.join(PurePosixPath(n).name for n in wanted)}.")


def read_text(file: BinaryIO) -> str:
    """Return the text in a file.

    Raises:
        RefusedError: it is too long, or is not in UTF-8.
    """
    content = file.read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        raise RefusedError(f"text must have at most {MAX_TEXT:,} bytes.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RefusedError("text must be in UTF-8.") from None


def _check_contents(file: BinaryIO) -> None:
    """Refuse an archive whose table of contents is too large, which ZipFile reads whole: of what
    the service takes, millions of files without a content, each a hundred times larger in memory.
    """
    # The same function that ZipFile asks, so that nothing looks small here and is large there.
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    size = end[zipfile._ECD_SIZE] if end else 0  # type: ignore[attr-defined]
    if size > MAX_FILES * _BYTES_PER_NAME:
        raise RefusedError(
            f"archive must have at most {MAX_FILES:,} files, whose names fill at most "
            f"{MAX_FILES * _BYTES_PER_NAME:,} bytes, not {size:,}."
        )


Pair = tuple[str, Callable[[], AbstractContextManager[BinaryIO]], Callable[[], str]]


def pairs_in_archive(file: BinaryIO, max_bytes: int) -> Iterator[Pair]:
    """Yield per recording in a ZIP file its name, what opens it, and what reads its text.

    Opening and reading raise RefusedError where a correction cannot be used; the others can.

    Args:
        file: the archive.
        max_bytes: of a recording, so that a small archive cannot become a large one.

    Raises:
        RefusedError: it is no ZIP file, or there is no recording in it.
    """
    try:
        _check_contents(file)
        archive = zipfile.ZipFile(file)
        names = archive.namelist()
    except RefusedError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise RefusedError("archive must be a ZIP file.") from error
    if len(names) > MAX_FILES:
        raise RefusedError(f"archive must have at most {MAX_FILES:,} files, not {len(names):,}.")
    known = by_small_letters(names)
    sounds = sounds_among(names)
    if not sounds:
        raise RefusedError(
            "archive must have recordings with texts: audio_0001.wav with text_0001.txt, or "
            "NAME.wav with NAME.txt."
        )

    def content(name: str, what: str, most: int) -> BinaryIO:
        try:
            with archive.open(name) as member:
                found = member.read(most + 1)
        except _UNPACKING as error:
            raise RefusedError(f"{what} cannot be unpacked.") from error
        if len(found) > most:
            raise RefusedError(f"{what} must have at most {most:,} bytes.", 413)
        return io.BytesIO(found)

    for sound in sounds:
        yield (
            sound,
            lambda sound=sound: content(sound, "audio", max_bytes),
            lambda sound=sound: read_text(content(text_for(sound, known), "text", MAX_TEXT)),
        )
