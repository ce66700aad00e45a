"""Runs that were made beforehand, one row each: what lessons read instead of training for hours.

``published.csv`` holds numbers quoted from papers; each other table is named after the script in
``experiments/`` that makes it and that can be stopped and goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

FOLDER = Path(__file__).parent


def path(name: str) -> Path:
    """Return where the table ``name`` lies, or where an experiment is to write it."""
    return FOLDER / f"{name}.csv"


def load(name: str, **options: Any) -> pd.DataFrame:
    """Return the table ``name``, such as ``"ten_tasks"``.

    Args:
        options: for :func:`pandas.read_csv`.

    Raises:
        ValueError: there is no such table.
    """
    if not path(name).exists():
        known = ", ".join(sorted(table.stem for table in FOLDER.glob("*.csv")))
        raise ValueError(f"name must be one of {known}, not {name!r}.")
    return pd.read_csv(path(name), **options)
