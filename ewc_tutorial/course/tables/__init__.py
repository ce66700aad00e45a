"""Runs that were made beforehand, one row each: what lessons read instead of training for hours.

``published.csv`` holds numbers quoted from papers; each other table is named after the script in
``experiments/`` that makes it and that can be stopped and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

FOLDER = Path(__file__).parent
#: Seeds from here on search settings; those below report what the best setting does.
FIRST_SEARCH_SEED = 100


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


def reported(
    rows: pd.DataFrame, settings: Sequence[str], by: str = "average_accuracy"
) -> pd.DataFrame:
    """Return the runs on report seeds at the settings with the best mean on the search seeds.

    Args:
        rows: one per run, with a column ``seed``.
        settings: columns that were searched, such as λ and the learning rate.
        by: what is best where it is highest.

    Raises:
        ValueError: nothing was searched, or the best setting has no report.
    """
    search = rows[rows.seed >= FIRST_SEARCH_SEED]
    if search.empty:
        raise ValueError("rows must hold runs on search seeds, which choose the setting.")
    means = search.groupby(list(settings))[by].mean()
    highest = means.idxmax() if len(settings) > 1 else (means.idxmax(),)
    best = dict(zip(settings, highest, strict=True))
    chosen = rows[rows.seed < FIRST_SEARCH_SEED]
    for column, value in best.items():
        chosen = chosen[chosen[column] == value]
    if chosen.empty:
        raise ValueError(f"rows must hold runs on report seeds at the best setting, {best}.")
    return chosen.sort_values("seed").reset_index(drop=True)
