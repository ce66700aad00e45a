"""Corrections after an end at any point: folders and index are put in order. For the start only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy.exc import IntegrityError

from ewc_tutorial import files
from ewc_tutorial.speech.corrections import Corrections, read_about
from ewc_tutorial.speech.errors import RefusedError
from ewc_tutorial.speech.folders import TEXT_NAME
from ewc_tutorial.speech.objects import ABOUT
from ewc_tutorial.speech.trail import DELETION

_log = logging.getLogger(__name__)


def recover(corrections: Corrections, clean: Callable[[str], str] = str.strip) -> None:
    """Bring files and index together.

    Args:
        corrections: of a server that has just started.
        clean: makes of a text as it was sent what the model writes.
    """
    index, storage = corrections.index, corrections.storage
    for name in storage.aside():
        if (correction := index.get(name)) is not None:
            corrections.remove(correction)
        else:
            storage.delete_aside(name)
    known = index.ids()
    swept = files.sweep(corrections.incoming) + storage.sweep(known)
    if swept:
        _log.warning("%d uploads that were cut off have been removed.", swept)
    here = storage.names()
    strangers = [name for name in here if name not in known]
    abouts = {name: read_about(about) for name, about in storage.read(strangers, ABOUT).items()}
    # Those that had a number first, in its order; then the rest, in the order of their arrival,
    # whose new numbers are none that what was deleted had.
    numbered = sorted(filter(abouts.get, strangers), key=lambda name: abouts[name]["seq"])
    taken = _enter_each(corrections, numbered, abouts, clean)
    index.restore_deletions(corrections.trail.rows(DELETION))
    rest = [name for name in strangers if name in taken or not abouts[name]]
    _enter_each(corrections, rest, {}, clean)
    for name in sorted(known.difference(here)):
        _log.error("The files of correction %s are gone; it is not used in training.", name)
    _complete(corrections)
    _take_texts_from_files(corrections, [name for name in here if name in known], clean)


def _enter_each(
    corrections: Corrections,
    names: Iterable[str],
    abouts: dict[str, dict[str, Any]],
    clean: Callable[[str], str],
) -> set[str]:
    """Enter what can be entered; return those whose number is taken: somebody has copied them."""
    taken = set()
    for name in names:
        try:
            _enter(corrections, name, abouts.get(name, {}), clean)
            _log.warning("Correction %s was whole on disk and is now in the index.", name)
        except IntegrityError:
            taken.add(name)
        except (RefusedError, ValueError, OSError) as error:
            _log.error("%r is no correction and is left alone: %s", name, error)
    return taken


def _enter(
    corrections: Corrections, name: str, about: dict[str, Any], clean: Callable[[str], str]
) -> None:
    with corrections.storage.copy(name) as folder:
        (path,) = folder.glob("audio.*")
        sent = (folder / TEXT_NAME).read_bytes().decode()  # its ends of lines, too, are as sent
        written = corrections.look_at(path)
    corrections.enter(name, written, _cleaned(sent, clean), sent, about)


def _cleaned(sent: str, clean: Callable[[str], str]) -> str:
    """Return a text as the model writes it; one that it cannot write is left out by trainings."""
    try:
        return clean(sent)
    except RefusedError:
        return sent.strip()


def _complete(corrections: Corrections) -> None:
    """Add what an earlier version of the service did not note: hashes of sounds, the files with
    what the index alone knows."""
    storage = corrections.storage
    for name in corrections.index.incomplete():
        sound = None
        try:
            with storage.copy(name) as folder:
                (path,) = folder.glob("audio.*")
                sound = corrections.look_at(path).sound
        except (RefusedError, ValueError, OSError) as error:
            _log.error("The recording of correction %s cannot be read: %s", name, error)
        corrections.index.complete(name, sound)
    is_there = storage.present()
    for correction in corrections.index.page(limit=None):
        if is_there(correction.id, TEXT_NAME) and not is_there(correction.id, ABOUT):
            corrections.write_about(correction)


def _take_texts_from_files(
    corrections: Corrections, names: Iterable[str], clean: Callable[[str], str]
) -> None:
    """After a kill while a text was changed, the index may have the earlier one."""
    indexed = {correction.id: correction.sent for correction in corrections.index.page(limit=None)}
    for name, content in corrections.storage.read(names, TEXT_NAME).items():
        try:
            if isinstance(content, Exception):
                raise content
            sent = content.decode()
            if sent != indexed[name]:
                corrections.index.set_text(name, _cleaned(sent, clean), sent, lambda: None)
        except (OSError, ValueError, IntegrityError) as error:
            _log.error("The text of correction %s cannot be used: %s", name, error)
