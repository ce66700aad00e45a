"""Folders of recordings with a text beside each."""

from __future__ import annotations

from pathlib import Path

TEXT_NAME = "text.txt"


def recordings_in(folder: Path) -> list[Path]:
    """Return the WAV and FLAC files below a folder, in a fixed order; recorders write .WAV, too.

    Names that begin with a dot are not for people: macOS puts one beside each file of a stick.
    """
    return sorted(
        path
        for path in folder.glob("**/*")
        if path.suffix.lower() in (".wav", ".flac") and not path.name.startswith(".")
    )


def text_beside(path: Path) -> Path | None:
    """Return where a recording's text is: ``text.txt`` beside it, else NAME.txt or NAME.TXT."""
    names = (path.with_name(TEXT_NAME), path.with_suffix(".txt"), path.with_suffix(".TXT"))
    return next((name for name in names if name.exists()), None)


def text_of(path: Path) -> str:
    """Return the text that belongs to a recording.

    Raises:
        FileNotFoundError: it has none.
    """
    return (text_beside(path) or path.with_suffix(".txt")).read_text(encoding="utf-8").strip()
