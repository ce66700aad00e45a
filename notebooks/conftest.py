"""Numbers of a training may differ a little on other machines: compare them within limits.

nbval compares the text of a cell that is marked ``# NBVAL_CHECK_OUTPUT`` letter by letter. Where
the next line is ``# on other machines ± 0.03``, or ``± 10 %``, each number may lie so far from the
stored one; everything between the numbers must still be the same.
"""

from __future__ import annotations

import copy
import os
import re
from typing import Any

import pytest

_ALLOWED = re.compile(r"^# NBVAL_CHECK_OUTPUT\n# on other machines ± ([\d.]+)( %)?$", flags=re.M)
#: With the spaces before it, of which a longer number leaves fewer.
_NUMBER = re.compile(r"( *[-+−]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?)")


def allowed(source: str) -> tuple[float, float]:
    """Return by how much a cell's numbers may differ: absolute, and relative."""
    found = _ALLOWED.search(source)
    if found is None:
        return 0.0, 0.0
    value = float(found[1])
    return (0.0, value / 100) if found[2] else (value, 0.0)


def snapped(new: str, stored: str, absolute: float, relative: float) -> str:
    """Return a text with every number that is near enough to the stored one replaced by it."""
    ours, theirs = _NUMBER.split(new), _NUMBER.split(stored)
    if ours[::2] != theirs[::2]:
        return new
    for i in range(1, len(ours), 2):
        a, b = (float(part[i].strip().replace("−", "-")) for part in (ours, theirs))
        if abs(a - b) <= absolute + relative * abs(b) + 1e-12:
            ours[i] = theirs[i]
    return "".join(ours)


def pytest_configure(config: pytest.Config) -> None:
    if not (config.getoption("nbval", False) or config.getoption("nbval_lax", False)):
        return
    os.environ["EWC_TUTORIAL_PROGRESS"] = "off"  # a test solves nothing for whoever runs it
    from nbval.plugin import IPyNbCell

    compare = IPyNbCell.compare_outputs

    def compare_outputs(cell: Any, test: Any, ref: Any, skip_compare: Any = None) -> bool:
        tolerance = allowed(cell.cell.source)
        if any(tolerance):
            test = copy.deepcopy(test)
            for new, stored in zip(test, ref, strict=False):
                if "text" in new and "text" in stored:
                    new["text"] = snapped(new["text"], stored["text"], *tolerance)
        return compare(cell, test, ref, skip_compare)

    IPyNbCell.compare_outputs = compare_outputs
