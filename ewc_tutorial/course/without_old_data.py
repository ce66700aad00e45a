"""The table ``without_old_data``, read as its protocol wants it (notebook 09).

Seeds from 100 on choose each source's λ, where the mean of old and new loss is least; those below
report, paired with the importance of the old data itself.
"""

from __future__ import annotations

import pandas as pd

from ewc_tutorial.course import tables
from ewc_tutorial.course.reference import paired_difference

REFERENCE = "old data"


def best_lam(rows: pd.DataFrame, source: str) -> float:
    """Return the λ of a source, 0 for plain training."""
    mine = rows[(rows.source == source) & (rows.seed >= tables.FIRST_SEARCH_SEED)]
    if mine.empty:
        return 0.0
    return float(((mine.old + mine.new) / 2).groupby(mine.lam).mean().idxmin())


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Hold every source against the old data, with equal seeds.

    Args:
        rows: of the table ``without_old_data``.

    Returns:
        By source: ``lam``, means of ``old``, ``new`` (nats per token) and ``recall``, their
        ``mean`` of old and new, and for these two losses and their mean the paired difference to
        the old data's importance with its standard error, as in ``old_more`` and ``old_sem``; NaN
        for itself.
    """
    found = {}
    for source in rows.source.unique():
        mine = rows[(rows.source == source) & (rows.lam == best_lam(rows, source))]
        mine = mine[mine.seed < tables.FIRST_SEARCH_SEED].set_index("seed").sort_index()
        if len(mine) > 1:
            found[source] = mine.assign(mean=(mine.old + mine.new) / 2)
    lines = {}
    for source, runs in found.items():
        line = {"lam": runs.lam.iloc[0], "seeds": len(runs)}
        line |= {name: runs[name].mean() for name in ("old", "new", "mean", "recall")}
        for name in ("old", "new", "mean"):
            more = (float("nan"),) * 2
            if source != REFERENCE:
                pair = (x[name][found[REFERENCE].index] for x in (runs, found[REFERENCE]))
                more = paired_difference(*map(list, pair))
            line[f"{name}_more"], line[f"{name}_sem"] = more
        lines[source] = line
    return pd.DataFrame.from_dict(lines, orient="index")
