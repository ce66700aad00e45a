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


def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return a table, or an empty one with these columns if it is not there yet."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(columns))


def run_missing_at_once(
    path: Path,
    run: Callable[[int, list[tuple]], Sequence[Row]],
    points: Iterable[tuple],
    seeds: Iterable[int],
    key: list[str],
    columns: Sequence[str],
    at_once: int,
) -> int:
    """Run what is not stored yet, several points of one seed in one call, and count it.

    Args:
        path, columns: as for :func:`append`.
        run: called with a seed and some of ``points``; returns their rows.
        points: values of the columns ``key`` but for the last, which is the seed.
        at_once: points of a call at most.
    """
    done = set(read(path, columns)[key].itertuples(index=False, name=None))
    points, count = list(points), 0
    for seed in seeds:
        missing = [point for point in points if (*point, seed) not in done]
        for start in range(0, len(missing), at_once):
            append(path, run(seed, missing[start : start + at_once]), columns)
        count += len(missing)
    return count


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
