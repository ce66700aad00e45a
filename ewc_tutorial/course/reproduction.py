"""Our runs of published experiments beside the published numbers (notebook 12).

``experiments/reproduce.py`` makes the runs, one row each; here they become tables with a verdict.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ewc_tutorial.course import tables

#: The seed that λ was chosen on; it is not reported.
TUNING_SEED = 100
#: Agreement: the difference is at most so many of its standard errors.
LIMIT = 2.0


def load_runs(path: Path | str | None = None) -> pd.DataFrame:
    """Return one row per run: experiment, cell, method, lam, seed, accuracy in %, seconds, detail.

    ``detail`` is what JSON says: nested lists, a dict, or None. Without a ``path`` the rows are
    those that come with the course.

    Raises:
        FileNotFoundError: there is no such table.
    """
    path = tables.path("reproduce") if path is None else Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run experiments/reproduce.py to make it.")
    runs = pd.read_csv(path, dtype={"cell": str}, keep_default_na=False)
    return runs.assign(accuracy=100 * runs["accuracy"], detail=runs["detail"].map(json.loads))


def load_published() -> pd.DataFrame:
    """Return the published test accuracies in %, with their standard error where one is given."""
    return tables.load("published", dtype={"cell": str, "best_lambda": str})


def tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs on the tuning seed, by λ: what each λ was chosen from."""
    rows = runs[(runs["seed"] == TUNING_SEED) & (runs["lam"] > 0)]
    return rows.sort_values(["experiment", "cell", "method", "lam"])


def best_lambda(runs: pd.DataFrame) -> pd.Series:
    """Return λ of the highest accuracy on the tuning seed, per experiment, cell and method."""
    rows = tuned(runs)
    keys = ["experiment", "cell", "method"]
    return rows.loc[rows.groupby(keys)["accuracy"].idxmax()].set_index(keys)["lam"]


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean, standard error and number of the reported seeds, per cell, method and λ."""
    reported = runs[runs["seed"] != TUNING_SEED]
    keys = ["experiment", "cell", "method", "lam"]
    table = reported.groupby(keys, sort=False)["accuracy"].agg(["mean", "sem", "count"])
    seconds = reported.groupby(keys, sort=False)[["seconds", "fisher_seconds"]].median()
    return table.join(seconds).reset_index()


def compare(ours: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Hold our means against the published ones.

    A published value without a standard error counts as exact, which makes agreement harder.

    Args:
        ours: from :func:`summary`, one row for each cell and method.
        published: from :func:`load_published`.

    Returns:
        Columns cell, method, published, published_se, mean, sem, count, lam, and with the
        difference of the means in its standard errors, z, a verdict: ``agrees`` or ``differs``.

    Raises:
        ValueError: ``ours`` has two rows for one cell and method.
    """
    keys = ["experiment", "cell", "method"]
    if ours.duplicated(keys).any():
        twice = ours[ours.duplicated(keys)].iloc[0][keys].tolist()
        raise ValueError(f"ours must have one row for each cell and method, but has two: {twice}.")
    reference = published.rename(columns={"accuracy": "published", "se": "published_se"})
    table = reference[[*keys, "published", "published_se"]].merge(ours, on=keys)
    error = np.hypot(table["sem"], table["published_se"].fillna(0.0))
    table["z"] = (table["mean"] - table["published"]) / error
    table["verdict"] = np.where(table["z"].abs() <= LIMIT, "agrees", "differs")
    return table
