"""Corrections after an end at any point: folders and index are put in order. For the start only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from sqlalchemy.exc import IntegrityError

from ewc_tutorial import files
from ewc_tutorial.speech.corrections import ABOUT, REMOVED, Corrections, read_about, write_about
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.folders import TEXT_NAME
from ewc_tutorial.speech.trail import DELETION

_log = logging.getLogger(__name__)


def recover(corrections: Corrections, clean: Callable[[str], str] = str.strip) -> None:
    """Bring files and index together.

    Args:
        corrections: of a server that has just started.
        clean: makes of a text as it was sent what the model writes.
    """
    index, folder = corrections.index, corrections.folder
    for path in corrections.incoming.glob(f"*{REMOVED}"):
        if (correction := index.get(path.name.removesuffix(REMOVED))) is not None:
            corrections.remove(correction)
    swept = files.sweep(corrections.incoming)
    if swept:
        _log.warning("%d uploads that were cut off have been removed.", swept)
    here = {path.name: path for path in folder.iterdir() if path.is_dir()}
    known = index.ids()
    # Those that had a number first, in its order; then the rest, in the order of their arrival.
    strangers = sorted(
        ((read_about(here[name]), here[name]) for name in here.keys() - known),
        key=lambda pair: (pair[0].get("seq", 2**62), pair[1].stat().st_mtime_ns),
    )
    for about, path in strangers:
        try:
            _enter(corrections, path, about, clean)
            _log.warning("Correction %s was whole on disk and is now in the index.", path.name)
        except (RefusedError, ValueError, OSError) as error:
            _log.error("Folder %s is no correction and is left alone: %s", path, error)
    index.restore_deletions(corrections.trail.rows(DELETION))
    for name in sorted(known - here.keys()):
        _log.error("The files of correction %s are gone; it is not used in training.", name)
    _complete(corrections)
    _take_texts_from_files(corrections, here.keys() & known, clean)


def _enter(
    corrections: Corrections, folder: Path, about: dict[str, object], clean: Callable[[str], str]
) -> None:
    (path,) = folder.glob("audio.*")
    sent = (folder / TEXT_NAME).read_text(encoding="utf-8")
    written = corrections.look_at(path)
    text = _cleaned(sent, clean)
    try:
        corrections.enter(folder, written, text, sent, about)
    except IntegrityError:  # somebody has copied the folder: its number is taken
        corrections.enter(folder, written, text, sent, {})


def _cleaned(sent: str, clean: Callable[[str], str]) -> str:
    """Return a text as the model writes it; one that it cannot write is left out by trainings."""
    try:
        return clean(sent)
    except RefusedError:
        return sent.strip()


def _complete(corrections: Corrections) -> None:
    """Add what an earlier version of the service did not note: hashes of sounds, the files with
    what the index alone knows."""
    for name in corrections.index.incomplete():
        folder = corrections.folder / name
        sound = None
        try:
            (path,) = folder.glob("audio.*")
            sound = corrections.look_at(path).sound
        except (RefusedError, ValueError, OSError) as error:
            _log.error("The recording of correction %s cannot be read: %s", name, error)
        corrections.index.complete(name, sound)
    for correction in corrections.index.page(limit=None):
        folder = corrections.folder / correction.id
        if folder.exists() and not (folder / ABOUT).exists():
            write_about(folder, correction)


def _take_texts_from_files(
    corrections: Corrections, names: Iterable[str], clean: Callable[[str], str]
) -> None:
    """After a kill while a text was changed, the index may have the earlier one."""
    indexed = {correction.id: correction.sent for correction in corrections.index.page(limit=None)}
    for name in names:
        try:
            sent = (corrections.folder / name / TEXT_NAME).read_text(encoding="utf-8")
            if sent != indexed[name]:
                corrections.index.set_text(name, _cleaned(sent, clean), sent, lambda: None)
        except (OSError, ValueError, IntegrityError) as error:
            _log.error("The text of correction %s cannot be used: %s", name, error)
