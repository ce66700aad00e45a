"""The table ``importances``, read as its protocol wants it (notebook 14).

Seeds from 102 on, where there are any, choose each method's learning rate and λ among the best of
the search on 100 and 101; without them these two choose. Seeds below 100 choose nothing and are
what is reported, paired with those of the exact Fisher diagonal.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from scipy.stats import t

from ewc_tutorial.course import tables
from ewc_tutorial.course.reference import paired_difference

SEARCH = (100, 101)
#: Seeds that decide between the best settings of the search, where seeds differ much.
DECIDE = range(102, 108)
REPORTED = range(tables.FIRST_SEARCH_SEED)
KEYS = ["lr", "lam"]


def ranked(rows: pd.DataFrame, seeds: Iterable[int]) -> list[tuple[float, float]]:
    """Return learning rates and λ by their mean accuracy over these seeds, the best first."""
    means = rows[rows.seed.isin(list(seeds))].groupby(KEYS).average_accuracy.mean()
    return list(means.sort_values(ascending=False, kind="stable").index)


def best_setting(rows: pd.DataFrame) -> tuple[float, float]:
    """Return a method's learning rate and λ, given its rows of one setting."""
    return ranked(rows, DECIDE if rows.seed.isin(list(DECIDE)).any() else SEARCH)[0]


def runs_of(rows: pd.DataFrame, seeds: Iterable[int]) -> pd.DataFrame:
    """Return a method's runs on these seeds at its own learning rate and λ, by seed."""
    lr, lam = best_setting(rows)
    mine = rows[(rows.lr == lr) & (rows.lam == lam) & rows.seed.isin(list(seeds))]
    return mine.set_index("seed").sort_index()


def report(
    rows: pd.DataFrame, setting: str, reference: str = "exact", seeds: Iterable[int] = REPORTED
) -> pd.DataFrame:
    """Hold every method of a setting against one, with equal seeds.

    Args:
        rows: of the table ``importances``.
        setting: such as ``"split-digits"``.
        reference: the method that the others are held against.
        seeds: whose runs to look at; of the reported ones, those there are.

    Returns:
        By method: ``lr``, ``lam``, mean ``accuracy``, its standard error ``sem``, ``seeds``, and
        the mean difference ``gain`` to the reference with its standard error ``gain_sem``, NaN for
        itself; ``clear`` says whether Student's t of so few seeds leaves zero out, at 5 %.
    """
    mine = rows[rows.setting == setting]
    found = {method: runs_of(of_it, seeds) for method, of_it in mine.groupby("method", sort=False)}
    against = found[reference].average_accuracy
    lines = {}
    for method, runs in found.items():
        accuracy = runs.average_accuracy
        gain = (float("nan"),) * 2
        if method != reference:
            gain = paired_difference(*(list(x[against.index]) for x in (accuracy, against)))
        lines[method] = {
            "lr": runs.lr.iloc[0],
            "lam": runs.lam.iloc[0],
            "accuracy": accuracy.mean(),
            "sem": accuracy.sem(),
            "seeds": len(accuracy),
            "gain": gain[0],
            "gain_sem": gain[1],
            "clear": abs(gain[0]) > t.ppf(0.975, len(accuracy) - 1) * gain[1],
        }
    return pd.DataFrame.from_dict(lines, orient="index")
