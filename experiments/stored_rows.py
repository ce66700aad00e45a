"""Tables that get a row as soon as a run is finished, so that a script can be stopped and go on."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas as pd

Row = Mapping[str, Any]


def append(path: Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Add rows to a table, which is made with its header if it is not there.

    Args:
        path: of the CSV file.
        rows: column → value; a column that a row lacks stays empty.
        columns: all of them in their order; without it, those of the first row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def run_missing(
    path: Path,
    run: Callable[..., Row],
    wanted: Iterable[tuple],
    key: list[str],
    columns: Sequence[str],
    workers: int,
) -> int:
    """Run what is wanted and not stored yet, append each row as it is finished, and count them.

    Args:
        path, columns: as for :func:`append`.
        run: called in other processes with one of ``wanted``; returns its row.
        wanted: values of the columns ``key``.
        workers: processes.
    """
    done = set()
    if path.exists():
        done = set(pd.read_csv(path)[key].itertuples(index=False, name=None))
    todo = [job for job in dict.fromkeys(wanted) if job not in done]
    print(f"{len(todo)} runs to do", flush=True)
    with ProcessPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(run, *job) for job in todo]):
            append(path, [future.result()], columns)
    return len(todo)
