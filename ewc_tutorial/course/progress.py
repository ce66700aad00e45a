"""What the reader has solved, remembered in one file on this machine and sent nowhere.

The file is ``ewc-tutorial/progress.json`` in the user's folder for data. The environment variable
``EWC_TUTORIAL_PROGRESS`` names another file, or is ``off``: then nothing is written.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from ewc_tutorial.console import printable
from ewc_tutorial.course.exercises.core import Result
from ewc_tutorial.course.exercises.registry import LESSON_OF
from ewc_tutorial.files import replace_file

VARIABLE = "EWC_TUTORIAL_PROGRESS"


def place() -> Path | None:
    """Return where progress is kept, or None if it is not to be."""
    said = os.environ.get(VARIABLE, "")
    if said.lower() == "off":
        return None
    if said:
        return Path(said)
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home, as containers have
        return None
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return data / "ewc-tutorial" / "progress.json"


def load() -> dict[str, bool]:
    """Return the exercises that were tried, and whether they were ever solved."""
    return _read(place()) or {}


def note(name: str, verdict: Result) -> None:
    """Remember the verdict on an exercise: what was solved once stays solved.

    A file that cannot be read or written is no reason for a check to fail, so nothing is raised;
    and one that cannot be read is left as it is, for somebody may be able to mend it.
    """
    file = place()
    if file is None or verdict.text.startswith("○"):  # nothing was handed in
        return
    found = _read(file)
    if found is None or found.get(name) in (True, verdict.correct):
        return
    text = json.dumps(found | {name: verdict.correct}, indent=1)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, text.encode() + b"\n")


def _read(file: Path | None) -> dict[str, bool] | None:
    """Return what a file holds, nothing of one that is not there, or None if it is unreadable."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None
    if not isinstance(stored, dict):
        return None
    return {name: value is True for name, value in stored.items() if name in LESSON_OF}


def overview() -> None:
    """Print how many exercises of each lesson are solved, and where to go on."""
    found = _read(place())
    if found is None:
        print(
            printable(
                f"{place()} cannot be read: nothing is remembered until it is mended or gone."
            )
        )
        return
    rows = []
    for lesson in sorted(set(LESSON_OF.values())):
        names = [name for name, its in LESSON_OF.items() if its == lesson]
        if any(name in found for name in names):
            solved = sum(found.get(name, False) for name in names)
            rows.append(f"lesson {lesson:02d}: {solved} of {len(names)} exercises solved")
    left = [lesson for name, lesson in LESSON_OF.items() if not found.get(name)]
    rows = rows or ["No exercise has been tried yet."]
    if left:
        rows.append(f"Next: lesson {left[0]:02d}, exercises left: {left.count(left[0])}.")
    else:
        rows.append("All exercises are solved.")
    print(printable("\n".join(rows)))
